"""What a model package's wheel may hold: one pure-Python package and its metadata. The check is pure and runs nothing.

A wheel is unpacked by this check alone: no installer, no build, no script. What it lets in can only be imported, from
below one folder, and can be read as text by whoever approves it.
"""

import configparser
import io
import re
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from email import message_from_string
from email.errors import MessageError as EmailError

from dure_models.digest import digest_of
from dure_models.errors import ModelsError
from dure_models.registry import GROUP
from dure_protocols.model_package import ModelManifest

MAX_FILES = 500
MAX_PATH_CHARACTERS = 200
MAX_UNPACKED_BYTES = 64 << 20
MAX_METADATA_BYTES = 256 << 10
PROVIDED = frozenset({"dure", "numpy", "polars", "pydantic", "torch"})
"""What a model may import beside Python's own library: it is there wherever a trainer runs."""

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
_DIST_INFO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*-[0-9A-Za-z.+!]+\.dist-info")
_REQUIRED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NATIVE = (".so", ".pyd", ".dll", ".dylib", ".a", ".o", ".lib", ".exe", ".wasm")
_NATIVE_BEGINNINGS = (b"\x7fELF", b"MZ", b"\xfe\xed\xfa", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
_NEVER = (".pth", ".pyc", ".pyo", ".egg", ".whl", ".zip", ".tar", ".gz")
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)


class WheelError(ModelsError):
    """A wheel holds what a model package must not, or is not what its manifest says."""


def checked_files(wheel: bytes, manifest: ModelManifest, *, allow_native_code: bool = False) -> dict[str, bytes]:
    """The files of a package's wheel, each by its path. Raises WheelError.

    (1) It is a zip file of plain files, not many, not large once unpacked, each with a short plain path of its own.
    (2) All lie in the folder of the manifest's module or in one .dist-info: no .data, no scripts, no other module.
    (3) No path configuration, no byte-code, no archive, and no native code unless `allow_native_code`.
    (4) Python sources are UTF-8, so that what is read is what runs.
    (5) It offers the manifest's model by its one entry point, and nothing else by any.
    (6) It requires nothing that is not there anyway.
    (7) The code has the manifest's model digest: with this version of Dure, it is what jobs will name.
    The wheel's RECORD (in its .dist-info) is not among them: nothing here checks it or needs it, so no byte of it is
    shown, compared or unpacked.
    The caller MUST have checked the manifest's signature and the wheel's SHA-256 (`ModelPackage.from_bytes` does).
    """
    files = dict(_unzipped(wheel))  # (1)
    if inside := next((path for path in files if any(path.startswith(f"{other}/") for other in files)), None):
        raise WheelError(f"the wheel holds {inside!r} below a file of that name")
    metadata = _dist_info(files, manifest.module)  # (2)
    for path, content in files.items():  # (3), (4)
        _check_kind(path, content, allow_native_code=allow_native_code)
    _check_tags(_text(files, f"{metadata}/WHEEL"), allow_native_code=allow_native_code)
    _check_entry_points(_text(files, f"{metadata}/entry_points.txt"), manifest)  # (5)
    _check_requirements(_text(files, f"{metadata}/METADATA"))  # (6)
    came = digest_of(manifest.name, sources_of(files, manifest.module))  # (7)
    if came != manifest.model_digest:
        raise WheelError(
            f"the code of {manifest.name} {manifest.version} has the model digest {came[:16]}… here, its manifest says "
            f"{manifest.model_digest[:16]}… under Dure {manifest.dure_version}: it was packed for another version of "
            "Dure; ask its author to pack it again"
        )
    files.pop(f"{metadata}/RECORD", None)
    return files


def sources_of(files: Mapping[str, bytes], module: str) -> dict[str, bytes]:
    """Of a wheel's files, those of its module: what runs and what the model digest is over."""
    return {path: content for path, content in files.items() if path.startswith(f"{module}/")}


def _unzipped(wheel: bytes) -> Iterator[tuple[str, bytes]]:
    left, seen = MAX_UNPACKED_BYTES, set()
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.filename.endswith("/")]
            if len(entries) > MAX_FILES:
                raise WheelError(f"a model's wheel has at most {MAX_FILES} files, this one {len(entries)}")
            for entry in entries:
                _check_entry(entry)
                if entry.filename.casefold() in seen:
                    raise WheelError(f"the wheel holds {entry.filename!r} twice, as some file systems see it")
                seen.add(entry.filename.casefold())
                # What an entry says of its size is not believed: one byte more than is left is asked for.
                with archive.open(entry) as file:
                    content = file.read(left + 1)
                left -= len(content)
                if left < 0:
                    raise WheelError(f"unpacked the wheel has more than {MAX_UNPACKED_BYTES} bytes; that is too large")
                yield entry.filename, content
    except _UNREADABLE as error:
        raise WheelError(
            "this is no wheel that can be read; a source distribution is never built here: ask for a wheel"
        ) from error


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
    if not all(_PART.fullmatch(part) for part in name.split("/")) or name != entry.orig_filename:
        raise WheelError(
            f"the wheel holds {name!r}: a plain path below the package was expected, of letters, digits and . _ + -"
        )
    if len(name) > MAX_PATH_CHARACTERS:
        raise WheelError(
            f"the wheel holds {name[:60]!r}…, a path of {len(name)} characters; it may have at most "
            f"{MAX_PATH_CHARACTERS}, as a file system may not take more"
        )
    if kind not in {0, stat.S_IFREG}:
        raise WheelError(f"the wheel holds {name!r}, which is a link or a device; only plain files are let in")
    if entry.flag_bits & 1 or entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise WheelError(f"{name!r} in the wheel is encrypted or packed in an unusual way; build the wheel again")


def _dist_info(files: Mapping[str, bytes], module: str) -> str:
    tops = {path.partition("/")[0] for path in files}
    others = tops - {module}
    if f"{module}/__init__.py" not in files or len(others) != 1 or not _DIST_INFO.fullmatch(found := others.pop()):
        raise WheelError(
            f"a model's wheel holds the package {module!r} and one .dist-info folder, this one "
            f"{', '.join(sorted(tops)) or 'nothing'}: other modules, .data and .pth files are never installed"
        )
    return found


def _check_kind(path: str, content: bytes, *, allow_native_code: bool) -> None:
    lower = path.lower()
    if lower.endswith(_NEVER) or "/__pycache__/" in lower:
        raise WheelError(f"the wheel holds {path!r}: byte-code, archives and .pth files are never installed")
    is_native = lower.endswith(_NATIVE) or ".so." in lower or content.startswith(_NATIVE_BEGINNINGS)
    if is_native and not allow_native_code:
        raise WheelError(
            f"the wheel holds {path!r}, native code that nobody can read; set allow_native_code in policy.toml only if "
            "you trust its author with this machine"
        )
    if lower.endswith((".py", ".pyi")):
        _check_source(path, content)


def _check_source(path: str, content: bytes) -> None:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        content.decode("utf-8")
    except (SyntaxError, UnicodeDecodeError) as error:
        raise WheelError(f"{path!r} in the wheel is not UTF-8, so it cannot be read before it runs") from error
    if encoding not in {"utf-8", "utf-8-sig"}:
        raise WheelError(f"{path!r} in the wheel declares the encoding {encoding}; only UTF-8 shows what runs")


def _text(files: Mapping[str, bytes], path: str) -> str:
    content = files.get(path, b"")
    if not content or len(content) > MAX_METADATA_BYTES:
        raise WheelError(f"{path} in the wheel is missing, empty or larger than {MAX_METADATA_BYTES} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WheelError(f"{path} in the wheel is not UTF-8") from error


def _check_tags(text: str, *, allow_native_code: bool) -> None:
    said = _headers(text, "WHEEL")
    tags = said.get("tag", [])
    is_pure = said.get("root-is-purelib") == ["true"] and all(tag.endswith("-none-any") for tag in tags) and tags
    if not is_pure and not allow_native_code:
        raise WheelError(
            f"the wheel is for {', '.join(tags) or 'no platform'}; a pure-Python wheel (py3-none-any) was expected"
        )


def _check_entry_points(text: str, manifest: ModelManifest) -> None:
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[method-assign,assignment]  # names keep their case
    try:
        parser.read_string(text)
        offered = {(group, *pair) for group in parser.sections() for pair in parser.items(group)}
    except configparser.Error as error:
        raise WheelError("entry_points.txt in the wheel cannot be read") from error
    expected = (GROUP, manifest.name, f"{manifest.module}:{manifest.model_class}")
    if offered != {expected}:
        raise WheelError(
            f"the wheel must offer {expected[1]} = {expected[2]} in the group {GROUP} and nothing else: no "
            "commands, no plug-ins, no other model"
        )


def _check_requirements(text: str) -> None:
    for required in _headers(text, "METADATA").get("requires-dist", []):
        name = _REQUIRED.match(required)
        if name is None or re.sub(r"[._-]+", "-", name[0]).lower() not in PROVIDED:
            raise WheelError(
                f"the wheel requires {required[:100]!r}; a model has {', '.join(sorted(PROVIDED))} and nothing else: "
                "nothing is installed beside it"
            )


def _headers(text: str, name: str) -> dict[str, list[str]]:
    try:
        message = message_from_string(text)
        pairs = [(key.lower(), str(value)) for key, value in message.items()]
    except (EmailError, ValueError) as error:
        raise WheelError(f"{name} in the wheel cannot be read") from error
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found
