"""Packages for tests: the logit model packed, and packed again with other files, other words or another key."""

import hashlib
import io
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from dure_lab.packing import pack
from dure_models.digest import digest_of
from dure_protocols.identity import Identity
from dure_protocols.model_package import ModelManifest, ModelPackage, PrivacySettings

LOGIT = Path(__file__).parent / "logit"
AUTHOR, STRANGER = (Identity.from_seed(bytes([n]) * 32) for n in (71, 72))
SOURCES: Mapping[str, bytes] = {"pump_model/__init__.py": b"class Pump:\n    pass\n"}
INFORMATION = "pump_model-1.0.dist-info"


def logit(
    folder: Path, *, version: str = "1.0", author: Identity = AUTHOR, change: Callable[[str], str] = str
) -> ModelPackage:
    """The logit model, packed by the product's own tool; `change` edits the source of its class."""
    place = folder / f"logit-{version}"
    shutil.copytree(LOGIT, place, ignore=shutil.ignore_patterns("__pycache__"))
    said, source = place / "model.toml", place / "logit_model" / "model.py"
    said.write_text(said.read_text().replace('version = "1.0"', f'version = "{version}"'))
    source.write_text(change(source.read_text()))
    return pack(place, author)


def pump(
    changes: Mapping[str, bytes | None] | None = None, *, author: Identity = AUTHOR, **words: object
) -> ModelPackage:
    """A small package that nobody runs. changes: of the wheel's files, None leaves one out; words: of the manifest."""
    return signed(zipped({k: v for k, v in {**files(), **(changes or {})}.items() if v is not None}), author, **words)


def files() -> dict[str, bytes]:
    """The files of its wheel."""
    return {
        **SOURCES,
        f"{INFORMATION}/METADATA": b"Metadata-Version: 2.1\nName: pump-model\nVersion: 1.0\nRequires-Dist: numpy>=1\n",
        f"{INFORMATION}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{INFORMATION}/entry_points.txt": b"[dure.models]\npump = pump_model:Pump\n",
        f"{INFORMATION}/RECORD": b"",
    }


def zipped(contents: Mapping[str, bytes]) -> bytes:
    """A wheel of these files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in contents.items():
            archive.writestr(zipfile.ZipInfo(path), content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def signed(wheel: bytes, author: Identity = AUTHOR, **words: object) -> ModelPackage:
    """A wheel under a manifest that its author signed; the model digest is of the files that the wheel has."""
    return ModelPackage.sign(manifest_of(wheel, author, **words), wheel, author)


def manifest_of(wheel: bytes, author: Identity = AUTHOR, **words: object) -> ModelManifest:
    """The manifest of the pump package, with other words where they are given."""
    fields: dict[str, object] = {
        "format": "dure-model-1",
        "name": "pump",
        "version": "1.0",
        "title": "Pumps",
        "author": "Valley Institute of Technology",
        "author_key": author.public_bytes.hex(),
        "module": "pump_model",
        "model_class": "Pump",
        "wheel": hashlib.sha256(wheel).hexdigest(),
        "model_digest": digest_of(str(words.get("name", "pump")), _sources(wheel)),
        "dure_version": "0.1.0",
        "columns": ("flow",),
        "outputs": "cycles until the pump fails",
        "privacy": PrivacySettings(statistics="none", round_metrics=("train_loss",)),
    }
    return ModelManifest.model_validate({**fields, **words})


def _sources(wheel: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            return {name: archive.read(name) for name in archive.namelist() if name.startswith("pump_model/")}
    except zipfile.BadZipFile:
        return {}
