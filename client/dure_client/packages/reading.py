"""A model package as text for the people who approve it: what it says of itself, its source, what is new. Pure.

The text came from a stranger and goes to a terminal or a page: whatever would act there, turn the writing or hide is
written out.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping

from dure_protocols.identity import is_plain
from dure_protocols.model_package import ModelManifest

_MANIFEST = "manifest"


def shown(text: str) -> str:
    """Text with every acting or hidden character written as \\uXXXX; line ends and tabs stay."""
    return "".join(c if c in "\n\t" or is_plain(c) else f"\\u{ord(c):04x}" for c in text)


def sources(files: Mapping[str, bytes]) -> dict[str, str]:
    """Every file of a package in full, by its path, in their order; of one that is no text, size and SHA-256."""
    return {shown(path): _readable(files[path]) for path in sorted(files)}


def difference(
    before: ModelManifest, old: Mapping[str, bytes], after: ModelManifest, new: Mapping[str, bytes]
) -> Iterator[str]:
    """The unified difference from a package approved before, manifest first: lines without their ends.

    RECORD is left out: it lists the digests of the files that are shown.
    """
    texts = {name: {path: _readable(files[path]) for path in files} for name, files in (("old", old), ("new", new))}
    texts["old"][_MANIFEST], texts["new"][_MANIFEST] = _manifest_text(before), _manifest_text(after)
    paths = sorted(texts["old"].keys() | texts["new"].keys(), key=lambda path: (path != _MANIFEST, path))
    for path in paths:
        if not path.endswith(".dist-info/RECORD"):
            left, right = (texts[name].get(path, "").splitlines() for name in ("old", "new"))
            yield from difflib.unified_diff(left, right, f"approved/{path}", f"new/{path}", lineterm="")


def _manifest_text(manifest: ModelManifest) -> str:
    return shown(json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False))


def _readable(content: bytes) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return f"({len(content):,} bytes that are no text, SHA-256 {hashlib.sha256(content).hexdigest()})"
    return shown(text)
