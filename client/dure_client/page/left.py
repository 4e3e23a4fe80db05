"""What left this firm, summed: the ledger's file, read on from where the last look ended.

A ledger has hundreds of records a job and a page is looked at often, so no record is read twice. Nothing is verified
here; that takes the whole chain and is an act of its own.
"""

import threading
from collections import deque
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dure_client.ledger import Totals
from dure_protocols.errors import MessageError
from dure_protocols.ledger import MAX_LINE_BYTES, LedgerRecord

NEWEST: Final = 50


@dataclass(frozen=True)
class Left:
    """What left. newest: the last records, newest first; problem: why the account ends before the file does, or ""."""

    totals: Totals
    newest: tuple[LedgerRecord, ...]
    problem: str


class LedgerAccount:
    """Follows one ledger file. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._path, self._mutex = path, threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._offset, self._inode = 0, 0
        self._totals, self._newest = Totals(), deque[LedgerRecord](maxlen=NEWEST)

    def read(self) -> Left:
        """The account up to the last whole line of the file."""
        with self._mutex:
            problem = self._read_on()
            return Left(deepcopy(self._totals), tuple(reversed(self._newest)), problem)

    def _read_on(self) -> str:
        try:
            state = self._path.stat()
            if state.st_ino != self._inode or state.st_size < self._offset:
                self._begin()  # another file, or a shorter one: `ledger verify` will say more
                self._inode = state.st_ino
            with self._path.open("rb") as file:
                file.seek(self._offset)
                while (line := file.readline(MAX_LINE_BYTES + 1)).endswith(b"\n"):
                    record = LedgerRecord.from_line(line)
                    self._totals.add(record)
                    self._newest.append(record)
                    self._offset += len(line)
        except FileNotFoundError:
            self._begin()
        except OSError as error:
            return f"the ledger cannot be read: {error.strerror}"
        except MessageError as error:
            return f"record {self._totals.num_records + 1} was changed: {error}"
        return ""
