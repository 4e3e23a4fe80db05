"""How a package's code comes onto the import path, and the names that it may not take."""

import importlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from dure_models import registry
from dure_models.packages.wheel import WheelError
from dure_protocols.model_package import ModelManifest


def check_free_names(manifest: ModelManifest) -> None:
    """Whether nothing that is installed here goes by the package's names. Raises WheelError.

    The model's name must not be that of a built-in or installed model; its module must not be one that Python finds,
    so that a package can neither pass for another's code nor be passed over for it.
    """
    if manifest.name in registry.names():
        raise WheelError(
            f"a model {manifest.name!r} is installed here already, with Dure or by another way: a package may not take "
            "its name; ask its author for another"
        )
    if manifest.module in sys.stdlib_module_names or find_spec(manifest.module) is not None:
        raise WheelError(
            f"the package's module {manifest.module!r} has the name of one that is installed here; ask its author for "
            "another name"
        )


def on_import_path(folder: Path) -> None:
    """Let this process find what is in a folder, after everything that is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a wheel's checked files below a new folder, private to this user."""
    folder.mkdir(mode=0o700)
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.write_bytes(content)


@contextmanager
def unpacked(files: Mapping[str, bytes], module: str) -> Iterator[Path]:
    """Let this process import a wheel's checked files while the block runs; they are forgotten afterwards.

    For the operator and the researcher, who look into a model to make a job or a package. A trainer, which runs it, is
    a process of its own.
    """
    with tempfile.TemporaryDirectory(prefix="dure-model-") as made:
        folder = Path(made) / "installed"
        write_files(folder, files)
        on_import_path(folder)
        try:
            yield folder
        finally:
            sys.path.remove(str(folder))
            for name in [each for each in sys.modules if each == module or each.startswith(f"{module}.")]:
                del sys.modules[name]
            importlib.invalidate_caches()
