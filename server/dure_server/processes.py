"""Which processes the server has, told by their supervisor in a file, and what each uses, as the kernel counts it.

The supervisor answers to nobody: it has no port and no thread but the one that keeps the others alive. So it writes
down what it knows, and whoever is scraped reads that.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from dure_server.files import write_private

logger = logging.getLogger(__name__)

_PROC = Path("/proc")


@dataclass(frozen=True)
class RunningProcess:
    """A process that is kept alive. name: supervisor, link, console, coordinator; pid: None while it is down."""

    name: str
    job: str
    pid: int | None
    starts: int


_TOLD = TypeAdapter(list[RunningProcess])


@dataclass(frozen=True)
class Usage:
    """What a process uses: resident memory, processor time since it began, open files and connections."""

    resident_bytes: int
    cpu_seconds: float
    open_files: int


class RunningFile:
    """The supervisor's side: writes the file when something has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: Sequence[RunningProcess] = ()
        self._is_told = False

    def write(self, processes: Sequence[RunningProcess]) -> None:
        """Tell which processes there are. A full disk is no reason to stop them: then it is tried again."""
        if processes == self._written:
            return
        try:
            write_private(self._path, json.dumps([asdict(each) for each in processes]).encode())
        except OSError as error:
            if not self._is_told:
                logger.warning("%s cannot be written (%s), so /metrics lacks the processes", self._path, error.strerror)
            self._is_told = True
        else:
            self._written, self._is_told = processes, False

    def remove(self) -> None:
        """No process runs any more."""
        self._path.unlink(missing_ok=True)


def read_processes(path: Path) -> list[RunningProcess]:
    """What the supervisor told last; empty where no supervisor runs."""
    try:
        return _TOLD.validate_json(path.read_bytes(), strict=True)
    except (FileNotFoundError, ValidationError):
        return []


def usage_of(pid: int) -> Usage | None:
    """What a process of this user uses. None where the kernel does not say: it is gone, or this is not Linux."""
    folder = _PROC / str(pid)
    try:
        # After the last ")": the program's name may hold anything. utime and stime are the 12th and 13th from there.
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        resident_pages = int((folder / "statm").read_text().split()[1])
        open_files = sum(1 for _ in (folder / "fd").iterdir())
    except (OSError, IndexError, ValueError):
        return None
    return Usage(resident_pages * os.sysconf("SC_PAGE_SIZE"), ticks / os.sysconf("SC_CLK_TCK"), open_files)
