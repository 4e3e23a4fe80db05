"""The ledger's chain: every way to tamper with it is found, at the record where it begins."""

import dataclasses
import hashlib
import json

import pytest

from dure_protocols import ledger
from dure_protocols.errors import MessageError, MisuseError
from dure_protocols.identity import Identity
from dure_protocols.ledger import Entry, Head, LedgerError, LedgerRecord, RecordKind

OWN = Identity.from_seed(b"\x01" * 32)
OTHER = Identity.from_seed(b"\x02" * 32)
TIME = "2026-01-31T09:30:00.000000Z"


def chain_of(count: int, identity: Identity = OWN, key: bytes | None = None) -> list[LedgerRecord]:
    """`count` records; entry i has 2**i bytes, so every subset has another sum."""
    records: list[LedgerRecord] = []
    previous = ledger.genesis(key or identity.public_bytes)
    for number in range(1, count + 1):
        entry = Entry(RecordKind.JOIN, 1 << number, hashlib.sha256(bytes([number])).digest(), "job-1", number, 0, "m")
        records.append(ledger.append(entry, number=number, time=TIME, previous=previous, identity=identity))
        previous = records[-1].hash
    return records


def changed(record: LedgerRecord, **entry: object) -> LedgerRecord:
    return dataclasses.replace(record, entry=dataclasses.replace(record.entry, **entry))  # type: ignore[arg-type]


def test_a_chain_holds_and_says_where_it_ends() -> None:
    records = chain_of(5)
    head = ledger.verify_chain(records, OWN.public_bytes)
    assert head == Head(5, records[-1].hash)
    assert ledger.verify_chain(records, OWN.public_bytes, head=head) == head
    assert ledger.verify_chain(chain_of(7), OWN.public_bytes, head=head).number == 7
    assert ledger.verify_chain([], OWN.public_bytes) == Head(0, ledger.genesis(OWN.public_bytes))


def resigned(records: list[LedgerRecord]) -> list[LedgerRecord]:
    """Record 3 with another size and a right hash, signed by somebody who is not the firm; the rest follow from it."""
    return [*records[:2], *_rechained(records[1].hash, [changed(records[2], size_bytes=1), *records[3:]], OTHER)]


def _rechained(previous: bytes, records: list[LedgerRecord], identity: Identity) -> list[LedgerRecord]:
    made: list[LedgerRecord] = []
    for record in records:
        made.append(ledger.append(record.entry, number=record.number, time=TIME, previous=previous, identity=identity))
        previous = made[-1].hash
    return made


@pytest.mark.parametrize(
    ("records", "position"),
    [
        pytest.param([*chain_of(5)[:2], *chain_of(5)[3:]], 3, id="a record was deleted"),
        pytest.param([*chain_of(5)[:2], chain_of(5)[3], chain_of(5)[2], chain_of(5)[4]], 3, id="two were swapped"),
        pytest.param([*chain_of(5)[:3], chain_of(5)[2], *chain_of(5)[3:]], 4, id="a record is there twice"),
        pytest.param(chain_of(5)[1:], 1, id="the beginning was deleted"),
        pytest.param([*chain_of(5)[:2], changed(chain_of(5)[2], size_bytes=9), *chain_of(5)[3:]], 3, id="a size"),
        pytest.param([*chain_of(5)[:4], changed(chain_of(5)[4], job="job-2")], 5, id="the last record's job"),
        pytest.param([dataclasses.replace(chain_of(2)[0], time="yesterday")], 1, id="a time of no form"),
        pytest.param(resigned(chain_of(5)), 3, id="signed again by another key"),
        pytest.param(chain_of(5, OTHER), 1, id="another firm's ledger"),
        pytest.param(chain_of(5, OTHER, OWN.public_bytes), 1, id="begun as ours, signed by another"),
        pytest.param(chain_of(3), 4, id="the end was cut off"),
    ],
)
def test_tampering_is_found_where_it_begins(records: list[LedgerRecord], position: int) -> None:
    head = Head(5, chain_of(5)[-1].hash)
    with pytest.raises(LedgerError) as caught:
        ledger.verify_chain(records, OWN.public_bytes, head=head)
    assert caught.value.position == position


def test_a_firm_that_rewrites_its_own_past_contradicts_a_noted_head() -> None:
    records = chain_of(5)
    rewritten = _rechained(ledger.genesis(OWN.public_bytes), [changed(records[0], size_bytes=0), *records[1:]], OWN)
    assert ledger.verify_chain(rewritten, OWN.public_bytes).number == 5
    with pytest.raises(LedgerError, match="noted head") as caught:
        ledger.verify_chain(rewritten, OWN.public_bytes, head=Head(5, records[-1].hash))
    assert caught.value.position == 5


def test_a_head_is_signed() -> None:
    head = Head(3, b"\x07" * 32)
    signature = ledger.sign_head(head, OWN)
    ledger.verify_head(head, signature, OWN.public_bytes)
    for forged in (Head(2, b"\x07" * 32), Head(3, b"\x08" * 32)):
        with pytest.raises(LedgerError):
            ledger.verify_head(forged, signature, OWN.public_bytes)


def test_the_line_spelled_out() -> None:
    (record,) = chain_of(1)
    fields = json.loads(record.to_line())
    assert fields == {
        "number": 1,
        "time": TIME,
        "kind": "join",
        "size_bytes": 2,
        "sha256": hashlib.sha256(b"\x01").hexdigest(),
        "job": "job-1",
        "round": 1,
        "attempt": 0,
        "message_id": "m",
        "offset_bytes": 0,
        "previous": ledger.genesis(OWN.public_bytes).hex(),
        "hash": record.hash.hex(),
        "signature": record.signature.hex(),
    }


def test_the_hash_is_over_the_fields_as_written_down() -> None:
    (record,) = chain_of(1)
    text = lambda value: len(value).to_bytes(4, "big") + value  # noqa: E731
    body = (1).to_bytes(8, "big") + text(TIME.encode()) + text(b"join") + (2).to_bytes(8, "big")
    body += hashlib.sha256(b"\x01").digest() + text(b"job-1") + (1).to_bytes(8, "big") + bytes(8)
    body += text(b"m") + bytes(8) + ledger.genesis(OWN.public_bytes)
    assert record.hash == hashlib.sha256(text(b"dure ledger record") + text(body)).digest()


def test_every_changed_byte_of_a_line_is_found() -> None:
    (record,) = chain_of(1)
    line = record.to_line()
    assert LedgerRecord.from_line(line) == record
    for at in range(len(line)):
        other = bytearray(line)
        other[at] ^= 1
        try:
            read = LedgerRecord.from_line(bytes(other))
        except MessageError:
            continue
        with pytest.raises(LedgerError):  # only the signature's bytes are left to the chain's check
            ledger.verify_chain([read], OWN.public_bytes)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[]\n", id="no object"),
        pytest.param(b"{}\n", id="no fields"),
        pytest.param(chain_of(1)[0].to_line().replace(b'"join"', b'"gossip"'), id="a kind that may not leave"),
        pytest.param(chain_of(1)[0].to_line().replace(b'"round":1', b'"round":true'), id="a truth for a number"),
        pytest.param(chain_of(1)[0].to_line().replace(b'"round":1', b'"round":-1'), id="a number below 0"),
        pytest.param(chain_of(1)[0].to_line().replace(b'{"', b'{ "'), id="another layout"),
        pytest.param(chain_of(1)[0].to_line()[:-2] + b',"more":1}\n', id="a field too many"),
        pytest.param(b"9" * 20_000, id="too long"),
    ],
)
def test_a_line_that_is_no_record_is_refused(line: bytes) -> None:
    with pytest.raises(MessageError):
        LedgerRecord.from_line(line)


def test_only_valid_times_texts_and_digests_become_records() -> None:
    entry = chain_of(1)[0].entry
    previous = ledger.genesis(OWN.public_bytes)
    with pytest.raises(MessageError, match="time"):
        ledger.append(entry, number=1, time="now", previous=previous, identity=OWN)
    with pytest.raises(MessageError, match="text"):
        ledger.append(dataclasses.replace(entry, job="x" * 5000), number=1, time=TIME, previous=previous, identity=OWN)
    with pytest.raises(MisuseError):
        ledger.append(dataclasses.replace(entry, sha256=b""), number=1, time=TIME, previous=previous, identity=OWN)


def test_sent_bytes_takes_back_what_a_cut_connection_did_not_carry() -> None:
    digest = bytes(32)
    entries = [
        Entry(RecordKind.BLOB, 100, digest),
        Entry(RecordKind.NOT_SENT, 60, digest),
        Entry(RecordKind.BLOB, 60, digest, offset_bytes=40),
        Entry(RecordKind.REPAIR, 7, digest),
    ]
    records = [LedgerRecord(1, TIME, entry, bytes(32), b"") for entry in entries]
    assert ledger.sent_bytes(records) == 100
