"""The digest of a model package: what a firm puts on its allow-list and a job file names. Imports nothing heavy."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from dure_models import registry
from dure_models.errors import UnknownModelError
from dure_protocols import wire


def model_digest(name: str) -> str:
    """SHA-256 (lower-case hex) over the sources that train the model of that name, as installed here.

    These are the files of the model's own package and the modules that all models share (training loop, parameters,
    metrics, contract), each as its sorted relative path and its bytes; byte-code caches are left out. The model is not
    imported. Raises UnknownModelError.
    """
    module = registry.module_of(name)
    folder = _package_folder(name, module)
    return digest_of(
        name,
        {
            f"{module}/{path.relative_to(folder).as_posix()}": path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        },
    )


def digest_of(name: str, own: Mapping[str, bytes]) -> str:
    """The same of a model's own files, each by its path "module/…", with the shared modules as installed here."""
    shared = {f"dure_models/{path.name}": path.read_bytes() for path in Path(__file__).parent.glob("*.py")}
    parts = [part for label, content in sorted({**shared, **own}.items()) for part in (label.encode(), content)]
    return wire.digest("dure.model", name.encode(), *parts).hex()


def _package_folder(name: str, module: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UnknownModelError(
            f"the model {name!r} is announced as the package {module!r}, which is not installed as a folder; "
            "reinstall the package that offers it"
        )
    return Path(next(iter(spec.submodule_search_locations)))
