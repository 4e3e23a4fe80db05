"""A firm's signed word on where its ledger ends, countersigned by the server: what keeps both from rewriting it. Pure.

A `Statement` is over the firm's statement before, so a firm's statements are a chain of their own. The server keeps the
newest of each firm, countersigns it with the consortium's root key, and shows it to the other firms of its jobs, who
keep it, too. A firm that rewrites its ledger contradicts a statement that others hold (docs/ledger.md says who notices
what). A statement tells a number and a hash, and nothing of what left.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from dure_protocols.certificates import verify_root_signature
from dure_protocols.errors import DureError, IdentityError, MessageError
from dure_protocols.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, check_firm_name, verify
from dure_protocols.ledger import DIGEST_BYTES, TIME, Head, LedgerError, first_difference
from dure_protocols.wire import Reader, Writer, digest

STATEMENT_LABEL = "dure ledger statement"
COUNTERSIGNATURE_LABEL = "dure ledger countersignature"
NOTHING_BEFORE = bytes(DIGEST_BYTES)
"""What a firm's first statement names as the one before."""
MAX_STATEMENT_LINE_BYTES = 1024
MAX_COUNTERSIGNED_LINE_BYTES = 2048
MAX_OTHERS = 256
MAX_ANSWER_BYTES = 1 << 18
STATEMENT_START = b'{"statement":'
COUNTERSIGNED_START = b'{"countersigned":'
_FORMAT = 1
_MAX_ROOT_SIGNATURE_BYTES = 256
_HEX = re.compile(r"(?:[0-9a-f]{2})*")

T = TypeVar("T")


@dataclass(frozen=True)
class Statement:
    """The firm's signed word: my ledger ends (or once ended) at `head`, and what I said before is `previous`.

    previous: the `digest` of its statement before, `NOTHING_BEFORE` of the first.
    """

    head: Head
    previous: bytes
    signature: bytes

    @classmethod
    def make(cls, head: Head, previous: bytes, identity: Identity) -> "Statement":
        """The firm's next statement."""
        return cls(head, previous, identity.sign(STATEMENT_LABEL, bytes(head), previous))

    @property
    def digest(self) -> bytes:
        """What the next statement names. 32 bytes."""
        return digest(STATEMENT_LABEL, bytes(self.head), self.previous)

    def verify(self, public_key: bytes) -> None:
        """Raise LedgerError unless the firm with this key signed it."""
        try:
            verify(public_key, self.signature, STATEMENT_LABEL, bytes(self.head), self.previous)
        except IdentityError as error:
            raise LedgerError(self.head.number, "signature: the firm's identity did not sign this statement") from error

    def encode(self) -> bytes:
        """What an agent sends to the link."""
        writer = Writer().u8(_FORMAT)
        _write_statement(writer, self)
        return bytes(writer)

    @classmethod
    def decode(cls, data: bytes) -> "Statement":
        """Read what an agent sent. Raises MessageError."""
        return _decoded(data, _read_statement)

    def to_line(self) -> bytes:
        """Its line of canonical JSON, as kept at the firm and in exports."""
        return _line({"statement": self.head.number, **_statement_fields(self)})

    @classmethod
    def from_line(cls, line: bytes) -> "Statement":
        """Read a line back. Raises MessageError unless `to_line` of the outcome is this line, byte for byte."""
        return _from_line(
            line, MAX_STATEMENT_LINE_BYTES, lambda fields: _statement_of(_number(fields["statement"]), fields)
        )


@dataclass(frozen=True)
class Countersigned:
    """A firm's statement and the server's word for it: this firm with this key said so, to me, at this time.

    time: by the server's clock; num_breaks: how often, up to this one, a statement of this firm did not follow the one
    that the server held; signature: ECDSA by the consortium's root key, DER.
    """

    firm: str
    public_key: bytes
    statement: Statement
    time: str
    num_breaks: int
    signature: bytes

    @staticmethod
    def signed_part(firm: str, public_key: bytes, statement: Statement, time: str, num_breaks: int) -> bytes:
        """What the root signs under `COUNTERSIGNATURE_LABEL`."""
        writer = Writer().text(firm).fixed(public_key, PUBLIC_KEY_BYTES)
        _write_statement(writer, statement)
        return bytes(writer.text(time).u32(num_breaks))

    def verify(self, root_der: bytes) -> None:
        """Raise LedgerError unless both the firm and the root signed.

        The caller MUST have compared the fingerprints of `root_der` and of `public_key` with those that it knows.
        """
        self.statement.verify(self.public_key)
        part = self.signed_part(self.firm, self.public_key, self.statement, self.time, self.num_breaks)
        try:
            verify_root_signature(root_der, self.signature, COUNTERSIGNATURE_LABEL, part)
        except IdentityError as error:
            raise LedgerError(
                self.statement.head.number, f"countersignature: the consortium's root did not sign it for {self.firm}"
            ) from error

    def why_not_after(self, held: "Countersigned") -> str:
        """Why the same firm and server cannot say this after `held`; empty if they can. Both MUST be verified."""
        now, before = self.statement.head, held.statement.head
        if self.public_key != held.public_key or self.statement == held.statement:
            return ""
        if self.num_breaks > held.num_breaks:
            return f"its statements were broken off after record {before.number}, which it had signed on {held.time}"
        if now.number < before.number:
            return f"record {now.number} is shown as its end, but on {held.time} it was record {before.number}"
        if now.number == before.number and now.hash != before.hash:
            return f"record {now.number} is shown with another hash than on {held.time}"
        return ""

    def to_line(self) -> bytes:
        """Its line of canonical JSON."""
        fields = {
            "countersigned": self.firm,
            "public_key": self.public_key.hex(),
            "number": self.statement.head.number,
            **_statement_fields(self.statement),
            "time": self.time,
            "num_breaks": self.num_breaks,
            "countersignature": self.signature.hex(),
        }
        return _line(fields)

    @classmethod
    def from_line(cls, line: bytes) -> "Countersigned":
        """Read a line back. Raises MessageError unless `to_line` of the outcome is this line, byte for byte."""

        def read(fields: dict[str, object]) -> Countersigned:
            return _checked(
                cls(
                    _text(fields["countersigned"]),
                    _bytes(fields["public_key"], PUBLIC_KEY_BYTES),
                    _statement_of(_number(fields["number"]), fields),
                    _text(fields["time"]),
                    _number(fields["num_breaks"], 32),
                    _bytes(fields["countersignature"]),
                )
            )

        return _from_line(line, MAX_COUNTERSIGNED_LINE_BYTES, read)


@dataclass(frozen=True)
class Witnessed:
    """The server's answer to a statement. replaced: what the server held, if the statement does not follow from it."""

    own: Countersigned
    replaced: Countersigned | None
    others: tuple[Countersigned, ...]

    def encode(self) -> bytes:
        """The bytes on the wire."""
        writer = Writer().u8(_FORMAT)
        _write_countersigned(writer, self.own)
        writer.items([] if self.replaced is None else [self.replaced], _write_countersigned)
        return bytes(writer.items(self.others, _write_countersigned))

    @classmethod
    def decode(cls, data: bytes) -> "Witnessed":
        """Read the server's answer. Raises MessageError."""

        def read(reader: Reader) -> Witnessed:
            own, replaced = _read_countersigned(reader), reader.items(_read_countersigned, 1)
            others = reader.items(_read_countersigned, MAX_OTHERS)
            return cls(own, replaced[0] if replaced else None, tuple(others))

        if len(data) > MAX_ANSWER_BYTES:
            raise MessageError(f"an answer of {len(data)} bytes came; at most {MAX_ANSWER_BYTES} are allowed")
        return _decoded(data, read)


def _write_statement(writer: Writer, statement: Statement) -> None:
    writer.fixed(bytes(statement.head), 8 + DIGEST_BYTES)
    writer.fixed(statement.previous, DIGEST_BYTES).fixed(statement.signature, SIGNATURE_BYTES)


def _read_statement(reader: Reader) -> Statement:
    head = Head(reader.u64(), reader.fixed(DIGEST_BYTES))
    return Statement(head, reader.fixed(DIGEST_BYTES), reader.fixed(SIGNATURE_BYTES))


def _write_countersigned(writer: Writer, each: Countersigned) -> None:
    writer.text(each.firm).fixed(each.public_key, PUBLIC_KEY_BYTES)
    _write_statement(writer, each.statement)
    writer.text(each.time).u32(each.num_breaks).blob(each.signature)


def _read_countersigned(reader: Reader) -> Countersigned:
    firm, key, statement = reader.text(63), reader.fixed(PUBLIC_KEY_BYTES), _read_statement(reader)
    time, num_breaks, signature = reader.text(27), reader.u32(), reader.blob(_MAX_ROOT_SIGNATURE_BYTES)
    return _checked(Countersigned(firm, key, statement, time, num_breaks, signature))


def _checked(each: Countersigned) -> Countersigned:
    try:
        check_firm_name(each.firm)
    except IdentityError as error:
        raise MessageError(str(error)) from error
    if not TIME.fullmatch(each.time):
        raise MessageError("time: a moment like 2026-01-31T09:30:00.000000Z was expected")
    return each


def _decoded(data: bytes, read: Callable[[Reader], T]) -> T:
    reader = Reader(data)
    if (form := reader.u8()) != _FORMAT:
        raise MessageError(f"a frame of format {form} came, {_FORMAT} was expected: update the older side")
    value = read(reader)
    reader.end()
    return value


def _statement_fields(statement: Statement) -> dict[str, object]:
    return {
        "hash": statement.head.hash.hex(),
        "previous": statement.previous.hex(),
        "signature": statement.signature.hex(),
    }


def _statement_of(number: int, fields: dict[str, object]) -> Statement:
    head = Head(number, _bytes(fields["hash"], DIGEST_BYTES))
    return Statement(head, _bytes(fields["previous"], DIGEST_BYTES), _bytes(fields["signature"], SIGNATURE_BYTES))


def _line(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


class _Line(Protocol):
    def to_line(self) -> bytes: ...


L = TypeVar("L", bound=_Line)


def _from_line(line: bytes, limit_bytes: int, read: Callable[[dict[str, object]], L]) -> L:
    if len(line) > limit_bytes:
        raise MessageError(f"a line of {len(line)} bytes came where at most {limit_bytes} are allowed")
    try:
        value = read(json.loads(line))
        written = value.to_line()
    except MessageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, DureError) as error:
        raise MessageError(f"it cannot be read: {error}") from error
    if written != line:
        raise MessageError(f"byte {first_difference(written, line)} is not as this program writes it")
    return value


def _number(value: object, bits: int = 64) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << bits:
        raise MessageError(f"a number of {bits} bits was expected")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise MessageError("a text was expected")
    return value


def _bytes(value: object, length: int | None = None) -> bytes:
    text = _text(value)
    if not _HEX.fullmatch(text) or (length is not None and len(text) != 2 * length):
        raise MessageError("hexadecimal digits in lower case were expected")
    return bytes.fromhex(text)
