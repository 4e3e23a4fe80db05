"""`dure model pack`: from a researcher's folder to one signed file that a consortium can publish. Needs no network.

    FOLDER/model.toml    what the manifest says: see `Description`
    FOLDER/pump/         the package that holds the model's class, pure Python

The wheel is written here, always with the same bytes for the same files; one that other tools built can be given
instead.
"""

import base64
import hashlib
import importlib
import io
import tomllib
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from dure_models.digest import digest_of
from dure_models.packages import check_free_names, checked_files, sources_of, unpacked
from dure_models.registry import GROUP
from dure_protocols.errors import DureError
from dure_protocols.identity import Identity
from dure_protocols.model_package import ModelManifest, ModelPackage, PrivacySettings
from dure_protocols.toml import parse_toml

DESCRIPTION_FILE = "model.toml"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # a zip file's first moment: when it was packed changes no byte


class PackingError(DureError):
    """A folder does not make a model package."""


class Description(BaseModel):
    """model.toml: what a person says of a model. Each field is explained in `ModelManifest`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    title: str
    author: str
    model: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*:[A-Za-z][A-Za-z0-9_]*$")]
    """Where the class is, "package:Class"."""
    columns: tuple[str, ...] = Field(min_length=1)
    outputs: str
    privacy: PrivacySettings

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read model.toml. Raises PackingError naming every problem."""
        try:
            return cls.model_validate(parse_toml(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise PackingError(f"there is no {path}; it says what the model is, see docs/model-packages.md") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PackingError(f"{path} is not valid TOML: {error}; correct that line") from error
        except ValidationError as error:
            raise PackingError(f"{path} describes no model:{_problems(error)}") from error


def pack(folder: Path, author: Identity, wheel: bytes | None = None) -> ModelPackage:
    """The signed package of a folder; of `wheel`, if another tool built it of that folder's package. Loads torch.

    The class is imported once, to see that it is a model of that name and to write down what it reports in each round.
    Raises PackingError or WheelError.
    """
    said = Description.read(folder / DESCRIPTION_FILE)
    module, _, model_class = said.model.partition(":")
    own = _package_files(folder / module, module)
    built = wheel or build_wheel(said, own)
    manifest = _manifest(said, own, author, built)
    check_free_names(manifest)
    files = checked_files(built, manifest)
    with unpacked(files, module):
        metrics = _round_metrics(module, model_class, said.name)
    stated = said.privacy.model_copy(update={"round_metrics": metrics})
    return ModelPackage.sign(manifest.model_copy(update={"privacy": stated}), built, author)


def build_wheel(said: Description, own: Mapping[str, bytes]) -> bytes:
    """A pure-Python wheel of a package's files: the same files give the same bytes."""
    module = said.model.partition(":")[0]
    information = f"{module}-{said.version}.dist-info"
    files = {
        **own,
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {module}\nVersion: {said.version}\n".encode(),
        f"{information}/WHEEL": b"Wheel-Version: 1.0\nGenerator: dure\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{information}/entry_points.txt": f"[{GROUP}]\n{said.name} = {said.model}\n".encode(),
    }
    record = "".join(f"{path},sha256={_urlsafe(content)},{len(content)}\n" for path, content in sorted(files.items()))
    files[f"{information}/RECORD"] = f"{record}{information}/RECORD,,\n".encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in sorted(files.items()):
            entry = zipfile.ZipInfo(path, _LONG_AGO)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
            archive.writestr(entry, content)
    return packed.getvalue()


def _package_files(folder: Path, module: str) -> dict[str, bytes]:
    if not (folder / "__init__.py").is_file():
        raise PackingError(f"{DESCRIPTION_FILE} names the package {module!r}, and there is no {folder / '__init__.py'}")
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"{module}/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in found}


def _manifest(said: Description, own: Mapping[str, bytes], author: Identity, wheel: bytes) -> ModelManifest:
    module, _, model_class = said.model.partition(":")
    try:
        return ModelManifest(
            name=said.name,
            version=said.version,
            title=said.title,
            author=said.author,
            author_key=author.public_bytes.hex(),
            module=module,
            model_class=model_class,
            wheel=hashlib.sha256(wheel).hexdigest(),
            model_digest=digest_of(said.name, sources_of(own, module)),
            dure_version=version("dure"),
            columns=said.columns,
            outputs=said.outputs,
            privacy=said.privacy,
        )
    except ValidationError as error:
        raise PackingError(f"{DESCRIPTION_FILE} does not make a manifest:{_problems(error)}") from error


def _round_metrics(module: str, model_class: str, name: str) -> tuple[str, ...]:
    from dure_models.interface import Model  # noqa: PLC0415  # torch

    try:
        found = getattr(importlib.import_module(module), model_class, None)
    except Exception as error:
        raise PackingError(f"the package {module!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Model)):
        raise PackingError(f"{module}:{model_class} is no dure_models.interface.Model")
    if found.name != name:
        raise PackingError(f"{module}:{model_class} calls itself {found.name!r}, {DESCRIPTION_FILE} says {name!r}")
    return tuple(metric.name for metric in found.round_metrics)


def _problems(error: ValidationError) -> str:
    return "".join(f"\n  - {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))


def _urlsafe(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
