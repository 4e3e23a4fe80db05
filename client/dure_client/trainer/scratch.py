"""The folder through which arrays pass between the agent and its trainer: raw little-endian files, named by the agent.

The agent treats what it finds there as a stranger's: it follows no symbolic link, opens no pipe and takes nothing of
another size than it expects.
"""

import itertools
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dure_protocols.errors import MisuseError

Scalar = TypeVar("Scalar", bound=np.generic)

FLOAT32 = np.dtype("<f4").type
FLOAT64 = np.dtype("<f8").type
SOCKET_FOLDER = "sock-"  # begins the name of the folder that a running trainer's socket is in
_ENDINGS = {4: "f32", 8: "f64"}


class ScratchError(Exception):
    """A file of the scratch folder is missing, no regular file, or of the wrong size."""


class Scratch:
    """The agent's side of the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def new_name(self, scalar: type[np.generic]) -> str:
        """A name that nobody has used, for the trainer to write an array to."""
        return f"a-{secrets.token_hex(8)}.{_ENDINGS[np.dtype(scalar).itemsize]}"

    @contextmanager
    def lent(self, array: NDArray[Scalar], scalar: type[Scalar], length: int) -> Iterator[str]:
        """An array as a file while the block runs; the name under which the trainer finds it.

        Raises MisuseError if the shape is not (length,).
        """
        if array.shape != (length,):
            raise MisuseError(f"the trainer takes an array of shape ({length},), one of {array.shape} came")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / self.new_name(scalar)
        try:
            array.astype(scalar, copy=False).tofile(path)
            yield path.name
        finally:
            _remove(path)

    def take(self, name: str, scalar: type[Scalar], length: int) -> NDArray[Scalar]:
        """Read an array (length,) that the trainer wrote, and remove the file. Raises ScratchError.

        Read and not mapped: a trainer that cut the file afterwards would take the agent down with it. Nor does opening
        a pipe in the file's place wait for a writer.
        """
        path = self._folder / name
        try:
            with open(path, "rb", opener=_open_warily) as file:  # Path.open takes no opener
                status, wanted = os.fstat(file.fileno()), length * np.dtype(scalar).itemsize
                if not stat.S_ISREG(status.st_mode) or status.st_size != wanted:
                    raise ScratchError(name)
                array = np.fromfile(file, scalar, length)
                if array.size != length:
                    raise ScratchError(name)
                return array
        except OSError as error:
            raise ScratchError(name) from error
        finally:
            _remove(path)

    def clear(self) -> None:
        """Remove all that a dead agent or a trainer left behind. Called while no trainer runs.

        A folder's folders are moved up before it goes: a trainer may have nested them deeper than any path reaches.
        What cannot be removed is in nobody's way.
        """
        number = itertools.count()
        with suppress(OSError):
            self._folder.chmod(0o700)
            while entries := list(self._folder.iterdir()):
                for entry in entries:
                    for inner in _opened(entry) if _is_folder(entry) else ():
                        if _is_folder(inner):
                            inner.chmod(0o700)
                            inner.rename(self._folder / f"{secrets.token_hex(8)}-{next(number)}")
                        else:
                            inner.unlink()
                    entry.rmdir() if _is_folder(entry) else entry.unlink()


def _open_warily(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _opened(folder: Path) -> list[Path]:
    """What is in a folder whose mode a trainer may have changed."""
    folder.chmod(0o700)
    return list(folder.iterdir())


def _remove(path: Path) -> None:
    """Remove a file, or what a trainer made in its place; what cannot be removed is in nobody's way."""
    with suppress(OSError):
        if _is_folder(path):
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
