"""The files of this very Python: what a process that is started with the same interpreter has to read."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

_SYSTEM_PREFIXES = (Path("/usr"), Path("/usr/local"))  # whose libraries are granted in any case, and nothing else


@functools.cache
def python_files() -> tuple[Path, ...]:
    """Interpreter, its prefix and every folder that it imports from, as absolute paths, none inside another.

    Asked of a fresh interpreter, without the environment and the working folder: those of this process may lead to
    places that the trainer has no business in.
    """
    question = [sys.executable, "-E", "-P", "-c", "import json, sys; print(json.dumps(sys.path))"]
    answer = subprocess.run(question, check=True, capture_output=True, cwd="/")
    imported = [Path(entry) for entry in json.loads(answer.stdout) if entry]
    prefixes = [Path(sys.prefix), Path(sys.base_prefix)]
    folders = [path for path in (*prefixes, *imported) if path not in _SYSTEM_PREFIXES and path.exists()]
    return outermost([*folders, *_interpreter()])


def _interpreter() -> list[Path]:
    """The interpreter's file, and the symbolic links that lead to it."""
    path, hops = Path(sys.executable), []
    while path.is_symlink():
        hops.append(path)
        path = path.parent / path.readlink()
        path = Path(os.path.normpath(path))
    return [*hops, path]


def outermost(paths: list[Path]) -> tuple[Path, ...]:
    """The paths without those that lie inside another; order kept."""
    unique = list(dict.fromkeys(paths))
    return tuple(path for path in unique if not any(other in path.parents for other in unique))
