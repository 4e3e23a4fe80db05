"""The ledger: what left a firm, record by record, chained by hashes and signed by the firm's identity. Pure.

    LedgerError               the ledger does not prove what it claims; `position` is the first bad record, from 1

Each record carries the hash of the one before it, so none can be altered, left out or moved without breaking the chain
at that place; each is signed, so none can be replaced by somebody without the firm's key. What a chain cannot show is
that its *end* is missing: for that a reader compares with a `Head` noted earlier (`verify_chain(head=…)`).

A record holds no payload, only its size and SHA-256, so that whoever holds the payload (the server's operator, another
firm) can be shown that it is this one.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from dure_protocols.errors import DureError, IdentityError, MessageError
from dure_protocols.identity import Identity, verify
from dure_protocols.wire import MAX_TEXT_BYTES, Writer, digest

RECORD_LABEL = "dure ledger record"
GENESIS_LABEL = "dure ledger genesis"
HEAD_LABEL = "dure ledger head"
DIGEST_BYTES = 32
MAX_LINE_BYTES = 16_384
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


class LedgerError(DureError):
    """A ledger does not hold. `position` counts records from 1 and names the first that is bad (0: none of them is).

    line: of the file that was read, from 1, where it was a file (0: none).
    """

    def __init__(self, position: int, reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.position = position
        self.line = line


class RecordKind(StrEnum):
    """What may leave a firm (design, section 7), and two kinds about the ledger itself. Nothing else is named."""

    ENROLMENT = "enrolment"  # invitation token, certificate signing request, public identity
    RENEWAL = "renewal"  # a signing request for the next short-lived certificate
    SUBSCRIPTION = "subscription"  # liveness and agent version
    ACKNOWLEDGEMENT = "acknowledgement"  # a delivery has arrived
    APPROVAL = "approval"
    KEYS = "keys"  # public keys of an epoch, signed
    CIPHERTEXTS = "ciphertexts"  # KEM ciphertexts
    ESTABLISHED = "established"
    JOIN = "join"  # in threshold mode with encrypted shares
    MASKED_UPDATE = "masked-update"  # the signed receipt; its vector is a blob
    VOTE = "vote"  # in threshold mode: whose sum may be opened
    RELEASE = "release"  # the firm's own self-mask seed; in threshold mode with shares of others' secrets
    FINISHED = "finished"
    LEAVE = "leave"  # the signed statement that the firm leaves a job or the consortium
    REFUSAL = "refusal"  # a phase and an error code
    BLOB = "blob"  # the bytes of a masked vector, from offset_bytes on
    BLOB_CONTROL = "blob-control"  # which blob, how large, from which offset
    HEAD = "head"  # where this ledger ends, signed: a number and a hash (dure_protocols.heads)
    NOT_SENT = "not-sent"  # takes back the last size_bytes of an earlier record: the connection was cut before them
    REPAIR = "repair"  # a line torn by a crash was removed; sha256 is that of the removed bytes


ABOUT_LEDGER = frozenset({RecordKind.NOT_SENT, RecordKind.REPAIR})


@dataclass(frozen=True)
class Entry:
    """What one thing that leaves is, before it has a place in the chain.

    size_bytes: as it leaves the agent's program; sha256: of the payload (of the whole blob, for a part of one);
    message_id: the id that makes it one with what the server holds; offset_bytes: where a blob's part begins.
    """

    kind: RecordKind
    size_bytes: int
    sha256: bytes
    job: str = ""
    round: int = 0
    attempt: int = 0
    message_id: str = ""
    offset_bytes: int = 0


@dataclass(frozen=True)
class LedgerRecord:
    """One entry in its place. number: from 1; time: UTC, ISO 8601 with microseconds and Z; hashes are 32 bytes."""

    number: int
    time: str
    entry: Entry
    previous: bytes
    signature: bytes

    @property
    def hash(self) -> bytes:
        """What the next record points to and the firm signs. 32 bytes."""
        return record_hash(self.number, self.time, self.entry, self.previous)

    def to_line(self) -> bytes:
        """The record as one line of canonical JSON with its newline: the form on disk and in exports."""
        entry = self.entry
        fields = {
            "number": self.number,
            "time": self.time,
            "kind": entry.kind.value,
            "size_bytes": entry.size_bytes,
            "sha256": entry.sha256.hex(),
            "job": entry.job,
            "round": entry.round,
            "attempt": entry.attempt,
            "message_id": entry.message_id,
            "offset_bytes": entry.offset_bytes,
            "previous": self.previous.hex(),
            "hash": self.hash.hex(),
            "signature": self.signature.hex(),
        }
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "LedgerRecord":
        """Read a line back. Raises MessageError unless `to_line` of the outcome is this line, byte for byte."""
        if len(line) > MAX_LINE_BYTES:
            raise MessageError(f"a line of {len(line)} bytes came where at most {MAX_LINE_BYTES} are allowed")
        try:
            fields = json.loads(line)
            record = cls._from_fields(fields)
            written, stated = record.to_line(), fields["hash"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, DureError) as error:
            raise MessageError(f"the line is no ledger record ({type(error).__name__}: {str(error)[:80]})") from error
        if written != line:
            if stated != record.hash.hex():
                raise MessageError("hash: it is not the hash of the record's other fields, so one of them was changed")
            raise MessageError(f"byte {first_difference(written, line)} is not as this program writes it")
        return record

    @classmethod
    def _from_fields(cls, fields: dict[str, object]) -> "LedgerRecord":
        entry = Entry(
            kind=RecordKind(_text(fields["kind"])),
            size_bytes=_integer(fields["size_bytes"]),
            sha256=bytes.fromhex(_text(fields["sha256"])),
            job=_text(fields["job"]),
            round=_integer(fields["round"]),
            attempt=_integer(fields["attempt"]),
            message_id=_text(fields["message_id"]),
            offset_bytes=_integer(fields["offset_bytes"]),
        )
        return cls(
            number=_integer(fields["number"]),
            time=_text(fields["time"]),
            entry=entry,
            previous=bytes.fromhex(_text(fields["previous"])),
            signature=bytes.fromhex(_text(fields["signature"])),
        )


@dataclass(frozen=True)
class Head:
    """Where a ledger ended at some moment: its number of records and the hash of the last (`genesis` when empty).

    Whoever notes one down can hold the firm, or oneself, to everything before it.
    """

    number: int
    hash: bytes

    def __bytes__(self) -> bytes:
        return bytes(Writer().u64(self.number).fixed(self.hash, DIGEST_BYTES))


def first_difference(written: bytes, found: bytes) -> int:
    """The place, from 1, of the first byte in which two lines differ."""
    pairs = zip(written, found, strict=False)
    return next((at for at, (one, other) in enumerate(pairs, 1) if one != other), min(len(written), len(found)) + 1)


def genesis(public_key: bytes) -> bytes:
    """What the first record of a firm's ledger points to: bound to its key, so a ledger is one firm's."""
    return digest(GENESIS_LABEL, public_key)


def record_hash(number: int, time: str, entry: Entry, previous: bytes) -> bytes:
    """SHA-256 over a record's fields, each of fixed width or behind its length. 32 bytes. Raises MisuseError."""
    writer = Writer().u64(number).text(time).text(entry.kind.value).u64(entry.size_bytes)
    writer.fixed(entry.sha256, DIGEST_BYTES).text(entry.job).u64(entry.round).u64(entry.attempt)
    writer.text(entry.message_id).u64(entry.offset_bytes).fixed(previous, DIGEST_BYTES)
    return digest(RECORD_LABEL, bytes(writer))


def append(entry: Entry, *, number: int, time: str, previous: bytes, identity: Identity) -> LedgerRecord:
    """The record that follows. Called by the ledger file alone; `previous` is the last record's hash or `genesis`.

    Raises MessageError for a time or text that no reader would take.
    """
    if not TIME.fullmatch(time):
        raise MessageError(f"a ledger time must read like 2026-01-31T09:30:00.000000Z, {time!r} came")
    if max(len(entry.job.encode()), len(entry.message_id.encode())) > MAX_TEXT_BYTES:
        raise MessageError(f"a ledger text may have {MAX_TEXT_BYTES} bytes")
    own = record_hash(number, time, entry, previous)
    return LedgerRecord(number, time, entry, previous, identity.sign(RECORD_LABEL, own))


def sign_head(head: Head, identity: Identity) -> bytes:
    """The firm's signature, 64 bytes, on the statement that its ledger ends (or once ended) here."""
    return identity.sign(HEAD_LABEL, bytes(head))


def verify_head(head: Head, signature: bytes, public_key: bytes) -> None:
    """Check what `sign_head` made. Raises LedgerError."""
    try:
        verify(public_key, signature, HEAD_LABEL, bytes(head))
    except IdentityError as error:
        raise LedgerError(0, "the ledger's head is not signed by this firm's identity") from error


def verify_chain(records: Iterable[LedgerRecord], public_key: bytes, *, head: Head | None = None) -> Head:
    """Check a whole ledger against a firm's public key; the head where it ends.

    The caller MUST have compared `public_key` with the fingerprint it knows the firm by. In order, for each record:
    (1) its number is the next one: nothing is missing, doubled or moved; (2) it points to the record before it;
    (3) its time has the one form (clocks may be set back, so order in time is not asked for);
    (4) the firm signed it. At the end, with `head`: (5) the ledger reaches it and had that hash there.
    Raises LedgerError naming the first record that fails.
    """
    place = Head(0, genesis(public_key))
    reached = head is None or head.number == 0
    for position, record in enumerate(records, start=1):
        place = follow(record, place, public_key)
        if head is not None and head.number == record.number:  # (5)
            if head.hash != place.hash:
                raise LedgerError(position, f"record {position} is not the one that the noted head names")
            reached = True
    if head is not None and not reached:
        raise LedgerError(
            place.number + 1,
            f"the ledger ends with record {place.number}, but it once had {head.number}: its end was cut off",
        )
    return place


def follow(record: LedgerRecord, place: Head, public_key: bytes) -> Head:
    """Check the record behind `place`, (1) to (4) of `verify_chain`; the place it makes. Raises LedgerError."""
    position = place.number + 1
    if record.number != place.number + 1:  # (1)
        raise LedgerError(
            position,
            f"record {place.number + 1} was expected and record {record.number} came:"
            " records were deleted, doubled or moved",
        )
    if record.previous != place.hash:  # (2)
        raise LedgerError(position, f"previous: record {position} does not follow from the record before it")
    if not TIME.fullmatch(record.time):  # (3)
        raise LedgerError(position, f"time: record {position} has no valid time")
    verify_record(record, public_key)  # (4)
    return Head(record.number, record.hash)


def verify_record(record: LedgerRecord, public_key: bytes) -> None:
    """Check one record's signature alone, without its place in the chain. Raises LedgerError."""
    try:
        verify(public_key, record.signature, RECORD_LABEL, record.hash)
    except IdentityError as error:
        raise LedgerError(
            record.number, f"signature: record {record.number} is not signed by this firm's identity"
        ) from error


def sent_bytes(records: Iterable[LedgerRecord]) -> int:
    """Bytes that left in all: every entry's size, less what NOT_SENT takes back."""
    return sum(signed_size(record.entry) for record in records)


def signed_size(entry: Entry) -> int:
    """What an entry adds to the bytes that left: its size, negative for NOT_SENT, nothing for REPAIR."""
    if entry.kind in ABOUT_LEDGER:
        return -entry.size_bytes if entry.kind is RecordKind.NOT_SENT else 0
    return entry.size_bytes


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("an integer was expected")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text was expected")
    return value
