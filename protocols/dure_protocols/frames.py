"""What passes over the link: envelopes, blob requests, and the limits of both (docs/protocol.md, 10).

An `Envelope` is one message or one reply. Its body is opaque here; its arrays are named by digest, and those above
`INLINE_ARRAY_BYTES` travel on their own as *blobs*: raw little-endian array bytes in a file named by their SHA-256.
Every id is derived, never drawn: a coordinator that starts again asks under the same id and finds the recorded reply.

Decoders raise MessageError; constructors check themselves and raise MisuseError, so what exists is valid.
"""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from dure_protocols.errors import MessageError, MisuseError
from dure_protocols.versions import FIRST, MAX_PROTOCOL, ProtocolRange
from dure_protocols.wire import Reader, Writer, digest

T = TypeVar("T")
AnyArray = NDArray[np.generic]

CHUNK_BYTES: Final = 1 << 20
INLINE_ARRAY_BYTES: Final = 4 << 10  # arrays up to this many bytes travel inside the envelope
MAX_BODY_BYTES: Final = 8 << 20
MAX_ENVELOPE_BYTES: Final = 9 << 20
MAX_ARRAYS: Final = 64
MAX_DIMENSIONS: Final = 8
MAX_BLOB_BYTES: Final = 8 << 30
MAX_CSR_BYTES: Final = 16 << 10
MAX_REQUEST_BYTES: Final = 1 << 10  # subscribe, announce, fetch: a few fixed fields
MAX_TTL_SECONDS: Final = 31 * 24 * 3600.0
COORDINATOR_NODE_ID: Final = 1

DURE_MESSAGE_TYPE: Final = "query.dure"
"""The type of every message of a job: what is asked stands in the body, and the phase in the group."""

DTYPES: Final = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"}
)

_FORMAT: Final = 1
_NEGOTIATING_FORMAT: Final = 2  # of Subscribe and Welcome
_MESSAGE_ID = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MESSAGE_TYPE = re.compile(r"(train|evaluate|query)(\.[a-z][a-z0-9_]{0,47})?")
_GROUP = re.compile(r"[A-Za-z0-9._:/-]{1,200}")
_ARRAY_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_COUNT = re.compile(r"0|[1-9][0-9]{0,18}")  # below 2^64, so that a ledger takes it
_ERROR_CODE = re.compile(r"[a-z][a-z-]{0,47}")
_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,64}")


class Place(NamedTuple):
    """Where in a job a message belongs; a `group` spells it."""

    job: str
    round: int = 0
    attempt: int = 0
    phase: str = ""

    @property
    def group(self) -> str:
        """The group of a message's metadata."""
        return f"{self.job}/{self.round}/{self.attempt}/{self.phase}"

    @classmethod
    def of(cls, group: str) -> "Place":
        """The place a group spells. A group of another form is a job's name and nothing else."""
        match group.split("/"):
            case [job, number, attempt, phase] if _COUNT.fullmatch(number) and _COUNT.fullmatch(attempt):
                return cls(job, int(number), int(attempt), phase)
        return cls(group)


def is_message_id(text: str) -> bool:
    """Whether a text may be a message's id, and so a file name."""
    return _MESSAGE_ID.fullmatch(text) is not None


def is_blob_digest(text: str) -> bool:
    """Whether a text may be a blob's digest, and so a file name."""
    return _DIGEST.fullmatch(text) is not None


def node_id(consortium: str, firm: str) -> int:
    """A firm's number in Flower's messages: 63 bits, the same for ever, so it outlives keys and connections."""
    number = int.from_bytes(digest("dure/link/node", consortium.encode(), firm.encode())[:8], "big") >> 1
    return number if number > COORDINATOR_NODE_ID else number + 2


def message_id(run_id: int, group: str, message_type: str, dst_node: int) -> str:
    """The id of the one message of this type to this firm in this group ("job/round/attempt/phase"). 32 hex digits."""
    fields = Writer().u64(run_id).text(group).text(message_type).u64(dst_node)
    return digest("dure/link/message", bytes(fields))[:16].hex()


def reply_id(request_id: str) -> str:
    """The id of the one reply to a message. 32 hex digits."""
    return digest("dure/link/reply", request_id.encode())[:16].hex()


@dataclass(frozen=True)
class ArrayRef:
    """One array of a message: its form, its digest and, if it is small, its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    inline: bytes | None = None

    def __post_init__(self) -> None:
        _insist(_ARRAY_NAME.fullmatch(self.name), "an array's name is a letter and up to 63 letters, digits, . _ -")
        check_form(self.dtype, self.shape)
        _insist(is_blob_digest(self.sha256), "an array's digest is 64 hex digits")
        _insist(self.is_blob == (self.size_bytes > INLINE_ARRAY_BYTES), "small arrays, and only they, are inline")
        if self.inline is not None:
            _insist(len(self.inline) == self.size_bytes, "an inline array's bytes fill its shape")
            _insist(hashlib.sha256(self.inline).hexdigest() == self.sha256, "an inline array matches its digest")

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def is_blob(self) -> bool:
        """Whether the bytes travel on their own."""
        return self.inline is None

    @staticmethod
    def needs_blob(array: AnyArray) -> bool:
        """Whether an array is too large to travel inline."""
        return array.nbytes > INLINE_ARRAY_BYTES

    @classmethod
    def of(cls, name: str, array: AnyArray, sha256: str | None = None) -> "ArrayRef":
        """Describe an array; `sha256` is the digest of its little-endian bytes where somebody has computed it."""
        if cls.needs_blob(array):
            computed = sha256 or hashlib.sha256(raw_bytes(array)).hexdigest()
            return cls(name, array.dtype.name, tuple(array.shape), computed)
        content = bytes(raw_bytes(array))
        return cls(name, array.dtype.name, tuple(array.shape), hashlib.sha256(content).hexdigest(), content)

    def view(self, content: bytes) -> AnyArray:
        """The read-only array whose raw bytes these are, without a copy."""
        array: AnyArray = np.frombuffer(content, dtype=little_endian(self.dtype)).reshape(self.shape)
        return array


def check_form(dtype: str, shape: tuple[int, ...]) -> None:
    """Check that an array of this type and shape may travel. Raises MisuseError."""
    _insist(dtype in DTYPES, f"an array's type is one of {', '.join(sorted(DTYPES))}")
    _insist(len(shape) <= MAX_DIMENSIONS, f"an array has at most {MAX_DIMENSIONS} dimensions")
    _insist(all(0 <= length < 1 << 63 for length in shape), "an array's lengths fit 63 bits")
    # Lengths beside a 0 count, too: numpy takes no larger ones, however empty the array is.
    largest = math.prod(max(1, length) for length in shape) * np.dtype(dtype).itemsize
    _insist(largest <= MAX_BLOB_BYTES, f"an array has at most {MAX_BLOB_BYTES} bytes")


def little_endian(dtype: str) -> np.dtype[np.generic]:
    """The type in which an array's raw bytes are written. Raises MisuseError on a type that cannot travel."""
    _insist(dtype in DTYPES, f"an array's type is one of {', '.join(sorted(DTYPES))}; {dtype} came")
    return np.dtype(dtype).newbyteorder("<")


def raw_bytes(array: AnyArray) -> memoryview:
    """An array's bytes in C order and little-endian, without a copy where they already lie so."""
    plain = np.ascontiguousarray(array, dtype=little_endian(array.dtype.name))
    return plain.reshape(-1).view(np.uint8).data


@dataclass(frozen=True)
class Envelope:
    """One message of the coordinator to a firm, or (`reply_to` set) the firm's one reply to it.

    `created_at` is Unix time in seconds, `ttl` the seconds after it in which message and reply count for anything.
    A reply with `error_code` has neither body nor arrays. Its repr shows kind and group, never the body.
    """

    message_id: str
    reply_to: str
    run_id: int
    src_node: int
    dst_node: int
    group: str
    created_at: float
    ttl: float
    message_type: str
    body: bytes = b""
    arrays: tuple[ArrayRef, ...] = ()
    error_code: str | None = None

    def __post_init__(self) -> None:
        for number in (self.run_id, self.src_node, self.dst_node):
            _insist(0 <= number < 1 << 63, "run and node numbers have 63 bits")
        _insist(_GROUP.fullmatch(self.group), "a group is 1 to 200 letters, digits and . _ : / -")
        _insist(_MESSAGE_TYPE.fullmatch(self.message_type), "a message type is train, evaluate or query, then .action")
        _insist(math.isfinite(self.created_at) and self.created_at >= 0, "created_at is Unix time")
        _insist(0 < self.ttl <= MAX_TTL_SECONDS, f"ttl is above 0 and at most {MAX_TTL_SECONDS:.0f} s")
        _insist(len(self.body) <= MAX_BODY_BYTES, f"a body has at most {MAX_BODY_BYTES} bytes; use arrays for more")
        _insist(len(self.arrays) <= MAX_ARRAYS, f"a message has at most {MAX_ARRAYS} arrays")
        _insist(len({ref.name for ref in self.arrays}) == len(self.arrays), "no two arrays share a name")
        if self.reply_to:
            _insist(is_message_id(self.reply_to), "reply_to is 32 hex digits")
            _insist(self.message_id == reply_id(self.reply_to), "a reply's id follows from the id it replies to")
        else:
            _insist(self.src_node == COORDINATOR_NODE_ID, "messages come from the coordinator")
            derived = message_id(self.run_id, self.group, self.message_type, self.dst_node)
            _insist(self.message_id == derived, "a message's id follows from run, group, type and firm")
        if self.error_code is not None:
            _insist(bool(self.reply_to), "only a reply carries an error")
            _insist(_ERROR_CODE.fullmatch(self.error_code), "an error code is 1 to 48 lower-case letters and hyphens")
            _insist(not self.body and not self.arrays, "an error carries neither body nor arrays")

    @classmethod
    def request(
        cls,
        run_id: int,
        dst_node: int,
        group: str,
        message_type: str,
        body: bytes,
        arrays: tuple[ArrayRef, ...],
        created_at: float,
        ttl: float,
    ) -> "Envelope":
        """A message of the coordinator; its id is derived."""
        derived = message_id(run_id, group, message_type, dst_node)
        source = COORDINATOR_NODE_ID
        return cls(derived, "", run_id, source, dst_node, group, created_at, ttl, message_type, body, arrays)

    def reply(
        self,
        body: bytes = b"",
        arrays: tuple[ArrayRef, ...] = (),
        error_code: str | None = None,
        *,
        created_at: float,
    ) -> "Envelope":
        """The reply to this message."""
        return Envelope(
            message_id=reply_id(self.message_id),
            reply_to=self.message_id,
            run_id=self.run_id,
            src_node=self.dst_node,
            dst_node=self.src_node,
            group=self.group,
            created_at=created_at,
            ttl=self.ttl,
            message_type=self.message_type,
            body=body,
            arrays=arrays,
            error_code=error_code,
        )

    def answers(self, request: "Envelope") -> bool:
        """Whether this is a reply to `request`, from its addressee to its sender."""
        return self.reply_to == request.message_id and (
            (self.run_id, self.src_node, self.dst_node, self.group, self.message_type)
            == (request.run_id, request.dst_node, request.src_node, request.group, request.message_type)
        )

    def same_content(self, other: "Envelope") -> bool:
        """Whether two messages of one id say the same; when they were written does not count."""
        return (self.message_id, self.body, self.arrays, self.error_code) == (
            other.message_id,
            other.body,
            other.arrays,
            other.error_code,
        )

    @property
    def expires_at(self) -> float:
        """Unix time from which on neither message nor reply counts."""
        return self.created_at + self.ttl

    @property
    def blobs(self) -> tuple[ArrayRef, ...]:
        """The arrays whose bytes travel on their own."""
        return tuple(ref for ref in self.arrays if ref.is_blob)

    def encode(self) -> bytes:
        """The bytes on the wire. Raises MisuseError if the whole is too large."""
        writer = Writer().u8(_FORMAT).text(self.message_id).text(self.reply_to)
        writer.u64(self.run_id).u64(self.src_node).u64(self.dst_node).text(self.group)
        writer.f64(self.created_at).f64(self.ttl).text(self.message_type)
        writer.text(self.error_code or "").items(self.arrays, _write_array).blob(self.body)
        data = bytes(writer)
        _insist(len(data) <= MAX_ENVELOPE_BYTES, f"an envelope has at most {MAX_ENVELOPE_BYTES} bytes")
        return data

    @classmethod
    def decode(cls, data: bytes) -> "Envelope":
        """Read an envelope; everything is checked and nothing may be left over. Raises MessageError."""
        if len(data) > MAX_ENVELOPE_BYTES:
            raise MessageError(f"an envelope of {len(data)} bytes came; at most {MAX_ENVELOPE_BYTES} are allowed")
        return _decoded(data, _read_envelope)

    def __repr__(self) -> str:
        kind = "Reply" if self.reply_to else "Message"
        return f"{kind}({self.message_type}, {self.group}, {len(self.body)} bytes, {len(self.arrays)} arrays)"


@dataclass(frozen=True)
class Subscribe:
    """Asks for every message to this firm, for as long as the stream is open; says which protocols the agent speaks.

    An agent that speaks none but protocol 1 writes format 1, as it did before there was a choice, and gets messages at
    once. Any other writes format 2 and hears a `Welcome` or a refusal first. Both forms stay as they are for ever.
    """

    agent_version: str
    protocols: ProtocolRange = FIRST

    def __post_init__(self) -> None:
        _insist(_VERSION.fullmatch(self.agent_version), "an agent's version is 1 to 64 letters, digits, . + -")

    @property
    def expects_welcome(self) -> bool:
        """Whether the agent waits for a `Welcome` before messages."""
        return self.protocols.highest > 1

    def encode(self) -> bytes:
        """The bytes on the wire."""
        if not self.expects_welcome:
            return bytes(Writer().u8(_FORMAT).text(self.agent_version))
        lowest, highest = self.protocols
        return bytes(Writer().u8(_NEGOTIATING_FORMAT).text(self.agent_version).u32(lowest).u32(highest))

    @classmethod
    def decode(cls, data: bytes) -> "Subscribe":
        """Read the request. Raises MessageError."""
        if data[:1] != bytes([_NEGOTIATING_FORMAT]):
            return _decoded(data, lambda reader: cls(reader.text(64)))
        frame = _decoded(data, lambda reader: cls(reader.text(64), _read_protocols(reader)), _NEGOTIATING_FORMAT)
        if not frame.expects_welcome:
            raise MessageError("a subscription of protocol 1 alone came in format 2; it has format 1")
        return frame


@dataclass(frozen=True)
class Welcome:
    """The first answer to a subscription of format 2: the protocol chosen, and the server's time (Unix, seconds)."""

    server_version: str
    protocol: int
    server_time: float

    def __post_init__(self) -> None:
        _insist(_VERSION.fullmatch(self.server_version), "a server's version is 1 to 64 letters, digits, . + -")
        _insist(0 < self.protocol <= MAX_PROTOCOL, f"a protocol is 1 to {MAX_PROTOCOL}")
        _insist(math.isfinite(self.server_time) and self.server_time >= 0, "the server's time is Unix time")

    def encode(self) -> bytes:
        """The bytes on the wire."""
        writer = Writer().u8(_NEGOTIATING_FORMAT).text(self.server_version)
        return bytes(writer.u32(self.protocol).f64(self.server_time))

    @classmethod
    def decode(cls, data: bytes) -> "Welcome":
        """Read the answer. Raises MessageError."""
        return _decoded(data, lambda reader: cls(reader.text(64), reader.u32(), reader.f64()), _NEGOTIATING_FORMAT)


@dataclass(frozen=True)
class Announce:
    """Opens an upload: which blob, how large. The link answers with `Stored`, then the rest of the blob follows raw."""

    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        _insist(is_blob_digest(self.sha256), "a blob's digest is 64 hex digits")
        _insist(0 < self.size_bytes <= MAX_BLOB_BYTES, f"a blob has 1 to {MAX_BLOB_BYTES} bytes")

    def encode(self) -> bytes:
        """The bytes on the wire."""
        return bytes(Writer().u8(_FORMAT).fixed(bytes.fromhex(self.sha256), 32).u64(self.size_bytes))

    @classmethod
    def decode(cls, data: bytes) -> "Announce":
        """Read the request. Raises MessageError."""
        return _decoded(data, lambda reader: cls(reader.fixed(32).hex(), reader.u64()))


@dataclass(frozen=True)
class Stored:
    """How much of an announced blob the link holds; all of it, checked and on disk, when `complete`."""

    num_bytes: int
    complete: bool

    def encode(self) -> bytes:
        """The bytes on the wire."""
        return bytes(Writer().u8(_FORMAT).u64(self.num_bytes).u8(self.complete))

    @classmethod
    def decode(cls, data: bytes) -> "Stored":
        """Read the answer. Raises MessageError."""
        return _decoded(data, lambda reader: cls(reader.u64(), reader.flag()))


@dataclass(frozen=True)
class Fetch:
    """Asks for a released blob's bytes from an offset on."""

    sha256: str
    offset: int

    def __post_init__(self) -> None:
        _insist(is_blob_digest(self.sha256), "a blob's digest is 64 hex digits")
        _insist(0 <= self.offset <= MAX_BLOB_BYTES, f"an offset is 0 to {MAX_BLOB_BYTES}")

    def encode(self) -> bytes:
        """The bytes on the wire."""
        return bytes(Writer().u8(_FORMAT).fixed(bytes.fromhex(self.sha256), 32).u64(self.offset))

    @classmethod
    def decode(cls, data: bytes) -> "Fetch":
        """Read the request. Raises MessageError."""
        return _decoded(data, lambda reader: cls(reader.fixed(32).hex(), reader.u64()))


def _insist(holds: object, rule: str) -> None:
    if not holds:
        raise MisuseError(rule)


def _decoded(data: bytes, read: Callable[[Reader], T], expected: int = _FORMAT) -> T:
    """Read a frame of the expected format to its end. A rule that the sender broke is the sender's error, not ours."""
    reader = Reader(data)
    try:
        if (version := reader.u8()) != expected:
            raise MessageError(f"a frame of format {version} came, {expected} was expected: update the older side")
        value = read(reader)
    except MisuseError as error:
        raise MessageError(f"a frame breaks a rule of the link: {error}") from error
    reader.end()
    return value


def _write_array(writer: Writer, ref: ArrayRef) -> None:
    writer.text(ref.name).text(ref.dtype).items(ref.shape, Writer.u64).fixed(bytes.fromhex(ref.sha256), 32)
    writer.u8(ref.inline is not None)
    if ref.inline is not None:
        writer.blob(ref.inline)


def _read_array(reader: Reader) -> ArrayRef:
    name, dtype = reader.text(64), reader.text(16)
    shape = tuple(reader.items(Reader.u64, MAX_DIMENSIONS))
    sha256, is_inline = reader.fixed(32).hex(), reader.flag()
    return ArrayRef(name, dtype, shape, sha256, reader.blob(INLINE_ARRAY_BYTES) if is_inline else None)


def _read_protocols(reader: Reader) -> ProtocolRange:
    lowest, highest = reader.u32(), reader.u32()
    if not 0 < lowest <= highest <= MAX_PROTOCOL:
        raise MessageError(f"protocols {lowest} to {highest} came; 1 to {MAX_PROTOCOL} were expected, in order")
    return ProtocolRange(lowest, highest)


def _read_envelope(reader: Reader) -> Envelope:
    own_id, reply_to = reader.text(32), reader.text(32)
    run_id, src_node, dst_node = reader.u64(), reader.u64(), reader.u64()
    group, created_at, ttl, message_type = reader.text(200), reader.f64(), reader.f64(), reader.text(64)
    error_code = reader.text(48) or None
    arrays = tuple(reader.items(_read_array, MAX_ARRAYS))
    return Envelope(
        message_id=own_id,
        reply_to=reply_to,
        run_id=run_id,
        src_node=src_node,
        dst_node=dst_node,
        group=group,
        created_at=created_at,
        ttl=ttl,
        message_type=message_type,
        body=reader.blob(MAX_BODY_BYTES),
        arrays=arrays,
        error_code=error_code,
    )
