"""One folder for the files that file decoders read; it goes when the process ends."""

import tempfile
from functools import cache
from pathlib import Path

_MEMORY = Path("/dev/shm")


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """In memory where the machine offers that: some decoders flush what they read to disk."""
    where = _MEMORY if _MEMORY.is_dir() else None
    return tempfile.TemporaryDirectory(prefix="dure-fuzz-", dir=where, ignore_cleanup_errors=True)


def scratch(name: str) -> Path:
    """A folder of this name in it."""
    folder = Path(_folder().name) / name
    folder.mkdir(exist_ok=True)
    return folder
