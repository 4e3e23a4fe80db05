"""The vector files: where they lie and how a case names bytes of another."""

import json
from pathlib import Path

FOLDER = Path(__file__).parent.parent
NAMES = [
    "digests",
    "messages",
    "encapsulations",
    "keys",
    "masks",
    "sharing",
    "codec",
    "tags",
    "retry_round",
    "threshold_round",
    "refusals",
    "model",
]


_loaded = {}


def load(name):
    """A file's content. Callers must not change it."""
    if name not in _loaded:
        remember(name, json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
    return _loaded[name]


def remember(name, content):
    """Take this for a file's content from now on: for who makes vectors."""
    _loaded[name] = content


def case_of(name, title):
    """A case's inputs and what is expected of it."""
    return next(case for case in load(name)["cases"] if case["name"] == title)


def bytes_of(value, known):
    """Bytes written as hex, or as a list of hex and of pieces [of, start, end] of bytes that are known by name."""
    if isinstance(value, str):
        return bytes.fromhex(value)
    pieces = (bytes.fromhex(part) if isinstance(part, str) else known[part[0]][part[1] : part[2]] for part in value)
    return b"".join(pieces)
