"""The folder through which arrays pass between the agent and its trainer: raw little-endian files, named by the agent.

The agent treats what it finds there as a stranger's: it follows no symbolic link, opens no pipe and takes nothing of
another size than it expects.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dure_client.trees import empty, remove_tree
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
            remove_tree(path)

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
            remove_tree(path)

    def clear(self) -> None:
        """Remove all that a dead agent or a trainer left behind. Called while no trainer runs.

        What cannot be removed is in nobody's way.
        """
        with suppress(OSError):
            empty(self._folder)


def _open_warily(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
