"""The ledger's file: on disk before anything leaves, whole after crashes, and any tampering located."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dure_client.ledger import (
    Ledger,
    head_file,
    read_records,
    totals,
    verify_file,
)
from dure_protocols.identity import Identity
from dure_protocols.ledger import Entry, LedgerError, RecordKind

OWN = Identity.from_seed(b"\x01" * 32)
OTHER = Identity.from_seed(b"\x02" * 32)


def entry(number: int, kind: RecordKind = RecordKind.JOIN, job: str = "job-1", size: int = 0) -> Entry:
    digest = hashlib.sha256(number.to_bytes(8, "big")).digest()
    return Entry(kind, size or 1 << number, digest, job, round=number, message_id=f"m{number}")


def clock() -> datetime:
    return datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with five records; record i has 2**i bytes."""
    file = tmp_path / "ledger" / "ledger.jsonl"
    with Ledger(file, OWN, clock) as ledger:
        for number in range(1, 6):
            ledger.record(entry(number))
    return file


def test_a_ledger_goes_on_where_it_ended_and_is_private(path: Path) -> None:
    with Ledger(path, OWN, clock) as ledger:
        assert ledger.record(entry(6)).number == 6
    verified = verify_file(path, OWN.public_bytes)
    assert (verified.head.number, verified.sent_bytes) == (6, 126)
    assert path.stat().st_mode & 0o777 == 0o600
    assert head_file(path).stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def _lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    return apply


def _sign_again(path: Path) -> None:
    records = list(read_records(path))
    path.unlink()
    head_file(path).unlink()
    with Ledger(path, OTHER, clock) as ledger:
        for record in records:
            ledger.record(record.entry)


@pytest.mark.parametrize(
    ("tamper", "position"),
    [
        pytest.param(_lines(lambda x: [*x[:2], x[2].replace(b"m3", b"m4"), *x[3:]]), 3, id="a changed byte"),
        pytest.param(_lines(lambda x: [*x[:2], *x[3:]]), 3, id="a deleted line"),
        pytest.param(_lines(lambda x: [x[0], x[2], x[1], *x[3:]]), 2, id="swapped lines"),
        pytest.param(_lines(lambda x: x[:4]), 5, id="the last line cut off"),
        pytest.param(_lines(lambda x: []), 1, id="emptied"),
        pytest.param(Path.unlink, 1, id="deleted whole"),
        pytest.param(_lines(lambda x: [*x[:4], x[4][:-30]]), 5, id="a torn last line"),
        pytest.param(_lines(lambda x: [*x[:3], b"\n", *x[3:]]), 4, id="an empty line between"),
    ],
)
def test_tampering_is_located(path: Path, tamper: Callable[[Path], None], position: int) -> None:
    tamper(path)
    with pytest.raises(LedgerError) as caught:
        verify_file(path, OWN.public_bytes)
    assert caught.value.position == position


def test_a_ledger_made_anew_with_another_key_is_found(path: Path) -> None:
    _sign_again(path)
    with pytest.raises(LedgerError):
        verify_file(path, OWN.public_bytes)
    head_file(path).unlink()
    with pytest.raises(LedgerError) as caught:
        verify_file(path, OWN.public_bytes)
    assert caught.value.position == 1


def test_a_torn_last_line_is_removed_and_that_is_recorded(path: Path) -> None:
    torn = path.read_bytes().splitlines()[0][:100]
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(torn)
    with Ledger(path, OWN, clock) as ledger:
        ledger.record(entry(6))
    repair = list(read_records(path))[5]
    assert repair.entry.kind is RecordKind.REPAIR
    assert (repair.entry.size_bytes, repair.entry.offset_bytes) == (len(torn), size)
    assert repair.entry.sha256 == hashlib.sha256(torn).digest()
    assert verify_file(path, OWN.public_bytes).sent_bytes == 126


def test_a_process_killed_while_it_records_leaves_a_ledger_that_holds(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    program = f"""
import hashlib, sys
from pathlib import Path
from dure_client.ledger import Ledger
from dure_protocols.identity import Identity
from dure_protocols.ledger import Entry, RecordKind
with Ledger(Path({str(path)!r}), Identity.from_seed(b"\\x01" * 32)) as ledger:
    while True:
        record = ledger.record(Entry(RecordKind.JOIN, 1, hashlib.sha256(b"").digest()))
        print(record.number, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    said += [int(line) for line in process.stdout.read().split()]
    process.wait()
    process.stdout.close()
    with Ledger(path, OWN) as ledger:
        assert ledger.head.number >= said[-1], "what was said to be recorded is on disk"
    verify_file(path, OWN.public_bytes)


@pytest.mark.parametrize(
    "tamper",
    [
        pytest.param(_lines(lambda x: x[:3]), id="a cut end"),
        pytest.param(_lines(lambda x: [*x[:4], x[4].replace(b"m5", b"m6")]), id="a changed last record"),
        pytest.param(_sign_again, id="another key"),
        pytest.param(lambda path: head_file(path).write_bytes(b"{}"), id="a head that is none"),
    ],
)
def test_a_ledger_that_does_not_hold_is_not_gone_on_with(path: Path, tamper: Callable[[Path], None]) -> None:
    tamper(path)
    with pytest.raises(LedgerError):
        Ledger(path, OWN, clock)


def test_a_head_that_lags_behind_after_a_power_cut_is_no_fault(path: Path) -> None:
    older = head_file(path).read_bytes()
    with Ledger(path, OWN, clock) as ledger:
        ledger.record(entry(6))
    head_file(path).write_bytes(older)
    assert verify_file(path, OWN.public_bytes).head.number == 6
    with Ledger(path, OWN, clock) as ledger:
        assert ledger.record(entry(7)).number == 7


def test_there_is_one_writer(path: Path) -> None:
    with Ledger(path, OWN, clock), pytest.raises(LedgerError, match="stop the agent"):
        Ledger(path, OWN, clock)
    with Ledger(path, OWN, clock) as ledger:
        ledger.close()
        with pytest.raises(LedgerError, match="closed"):
            ledger.record(entry(6))


def test_threads_share_one_ledger(path: Path) -> None:
    with Ledger(path, OWN, clock) as ledger:
        threads = [threading.Thread(target=lambda: [ledger.record(entry(1)) for _ in range(25)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert verify_file(path, OWN.public_bytes).head.number == 105


def test_what_cannot_be_written_must_not_leave(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(path, OWN, clock)
    before = path.read_bytes()
    with pytest.MonkeyPatch.context() as full_disk:
        really_write = os.write
        # The disk takes a part of the line, then is full.
        calls: list[int] = []

        def write(descriptor: int, data: bytes) -> int:
            if calls:
                raise OSError(28, "No space left on device")
            calls.append(1)
            return really_write(descriptor, data[:10])

        full_disk.setattr("os.write", write)
        with pytest.raises(LedgerError, match="nothing may leave"):
            ledger.record(entry(6))
    assert path.read_bytes() == before
    assert ledger.record(entry(6)).number == 6, "with room again, it goes on"
    ledger.close()
    verify_file(path, OWN.public_bytes)


def test_totals_by_kind_job_and_round(path: Path) -> None:
    with Ledger(path, OWN, clock) as ledger:
        ledger.record(entry(7, RecordKind.BLOB, "job-2", size=1000))
        ledger.record(entry(7, RecordKind.NOT_SENT, "job-2", size=400))
        ledger.record(entry(8, RecordKind.ENROLMENT, "", size=5))
    found = totals(read_records(path))
    assert (found.num_records, found.sent_bytes) == (8, 62 + 600 + 5)
    assert found.bytes_by_kind[RecordKind.JOIN] == 62
    assert found.bytes_by_job == {"job-1": 62, "job-2": 600}
    assert found.bytes_by_round["job-1", 3] == 8
