"""The ledger's file: one JSON line a record, written and flushed to disk *before* its bytes leave the agent.

    dure_protocols.ledger.LedgerError     it does not hold, or cannot be written; then nothing leaves

Beside `ledger.jsonl` lies `head.json`, the firm's signed statement of where the ledger ends. It is written after the
record and not flushed: after a power cut it may lag behind, which is harmless, but it is never ahead, so a ledger that
is shorter than its head was cut by somebody.
"""

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from dure_client.file_lock import lock
from dure_protocols import ledger as chain
from dure_protocols.errors import DureError, MessageError
from dure_protocols.identity import Identity
from dure_protocols.ledger import Entry, Head, LedgerError, LedgerRecord, RecordKind

_HEAD_BYTES = 512  # fixed, so that one small write in place replaces the head whole

Clock = Callable[[], datetime]


def system_clock() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)


class Ledger:
    """The one writer of a firm's ledger. Opening it takes a lock that other processes respect; `close` gives it back.

    Safe to use from several threads. Implements what the link asks of an egress recorder.
    """

    def __init__(self, path: Path, identity: Identity, clock: Clock = system_clock) -> None:
        """Open or begin the ledger at `path`; a line torn by a crash is removed, and that is recorded.

        Raises LedgerError if another process writes it, if its end was cut, or if its last record is not this firm's.
        """
        self._path = path
        self._identity = identity
        self._clock = clock
        self._mutex = threading.Lock()
        self._is_broken = False
        self._is_closed = False
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            self._lock()
            torn = self._cut_torn_line()
            self._head = self._find_head()
            self._head_file = os.open(head_file(path), os.O_RDWR | os.O_CREAT, 0o600)
        except BaseException:
            os.close(self._file)
            raise
        if torn:
            digest = hashlib.sha256(torn).digest()
            self.record(Entry(RecordKind.REPAIR, len(torn), digest, offset_bytes=self._size))

    def record(self, entry: Entry) -> LedgerRecord:
        """Append one record; when this returns it is on disk, and only then may the bytes leave.

        Raises LedgerError if it could not be written: then the caller MUST NOT send.
        """
        with self._mutex:
            if self._is_broken or self._is_closed:
                state = "closed" if self._is_closed else "in doubt after a failed write"
                raise LedgerError(0, f"{self._path} is {state}, so nothing may leave: start the agent again")
            time = self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            record = chain.append(
                entry, number=self._head.number + 1, time=time, previous=self._head.hash, identity=self._identity
            )
            self._write(record.to_line())
            self._head = Head(record.number, record.hash)
            self._write_head()
            return record

    @property
    def head(self) -> Head:
        """Where the ledger ends now."""
        return self._head

    def close(self) -> None:
        """Give the ledger back to other processes. Calling it again does nothing."""
        with self._mutex:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._head_file)
                os.close(self._file)  # gives up the lock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            lock(self._file)
        except BlockingIOError as error:
            raise LedgerError(
                0, f"another process writes {self._path}: stop the agent that runs on this home, then try again"
            ) from error

    def _cut_torn_line(self) -> bytes:
        """Remove and return what stands behind the last newline. Its payload never left: the write had not returned."""
        self._size = os.fstat(self._file).st_size
        tail = _tail(self._file, self._size)
        torn = tail[tail.rfind(b"\n") + 1 :]
        if torn:
            self._size -= len(torn)
            os.ftruncate(self._file, self._size)
            os.fsync(self._file)
        return torn

    def _find_head(self) -> Head:
        """The last record's place, checked against the firm's key and the noted head."""
        public_key = self._identity.public_bytes
        noted = read_head(self._path, public_key)
        lines = _tail(self._file, self._size).splitlines(keepends=True)
        if not lines:
            head = Head(0, chain.genesis(public_key))
        else:
            record = self._last_record(lines[-1])
            head = Head(record.number, record.hash)
        if noted is not None and noted.number > head.number:
            raise LedgerError(
                head.number + 1,
                f"{self._path} ends with record {head.number} but once had {noted.number}: its end was cut off. "
                f"Restore it from a backup; to begin a new ledger, move the folder {self._path.parent} away",
            )
        if noted is not None and noted.number == head.number and noted.hash != head.hash:
            raise LedgerError(
                head.number, f"the last record of {self._path} is not the one noted in head.json: restore a backup"
            )
        return head

    def _last_record(self, line: bytes) -> LedgerRecord:
        try:
            record = LedgerRecord.from_line(line)
            # Only the last record is checked here, so that opening is fast; `verify` walks the whole chain.
            chain.verify_record(record, self._identity.public_bytes)
        except (MessageError, LedgerError) as error:
            raise LedgerError(
                0,
                f"the last line of {self._path} is no record of this firm: run `dure-agent ledger verify`, "
                f"then restore the ledger from a backup or move the folder {self._path.parent} away",
            ) from error
        return record

    def _write(self, line: bytes) -> None:
        try:
            _write_whole(self._file, line)
        except OSError as error:
            self._is_broken = not self._take_back()
            raise LedgerError(
                0, f"{self._path} cannot be written ({error}), so nothing may leave: free disk space, or mend the disk"
            ) from error
        self._size += len(line)

    def _take_back(self) -> bool:
        try:
            os.ftruncate(self._file, self._size)
            os.fsync(self._file)
        except OSError:
            return False
        return True

    def _write_head(self) -> None:
        signature = chain.sign_head(self._head, self._identity)
        os.pwrite(self._head_file, _head_json(self._head, signature).ljust(_HEAD_BYTES), 0)


def head_file(path: Path) -> Path:
    """The file beside a ledger that notes where it ends."""
    return path.with_name("head.json")


def read_head(path: Path, public_key: bytes) -> Head | None:
    """The head noted beside a ledger, or None if there is none. Raises LedgerError if it is not this firm's."""
    try:
        content = head_file(path).read_bytes()
    except FileNotFoundError:
        return None
    if not content.strip():
        return None  # made, but the process ended before the first record
    return _parse_head(content, public_key)


def read_records(path: Path) -> Iterator[LedgerRecord]:
    """The records of a ledger file in order, unverified. Raises LedgerError naming the line that is none."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        yield from _decoded(lines_of(file))


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, none of them longer than what no record is any more: a file may be one line and huge."""
    return iter(lambda: file.readline(chain.MAX_LINE_BYTES + 1), b"")


def _decoded(lines: Iterable[bytes]) -> Iterator[LedgerRecord]:
    for position, line in enumerate(lines, start=1):
        if not line.endswith(b"\n") and len(line) <= chain.MAX_LINE_BYTES:
            raise LedgerError(
                position,
                f"line {position} is torn: a crash or a cut ended the file in mid-line; "
                "the agent repairs and records that at its next start",
                line=position,
            )
        try:
            yield LedgerRecord.from_line(line)
        except MessageError as error:
            raise LedgerError(position, f"line {position} was changed: {error}", line=position) from error


@dataclass(frozen=True)
class Verified:
    """A ledger that holds: where it ends, and the bytes that left in all."""

    head: Head
    sent_bytes: int


def verify_file(path: Path, public_key: bytes) -> Verified:
    """Check every record of a ledger file and that it reaches its noted head. Raises LedgerError.

    The caller MUST trust `public_key`: at the firm it comes from the identity's own key file.
    """
    totals = Totals()
    head = chain.verify_chain(totals.passing(read_records(path)), public_key, head=read_head(path, public_key))
    return Verified(head, totals.sent_bytes)


@dataclass
class Totals:
    """What left, summed: bytes and number of records by kind, by job and by (job, round)."""

    num_records: int = 0
    sent_bytes: int = 0
    num_by_kind: Counter[RecordKind] = field(default_factory=Counter)
    bytes_by_kind: Counter[RecordKind] = field(default_factory=Counter)
    bytes_by_job: Counter[str] = field(default_factory=Counter)
    bytes_by_round: Counter[tuple[str, int]] = field(default_factory=Counter)

    def add(self, record: LedgerRecord) -> None:
        """Count one record."""
        entry, size = record.entry, chain.signed_size(record.entry)
        self.num_records += 1
        self.sent_bytes += size
        self.num_by_kind[entry.kind] += 1
        self.bytes_by_kind[entry.kind] += size
        if entry.job:
            self.bytes_by_job[entry.job] += size
            self.bytes_by_round[entry.job, entry.round] += size

    def passing(self, records: Iterable[LedgerRecord]) -> Iterator[LedgerRecord]:
        """The same records, counted as they pass."""
        for record in records:
            self.add(record)
            yield record


def totals(records: Iterable[LedgerRecord]) -> Totals:
    """The sums over records."""
    result = Totals()
    for record in records:
        result.add(record)
    return result


def _head_json(head: Head, signature: bytes) -> bytes:
    fields = {"number": head.number, "hash": head.hash.hex(), "signature": signature.hex()}
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _parse_head(content: bytes, public_key: bytes) -> Head:
    try:
        fields = json.loads(content)
        head = Head(int(fields["number"]), bytes.fromhex(fields["hash"]))
        signature = bytes.fromhex(fields["signature"])
        chain.verify_head(head, signature, public_key)
    except (ValueError, OverflowError, KeyError, TypeError, RecursionError, DureError) as error:
        raise LedgerError(0, "the ledger's head (head.json) was changed: it is not signed by this firm") from error
    return head


def _tail(descriptor: int, size: int) -> bytes:
    length = min(size, 2 * chain.MAX_LINE_BYTES)
    return os.pread(descriptor, length, size - length)


def _write_whole(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]
    # fdatasync also writes the file's new length; macOS has only fsync.
    getattr(os, "fdatasync", os.fsync)(descriptor)
