"""Ends a trainer that takes more than it may of what no limit on a process counts: memory as it is, and the disk."""

import logging
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from dure_client.trainer.sandbox import Limits

_LOOK_SECONDS = 0.5
_MAX_ENTRIES = 10_000
_MAX_DEPTH = 64
_LEAST_FREE_BYTES = 4 << 30
"""A trainer ends where less is free on the disk, or less than half of what was free when it began."""
_PARENT = re.compile(rb"^PPid:\s*(\d+)$", re.MULTILINE)
_RESIDENT = re.compile(rb"^Rss(?:Anon|Shmem):\s*(\d+) kB", re.MULTILINE)

logger = logging.getLogger(__name__)


class Watched(Protocol):
    """A trainer's process."""

    @property
    def pid(self) -> int:
        """Of the process that was started; the trainer may be its child."""
        ...

    def has_ended_within(self, seconds: float) -> bool:
        """Wait for its end, so long at most. Whether it came."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


def watch(process: Watched, scratch: Path, limits: Limits) -> None:
    """Look twice a second until the process ends, or end it; also where one cannot look. In a thread of its own."""
    try:
        least_free_bytes = min(_LEAST_FREE_BYTES, shutil.disk_usage(scratch).free // 2)
        why = ""
        while not why and not process.has_ended_within(_LOOK_SECONDS):
            why = _too_much(process.pid, scratch, limits, least_free_bytes)
    except OSError as error:
        why = f"{scratch} cannot be looked at: {error}"
    if why:
        logger.warning("the trainer was ended: %s", why)
        process.kill()


def _too_much(pid: int, scratch: Path, limits: Limits, least_free_bytes: int) -> str:
    if memory_of(pid) > limits.memory_bytes:
        return "it took more memory than it may"
    # A deleted file that is still open shows in no folder, but on the disk.
    if shutil.disk_usage(scratch).free < least_free_bytes:
        return f"too little space is left on the disk of {scratch}"
    return "" if is_within(scratch, limits.scratch_bytes) else f"it wrote more than it may into {scratch}"


def memory_of(pid: int, proc: Path = Path("/proc")) -> int:
    """Bytes in memory of a process and all that it started, beside files of the disk; 0 where the system does not say.

    A limit on a process counts what is mapped for writing, and not what was written and then protected.
    """
    total, waiting = 0, [pid]
    parents: dict[int, list[int]] | None = None
    while waiting:
        number = waiting.pop()
        folder = proc / str(number)
        with suppress(OSError):  # it has ended
            total += sum(int(kilobytes) << 10 for kilobytes in _RESIDENT.findall((folder / "status").read_bytes()))
            named = list(folder.glob("task/*/children"))
            for children in named:
                waiting += [int(child) for child in children.read_bytes().split()]
            if not named:  # a kernel that does not name children: all processes are looked at
                parents = _children_by_parent(proc) if parents is None else parents
                waiting += parents.get(number, [])
    return total


def _children_by_parent(proc: Path) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for status in proc.glob("[0-9]*/status"):
        with suppress(OSError):
            if parent := _PARENT.search(status.read_bytes()):
                found.setdefault(int(parent[1]), []).append(int(status.parent.name))
    return found


def is_within(scratch: Path, most_bytes: int) -> bool:
    """Whether a scratch folder holds no more than it may, and nothing that cannot be looked into."""
    total, entries, begin = 0, 0, len(scratch.parts)
    unseen: list[OSError] = []
    for parent, folders, names in os.walk(scratch, onerror=unseen.append):
        entries += len(folders) + len(names)
        if len(Path(parent).parts) - begin > _MAX_DEPTH:
            return False
        for name in names[:_MAX_ENTRIES]:
            with suppress(OSError):  # it is gone again
                total += (Path(parent) / name).lstat().st_blocks * 512
        if total > most_bytes or entries > _MAX_ENTRIES:
            return False
    return all(isinstance(error, FileNotFoundError) for error in unseen)
