"""The lock by which one process keeps a file to itself, on POSIX and on Windows."""

import os
import sys

_BEYOND_EVERY_END = 1 << 42  # Windows keeps others from reading what is locked: a byte that no ledger will have


def lock(descriptor: int) -> None:
    """Take the lock of an open file, until the descriptor is closed or the process ends. Others may still read it.

    The ledger calls it. Raises BlockingIOError if another process has the lock.
    """
    # Imported here: each is on its own systems only, and commands must start on all.
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415

        os.lseek(descriptor, _BEYOND_EVERY_END, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(error.errno, "another process has the lock") from error
    else:
        import fcntl  # noqa: PLC0415

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
