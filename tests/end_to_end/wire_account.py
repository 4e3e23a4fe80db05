"""What an agent sent, read off the recorded bytes without any code of the agent's link, and held against its ledger.

HTTP/2 is taken apart by hyperframe and hpack, gRPC's and HTTP/1.1's own framing by hand. The one thing shared with the
product is the meaning of a message's bytes: `Envelope.decode` and `messages.decode`, which refuse what is left over.
"""

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version

from hpack import Decoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from dure_protocols import messages
from dure_protocols.enrolment import JoinRequest
from dure_protocols.errors import RefusalCode
from dure_protocols.frames import Announce, Envelope, Fetch, Place, Subscribe
from dure_protocols.heads import Statement
from dure_protocols.leaving import Leave
from dure_protocols.ledger import LedgerRecord, RecordKind
from tests.end_to_end.recorder import Connection

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES = 9
GRPC_PREFIX_BYTES = 5
VERSION = version("dure")
CONTROL_FRAMES = (SettingsFrame, WindowUpdateFrame, PingFrame, RstStreamFrame, GoAwayFrame)

METHODS = {
    f"/dure.link.Firm/{name}" for name in ("Subscribe", "Reply", "Upload", "Download", "Renew", "Witness", "Leave")
}
HEADERS = {
    ":method": r"POST",
    ":scheme": r"https",
    ":path": "|".join(METHODS),
    ":authority": r"(127\.0\.0\.1|198\.18\.77\.1):\d+",
    "te": r"trailers",
    "content-type": r"application/grpc",
    "user-agent": r"grpc-python/[\d.]+ grpc-c/[\d.]+ \(\w+; chttp2\)",
    "grpc-accept-encoding": r"identity, deflate, gzip",
    "accept-encoding": r"identity, gzip|identity",
    "grpc-timeout": r"\d{1,8}[HMSmun]",
}
"""All that may stand in a request's headers: gRPC's own, with values that say nothing of a firm's data."""

HTTPS_REQUESTS = {
    r"GET /api/v1/enrolment/root HTTP/1\.1": False,
    r"POST /api/v1/enrolment/join HTTP/1\.1": True,
    r"GET /api/v1/enrolment/certificates/[0-9a-f]{64} HTTP/1\.1": False,
}
"""Every request of joining, and whether it has a body."""

HTTPS_HEADERS = {
    "host": r"(127\.0\.0\.1|198\.18\.77\.1):\d+",
    "accept": r"application/json",
    "user-agent": rf"dure-agent/{re.escape(VERSION)}",
    "content-type": r"application/json",
    "content-length": r"\d{1,4}",
}

REPLIES: dict[type[object], RecordKind] = {
    messages.Approval: RecordKind.APPROVAL,
    messages.KeyAdvertisement: RecordKind.KEYS,
    messages.KeyCiphertexts: RecordKind.CIPHERTEXTS,
    messages.Established: RecordKind.ESTABLISHED,
    messages.Join: RecordKind.JOIN,
    messages.EscrowedJoin: RecordKind.JOIN,
    messages.MaskedUpdate: RecordKind.MASKED_UPDATE,
    messages.Vote: RecordKind.VOTE,
    messages.Release: RecordKind.RELEASE,
    messages.Finished: RecordKind.FINISHED,
    messages.Refusal: RecordKind.REFUSAL,
}
"""The design's section 7, by hand: what a firm may answer."""


class NotAllowedError(AssertionError):
    """The agent sent something that section 7 does not name, or in a form that could carry more than it says."""


class UnaccountedError(AssertionError):
    """Wire and ledger differ."""


@dataclass(frozen=True)
class Departure:
    """One thing that left: what it is, its bytes, and where it belongs as far as the bytes themselves tell."""

    kind: RecordKind
    content: bytes
    arrived: float
    place: Place | None = None
    message_id: str = ""

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.content).digest()

    def __repr__(self) -> str:
        return f"{self.kind.value} of {len(self.content)} bytes"


@dataclass
class Call:
    """One gRPC call: its method and its messages, each with the time when its last byte had arrived."""

    path: str
    messages: list[tuple[float, bytes]] = field(default_factory=list)
    data: bytes = b""
    arrivals: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class Overhead:
    """Bytes beside the payload, by what they are."""

    by_part: Counter[str] = field(default_factory=Counter)

    @property
    def num_bytes(self) -> int:
        return sum(self.by_part.values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {size}" for name, size in sorted(self.by_part.items()))


def departures_over_link(connection: Connection, overhead: Overhead) -> list[Departure]:
    """Everything one connection to the link carried. Raises NotAllowedError for anything but the named messages."""
    return [item for call in _calls(connection, overhead) for item in _of_call(call)]


def departures_over_https(connection: Connection) -> list[Departure]:
    """Every HTTP/1.1 request of a connection, whole: line, headers, body. Raises NotAllowedError."""
    found, stream, offset = [], connection.stream, 0
    while offset < len(stream):
        end = stream.find(b"\r\n\r\n", offset)
        _allow(end >= 0, f"{len(stream) - offset} bytes over HTTPS are no request")
        line, *fields = stream[offset:end].decode("ascii").split("\r\n")
        has_body = next((body for form, body in HTTPS_REQUESTS.items() if re.fullmatch(form, line)), None)
        _allow(has_body is not None, f"the request {line!r} came")
        headers = dict(field.lower().split(": ", 1) for field in fields)
        _allow(len(headers) == len(fields), "a header came twice")
        for name, value in headers.items():
            _allow(re.fullmatch(HTTPS_HEADERS.get(name, ""), value), f"a header {name}: {value!r} came")
        stop = end + 4 + int(headers.get("content-length", "0"))
        _allow((stop > end + 4) == has_body, f"{line!r} has {stop - end - 4} bytes of body")
        if has_body:
            said = JoinRequest.model_validate_json(stream[end + 4 : stop])
            _allow(said.model_dump_json().encode() == stream[end + 4 : stop], "a request to join has other bytes")
            _allow(said.agent_version == VERSION, "an agent's version is something else")
        found.append(Departure(RecordKind.ENROLMENT, stream[offset:stop], connection.arrival_of(stop)))
        offset = stop
    return found


def reconcile(departures: Iterable[Departure], records: Sequence[LedgerRecord], *, exact: bool = True) -> int:
    """Hold what left against the ledger. Returns the bytes that left. Raises UnaccountedError.

    (1) Each departure has a record of its own with its kind, size, digest and, where it says so itself, its job, round,
    attempt and message; (2) the record is older than the arrival; (3) with `exact`, no record is left over, but for
    those about the ledger itself, and the sums of bytes are equal. Without `exact` (a connection was cut, an agent was
    killed) the ledger may say more than left, never less.
    """
    open_records = [record for record in records if record.entry.kind is not RecordKind.REPAIR]
    total = 0
    for departure in departures:
        total += len(departure.content)
        record = next((each for each in open_records if _is_of(departure, each)), None)  # (1)
        if record is None:
            raise UnaccountedError(f"{departure} left and is not in the ledger")
        open_records.remove(record)
        written = datetime.strptime(record.time, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()
        if written > departure.arrived:  # (2)
            raise UnaccountedError(f"{departure} was recorded {written - departure.arrived:.6f} s after it arrived")
    if exact and open_records:  # (3)
        raise UnaccountedError(f"{len(open_records)} records name what did not leave, first: {open_records[0].entry}")
    return total


def _is_of(departure: Departure, record: LedgerRecord) -> bool:
    entry = record.entry
    if (entry.kind, entry.size_bytes, entry.sha256) != (departure.kind, len(departure.content), departure.sha256):
        return False
    if departure.place is None:
        return True
    return (entry.job, entry.round, entry.attempt, entry.message_id) == (*departure.place[:3], departure.message_id)


def _calls(connection: Connection, overhead: Overhead) -> list[Call]:
    """Take HTTP/2 apart. Every byte of the stream is a payload's or counted as overhead."""
    stream, decoder = connection.stream, Decoder()
    _allow(stream.startswith(PREFACE) or not stream, "a connection to the link does not begin as HTTP/2 does")
    calls: dict[int, Call] = {}
    offset = len(PREFACE) if stream else 0
    overhead.by_part["preface"] += offset
    block, block_stream = b"", 0
    while offset < len(stream):
        if len(stream) - offset < FRAME_HEADER_BYTES:
            break  # cut off in mid-frame
        frame, length = Frame.parse_frame_header(memoryview(stream[offset : offset + FRAME_HEADER_BYTES]), strict=True)
        start, end = offset + FRAME_HEADER_BYTES, offset + FRAME_HEADER_BYTES + length
        if end > len(stream):
            break
        frame.parse_body(memoryview(stream[start:end]))
        _allow("PADDED" not in frame.flags, "a frame is padded")
        overhead.by_part["frame headers"] += FRAME_HEADER_BYTES
        if isinstance(frame, DataFrame):
            call = calls[frame.stream_id]
            call.data += frame.data
            call.arrivals.append((len(call.data), connection.arrival_of(end)))
        elif isinstance(frame, HeadersFrame | ContinuationFrame):
            overhead.by_part["header blocks"] += length
            block, block_stream = block + frame.data, frame.stream_id
            if "END_HEADERS" in frame.flags:
                _allow(block_stream not in calls, "a call has trailers")
                calls[block_stream] = Call(_path_of(decoder.decode(block)))
                block = b""
        else:
            _allow(isinstance(frame, CONTROL_FRAMES), f"a frame of kind {type(frame).__name__} came")
            _allow(not getattr(frame, "additional_data", b""), "a goodbye carries text")
            overhead.by_part["control frames"] += length
        offset = end
    overhead.by_part["cut off in mid-frame"] += len(stream) - offset
    for call in calls.values():
        _split(call, overhead)
    return list(calls.values())


def _path_of(headers: Iterable[tuple[str | bytes, str | bytes]]) -> str:
    """The method of a request whose every header is on the list, once."""
    found: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = _text(raw_name), _text(raw_value)
        _allow(name in HEADERS, f"a header {name!r} came")
        _allow(re.fullmatch(HEADERS[name], value), f"a header {name}: {value!r} came")
        _allow(name not in found, f"the header {name!r} came twice")
        found[name] = value
    return found[":path"]


def _split(call: Call, overhead: Overhead) -> None:
    """gRPC's messages out of a call's data: a byte (compressed?), four of length, the message."""
    offset = 0
    while offset + GRPC_PREFIX_BYTES <= len(call.data):
        prefix = call.data[offset : offset + GRPC_PREFIX_BYTES]
        end = offset + GRPC_PREFIX_BYTES + int.from_bytes(prefix[1:], "big")
        _allow(prefix[0] == 0, "a message is compressed, so its bytes are not those that were recorded")
        if end > len(call.data):
            break
        arrived = next(time for reached, time in call.arrivals if reached >= end)
        call.messages.append((arrived, call.data[offset + GRPC_PREFIX_BYTES : end]))
        overhead.by_part["gRPC prefixes"] += GRPC_PREFIX_BYTES
        offset = end
    overhead.by_part["cut off in mid-message"] += len(call.data) - offset


def _of_call(call: Call) -> list[Departure]:
    method = call.path.rpartition("/")[2]
    if method == "Upload":
        return _of_upload(call)
    _allow(len(call.messages) <= 1, f"{method} takes one message, {len(call.messages)} came")
    return [_OF_METHOD[method](arrived, content) for arrived, content in call.messages]


def _of_reply(arrived: float, content: bytes) -> Departure:
    reply = Envelope.decode(content)
    _allow(reply.reply_to, "an agent sent a message that replies to none")
    place = Place.of(reply.group)
    if reply.error_code is not None:
        RefusalCode(reply.error_code)
        return Departure(RecordKind.REFUSAL, content, arrived, place, reply.reply_to)
    message = messages.decode(reply.body)
    _allow(type(message) in REPLIES, f"an agent sent a {type(message).__name__}")
    allowed = {messages.ARRAY_MASKED} if isinstance(message, messages.MaskedUpdate) else set()
    _allow({ref.name for ref in reply.arrays} == allowed, f"arrays came with a {type(message).__name__}")
    if isinstance(message, messages.MaskedUpdate):
        _allow(message.vector_digest.hex() == reply.arrays[0].sha256, "an array came that its firm did not sign")
    return Departure(REPLIES[type(message)], content, arrived, place, reply.reply_to)


def _of_upload(call: Call) -> list[Departure]:
    """The announcement, and what followed as one thing. What is whole must look like noise, for it is masked."""
    if not call.messages:
        return []
    announced = Announce.decode(call.messages[0][1])
    found = [Departure(RecordKind.BLOB_CONTROL, call.messages[0][1], call.messages[0][0])]
    chunks = call.messages[1:]
    if not chunks:
        return found
    content = b"".join(chunk for _, chunk in chunks)
    _allow(len(content) == announced.size_bytes, "an upload is not as long as announced")
    _allow(hashlib.sha256(content).hexdigest() == announced.sha256, "an upload is not what was announced")
    _allow(len(zlib.compress(content, 9)) > 0.99 * len(content), "a blob can be compressed: it is not masked")
    return [*found, Departure(RecordKind.BLOB, content, chunks[-1][0])]


def _of_subscription(arrived: float, content: bytes) -> Departure:
    _allow(Subscribe.decode(content).agent_version == VERSION, "an agent's version is something else")
    return Departure(RecordKind.SUBSCRIPTION, content, arrived)


def _of_fetch(arrived: float, content: bytes) -> Departure:
    Fetch.decode(content)
    return Departure(RecordKind.BLOB_CONTROL, content, arrived)


def _of_renewal(arrived: float, content: bytes) -> Departure:
    lines = content.decode("ascii").strip().splitlines()
    _allow(lines[0] == "-----BEGIN CERTIFICATE REQUEST-----", "a renewal is no signing request")
    _allow(lines[-1] == "-----END CERTIFICATE REQUEST-----", "something follows a signing request")
    return Departure(RecordKind.RENEWAL, content, arrived)


def _of_statement(arrived: float, content: bytes) -> Departure:
    _allow(Statement.decode(content).encode() == content, "a statement on the ledger has other bytes")
    return Departure(RecordKind.HEAD, content, arrived)


def _of_leaving(arrived: float, content: bytes) -> Departure:
    _allow(Leave.decode(content).encode() == content, "a statement of leaving has other bytes")
    return Departure(RecordKind.LEAVE, content, arrived)


_OF_METHOD = {
    "Reply": _of_reply,
    "Subscribe": _of_subscription,
    "Download": _of_fetch,
    "Renew": _of_renewal,
    "Witness": _of_statement,
    "Leave": _of_leaving,
}


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value


def _allow(holds: object, otherwise: str) -> None:
    if not holds:
        raise NotAllowedError(otherwise)
