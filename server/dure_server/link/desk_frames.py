"""What a coordinator says to the link over the desk's Unix socket. Both run on one machine from one installation.

Decoders raise MessageError. The lists hold message ids, blob digests or firm names; each is checked as it is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dure_protocols.errors import IdentityError, MessageError
from dure_protocols.frames import MAX_ENVELOPE_BYTES, is_blob_digest, is_message_id
from dure_protocols.identity import check_firm_name
from dure_protocols.wire import Reader, Writer

SERVICE: Final = "dure.link.Desk"
MAX_IDS: Final = 100_000
PUSH_BYTES: Final = 16 << 20  # a coordinator splits larger batches


@dataclass(frozen=True)
class Parcel:
    """An encoded envelope and the firm that it is for, or that it is from."""

    firm: str
    envelope: bytes

    def write(self, writer: Writer) -> None:
        """Append this to a message."""
        writer.text(self.firm).blob(self.envelope)

    @classmethod
    def read(cls, reader: Reader) -> "Parcel":
        """Take it back out."""
        return cls(_read_firm(reader), reader.blob(MAX_ENVELOPE_BYTES))

    def encode(self) -> bytes:
        """One parcel alone: an item of the Replies stream."""
        writer = Writer()
        self.write(writer)
        return bytes(writer)

    @classmethod
    def decode(cls, data: bytes) -> "Parcel":
        """Read one parcel alone."""
        reader = Reader(data)
        parcel = cls.read(reader)
        reader.end()
        return parcel


def encode_push(parcels: Sequence[Parcel]) -> bytes:
    """Messages to be recorded and delivered."""
    return bytes(Writer().items(parcels, lambda writer, parcel: parcel.write(writer)))


def decode_push(data: bytes) -> list[Parcel]:
    """Read a push."""
    reader = Reader(data)
    parcels = reader.items(Parcel.read, MAX_IDS)
    reader.end()
    return parcels


@dataclass(frozen=True)
class ReplyQuery:
    """Asks for the replies to messages: those that are there, or (`wait`) each as soon as it comes."""

    ids: tuple[str, ...]
    wait: bool

    def encode(self) -> bytes:
        """The bytes on the wire."""
        return bytes(Writer().u8(self.wait).items(self.ids, Writer.text))

    @classmethod
    def decode(cls, data: bytes) -> "ReplyQuery":
        """Read the request."""
        reader = Reader(data)
        wait = reader.flag()
        query = cls(tuple(reader.items(_read_id, MAX_IDS)), wait)
        reader.end()
        return query


def encode_texts(values: Sequence[str]) -> bytes:
    """A list of ids, digests or names."""
    return bytes(Writer().items(values, Writer.text))


def decode_ids(data: bytes) -> list[str]:
    """Read a list of message ids."""
    reader = Reader(data)
    ids = reader.items(_read_id, MAX_IDS)
    reader.end()
    return ids


def decode_digests(data: bytes) -> list[str]:
    """Read a list of blob digests."""
    reader = Reader(data)
    digests = reader.items(lambda item: item.text(64), MAX_IDS)
    reader.end()
    if not all(map(is_blob_digest, digests)):
        raise MessageError("a blob's digest is 64 hex digits; something else came")
    return digests


def encode_presence(connected: dict[str, str]) -> bytes:
    """Which firms are connected, with which agent version."""
    return bytes(Writer().items(sorted(connected.items()), lambda writer, item: writer.text(item[0]).text(item[1])))


def decode_presence(data: bytes) -> dict[str, str]:
    """Read which firms are connected, with which agent version."""
    reader = Reader(data)
    listed = reader.items(lambda item: (_read_firm(item), item.text(64)), MAX_IDS)
    reader.end()
    if listed != sorted(dict(listed).items()):
        raise MessageError("firms are listed once each, in the order of their names; they came otherwise")
    return dict(listed)


def encode_run(run_id: int) -> bytes:
    """A run's number."""
    return bytes(Writer().u64(run_id))


def decode_run(data: bytes) -> int:
    """Read a run's number."""
    reader = Reader(data)
    run_id = reader.u64()
    reader.end()
    if run_id >= 1 << 63:
        raise MessageError("run numbers have 63 bits")
    return run_id


def _read_firm(reader: Reader) -> str:
    try:
        return check_firm_name(reader.text(63))
    except IdentityError as error:
        raise MessageError(str(error)) from error


def _read_id(reader: Reader) -> str:
    text = reader.text(32)
    if not is_message_id(text):
        raise MessageError("a message's id is 32 hex digits; something else came")
    return text
