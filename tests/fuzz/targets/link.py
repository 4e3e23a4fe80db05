"""Targets of the link: envelopes and frames, what a coordinator says to the desk, and answers on disk."""

import hashlib
import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dure_client.agent import Agent, ledger_kind
from dure_protocols.errors import IdentityError, MessageError
from dure_protocols.frames import (
    DTYPES,
    INLINE_ARRAY_BYTES,
    Announce,
    ArrayRef,
    Envelope,
    Fetch,
    Place,
    Stored,
    Subscribe,
    Welcome,
    message_id,
    reply_id,
)
from dure_protocols.identity import check_firm_name
from dure_protocols.messages import MaskedUpdate, encode
from dure_protocols.versions import ProtocolRange
from dure_protocols.wire import Reader, Writer
from dure_server.link import desk_frames
from dure_server.link.desk_frames import Parcel, ReplyQuery
from tests.fuzz.mutate import damaged_once
from tests.fuzz.target import Target
from tests.protocols.test_frames import LARGE, NODE, SMALL, request
from tests.protocols.test_messages import JOIN, SAMPLES

REFUSED = (MessageError,)
_DIGEST = "ab" * 32
_FIRMS = ("firm-a", "firm-b", "firm-c")


def link_targets() -> Iterator[Target]:
    """One for each decoder of frames, of desk frames, and of what lies in an agent's folder of answers."""
    yield Target(
        "frames/envelope", Envelope.decode, REFUSED, _envelopes(), 24, Envelope.encode, _check_envelope, (resealed,)
    )
    for decode, encode_, seeds in (
        (Subscribe.decode, Subscribe.encode, _subscriptions()),
        (Welcome.decode, Welcome.encode, [Welcome("0.2.0", 2, 1.5e9).encode(), Welcome("1.2.3-rc.1", 1, 0.0).encode()]),
        (Announce.decode, Announce.encode, [Announce(_DIGEST, 5 << 20).encode()]),
        (Stored.decode, Stored.encode, [Stored(1 << 20, complete=False).encode(), Stored(9, complete=True).encode()]),
        (Fetch.decode, Fetch.encode, [Fetch(_DIGEST, 0).encode(), Fetch(_DIGEST, 1 << 20).encode()]),
    ):
        name = f"frames/{decode.__self__.__name__.lower()}"  # type: ignore[attr-defined]  # a bound class method
        yield Target(name, decode, REFUSED, seeds, 24, encode_)
    yield from _desk_targets()
    yield Target("answer-file", _Recalling(), (), _answer_files(), 24, check=_check_recalled)


def _subscriptions() -> list[bytes]:
    plain = [Subscribe("0.1.0"), Subscribe("1.2.3-rc.1+local"), Subscribe("0.2.0", ProtocolRange(1, 2))]
    return [subscription.encode() for subscription in plain]


def _desk_targets() -> Iterator[Target]:
    envelopes = _envelopes()
    parcels = [Parcel(firm, envelope) for firm, envelope in zip(_FIRMS, envelopes, strict=False)]
    ids = ("0" * 32, "1" * 32, "ab" * 16)
    yield Target(
        "desk/parcel", Parcel.decode, REFUSED, [parcel.encode() for parcel in parcels], 16, Parcel.encode, _check_parcel
    )
    pushes = [desk_frames.encode_push(parcels[:count]) for count in (0, 1, 3)]
    yield Target("desk/push", desk_frames.decode_push, REFUSED, pushes, 24, desk_frames.encode_push, _check_parcels)
    queries = [ReplyQuery(ids[:count], wait).encode() for count, wait in ((0, True), (3, False))]
    yield Target("desk/query", ReplyQuery.decode, REFUSED, queries, 24, ReplyQuery.encode)
    texts = desk_frames.encode_texts
    yield Target("desk/ids", desk_frames.decode_ids, REFUSED, [texts(ids), texts(())], 24, texts)
    yield Target("desk/digests", desk_frames.decode_digests, REFUSED, [texts([_DIGEST, "0" * 64])], 24, texts)
    presence = [desk_frames.encode_presence(dict.fromkeys(_FIRMS[:count], "0.1.0")) for count in (0, 1, 3)]
    yield Target(
        "desk/presence",
        desk_frames.decode_presence,
        REFUSED,
        presence,
        48,
        desk_frames.encode_presence,
        lambda connected: [_check_name(firm) for firm in connected],
    )
    run = desk_frames.encode_run
    yield Target("desk/run", desk_frames.decode_run, REFUSED, [run(0), run(2**63 - 1)], 8, run, _check_run)


def _envelopes() -> tuple[bytes, ...]:
    message = request()
    empty = ArrayRef.of("empty", np.zeros((0, 3), np.float64))
    flags = ArrayRef.of("flags", np.array([[True], [False]]))
    made = (
        message,
        request(body=encode(JOIN), arrays=(empty, flags, SMALL)),
        request(arrays=(), body=b"", group="hello"),
        message.reply(encode(JOIN), (LARGE,), created_at=2.0),
        message.reply(error_code="out-of-order", created_at=2.0),
    )
    return tuple(envelope.encode() for envelope in made)


def _check_envelope(envelope: Envelope) -> None:
    """What reads an envelope next must take it: arrays become numpy's, and its place goes into the ledger."""
    for ref in envelope.arrays:
        if ref.inline is not None:
            ref.view(ref.inline)
    place = Place.of(envelope.group)
    Writer().text(place.job).u64(place.round).u64(place.attempt)


def _check_name(firm: str) -> None:
    try:
        check_firm_name(firm)
    except IdentityError as error:
        raise AssertionError(f"it names a firm {firm!r}") from error


def _check_parcel(parcel: Parcel) -> None:
    _check_name(parcel.firm)


def _check_parcels(parcels: Sequence[Parcel]) -> None:
    for parcel in parcels:
        _check_parcel(parcel)


def _check_run(run_id: int) -> None:
    assert run_id < 1 << 63, f"the journal has no run {run_id}"


class _Recalling:
    """An agent that finds bytes where it keeps its answer to a message."""

    def __init__(self) -> None:
        self._kept_until_exit = tempfile.TemporaryDirectory(prefix="dure-fuzz-")
        folder = Path(self._kept_until_exit.name)
        # Recalling an answer takes neither link nor app.
        self._agent = Agent(folder, NODE, None, None, clock=lambda: 2.0)  # type: ignore[arg-type]
        self._file = folder / "answers" / "answer"
        self.message = request()

    def __call__(self, data: bytes) -> Envelope | None:
        self._file.write_bytes(data)
        return self._agent._recall(self._file, self.message)


def _check_recalled(reply: Envelope | None) -> None:
    assert reply is not None, "an answer that is on disk was not there"
    assert reply.answers(request()), "it is the answer to another message"
    ledger_kind(reply)


def _answer_files() -> tuple[bytes, ...]:
    message = request()
    receipt = next(sample for sample in SAMPLES if isinstance(sample, MaskedUpdate))
    vector = ArrayRef.of("masked", np.arange(9000, dtype=np.uint64))
    made = (
        message.reply(encode(JOIN), created_at=2.0),
        message.reply(encode(receipt), (vector,), created_at=2.0),
        message.reply(error_code="out-of-order", created_at=2.0),
    )
    return tuple(envelope.encode() for envelope in made)


_GROUPS = ("x", "job/1/2/p", "job/007/1/p", f"job/{2**64}/0/p", f"job/1/{10**60}/p", "job/1/2/3/4", "a/b/c/d", "////")
_SHAPES = ((), (0,), (0, 1 << 62), (1 << 62, 0, 1 << 62), (1,) * 8, (0,) * 8, (3,), (1, 3), (2**63 - 1, 0))
_NUMBERS = (0, 1, 2, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


@dataclass
class Loose:
    """An envelope's fields, taken apart without a check of what they say. arrays: name, type, shape, content."""

    reply_to: str
    numbers: list[int]
    group: str
    times: tuple[float, float]
    message_type: str
    error_code: str
    arrays: list[tuple[str, str, tuple[int, ...], bytes | None]]
    body: bytes

    @classmethod
    def read(cls, data: bytes) -> "Loose":
        reader = Reader(data)
        reader.u8()
        reader.text()
        made = cls(
            reader.text(),
            [reader.u64(), reader.u64(), reader.u64()],
            reader.text(),
            (reader.f64(), reader.f64()),
            reader.text(),
            reader.text(),
            reader.items(cls._read_array, 64),
            reader.blob(1 << 20),
        )
        reader.end()
        return made

    @staticmethod
    def _read_array(reader: Reader) -> tuple[str, str, tuple[int, ...], bytes | None]:
        name, dtype, shape = reader.text(), reader.text(), tuple(reader.items(Reader.u64, 64))
        reader.fixed(32)
        return name, dtype, shape, reader.blob(1 << 16) if reader.u8() else None

    def encode(self) -> bytes:
        """The bytes, with the id that follows from the fields and the digests that follow from the contents."""
        run_id, source, node = self.numbers
        own_id = reply_id(self.reply_to) if self.reply_to else message_id(run_id, self.group, self.message_type, node)
        writer = Writer().u8(1).text(own_id).text(self.reply_to).u64(run_id).u64(source).u64(node).text(self.group)
        writer.f64(self.times[0]).f64(self.times[1]).text(self.message_type).text(self.error_code)
        return bytes(writer.items(self.arrays, self._write_array).blob(self.body))

    @staticmethod
    def _write_array(writer: Writer, array: tuple[str, str, tuple[int, ...], bytes | None]) -> None:
        name, dtype, shape, content = array
        writer.text(name).text(dtype).items(shape, Writer.u64).fixed(hashlib.sha256(content or b"").digest(), 32)
        writer.u8(content is not None)
        if content is not None:
            writer.blob(content)


def resealed(data: bytes, chance: random.Random) -> bytes:
    """An envelope with another field, and the id and digests that belong to it: what a sender could have made."""
    try:
        loose = Loose.read(data)
    except MessageError:
        return data
    match chance.randrange(5):
        case 0:
            loose.group = chance.choice(_GROUPS)
        case 1:
            loose.numbers[chance.randrange(3)] = chance.choice(_NUMBERS)
        case 2:
            loose.body = damaged_once(loose.body, chance)
        case 3:
            loose.error_code = chance.choice(("", "internal", "no-such-code", "x" * 48))
        case _ if loose.arrays:
            at = chance.randrange(len(loose.arrays))
            name, _, shape, _ = loose.arrays[at]
            dtype, shape = chance.choice(sorted(DTYPES)), chance.choice((shape, *_SHAPES))
            size = math.prod(shape) * np.dtype(dtype).itemsize
            loose.arrays[at] = name, dtype, shape, bytes(size) if size <= INLINE_ARRAY_BYTES else None
    return loose.encode()
