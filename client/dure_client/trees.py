"""Removes folders that a stranger's code has filled."""

import itertools
import secrets
from contextlib import suppress
from pathlib import Path


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, whatever its modes and however deep; a file or link alone as well.

    What cannot be removed stays, and nothing is raised. Called where nobody writes there any more. shutil.rmtree would
    raise RecursionError below some thousand levels, and paths end before that.
    """
    with suppress(OSError):
        if is_folder(folder):
            empty(folder)
            folder.rmdir()
        else:
            folder.unlink(missing_ok=True)


def empty(folder: Path) -> None:
    """Remove all that is in a folder. Folders inside of folders are moved up before these go. Raises OSError."""
    number = itertools.count()
    folder.chmod(0o700)
    while entries := list(folder.iterdir()):
        for entry in entries:
            if not is_folder(entry):
                entry.unlink()
                continue
            entry.chmod(0o700)
            for inner in list(entry.iterdir()):
                if is_folder(inner):
                    inner.chmod(0o700)
                    inner.rename(folder / f"{secrets.token_hex(8)}-{next(number)}")
                else:
                    inner.unlink()
            entry.rmdir()


def is_folder(path: Path) -> bool:
    """Whether it is a folder, and no link to one."""
    return path.is_dir() and not path.is_symlink()
