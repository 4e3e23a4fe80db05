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

MAX_COMPARED_LINES = 1_500
"""Of the longer of two texts. difflib's time grows with the square of that or faster, if lines repeat: half a second at
worst for one such file, two for a package of many smaller ones, which share its square (`difference`)."""
_MANIFEST = "manifest"


class _Shown(dict[int, str]):
    """What stands for a character, by its code; filled as characters come."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        stays = character in "\n\t" or is_plain(character)
        self[code] = character if stays else f"\\u{code:04x}"
        return self[code]


_SHOWN = _Shown()


def shown(text: str) -> str:
    """Text with every acting or hidden character written as \\uXXXX; line ends and tabs stay."""
    return text.translate(_SHOWN)


def sources(files: Mapping[str, bytes]) -> dict[str, str]:
    """Every file of a package in full, by its path, in their order; of one that is no text, size and SHA-256."""
    return {shown(path): _readable(files[path]) for path in sorted(files)}


def difference(
    before: ModelManifest, old: Mapping[str, bytes], after: ModelManifest, new: Mapping[str, bytes]
) -> Iterator[str]:
    """The unified difference from a package approved before, manifest first: lines without their ends.

    Every file is in it that `sources` shows. One that would take too long to compare, in lines or because other files
    took the time, is named, and is to be read whole.
    """
    left = MAX_COMPARED_LINES**2
    texts = {name: {path: _readable(files[path]) for path in files} for name, files in (("old", old), ("new", new))}
    texts["old"][_MANIFEST], texts["new"][_MANIFEST] = _manifest_text(before), _manifest_text(after)
    paths = sorted(texts["old"].keys() | texts["new"].keys(), key=lambda path: (path != _MANIFEST, path))
    for path in paths:
        ours, theirs = (texts[name].get(path, "").splitlines() for name in ("old", "new"))
        # Equal files, and a file that is all new, take no search.
        cost = max(len(ours), len(theirs)) ** 2 if ours and theirs and ours != theirs else 0
        if cost > left:
            yield from (f"--- approved/{path}", f"+++ new/{path}")
            yield f"@@ too large to compare: read all of it ({len(ours):,} and {len(theirs):,} lines) @@"
            continue
        left -= cost
        if ours != theirs:
            yield from difflib.unified_diff(ours, theirs, f"approved/{path}", f"new/{path}", lineterm="")


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
