"""The link's frames: spelled out, round-tripped, and refused when anything about them is wrong."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure_protocols.errors import MessageError, MisuseError
from dure_protocols.frames import (
    INLINE_ARRAY_BYTES,
    MAX_BLOB_BYTES,
    MAX_BODY_BYTES,
    MAX_ENVELOPE_BYTES,
    Announce,
    ArrayRef,
    Envelope,
    Fetch,
    Place,
    Stored,
    Subscribe,
    Welcome,
    is_blob_digest,
    is_message_id,
    message_id,
    node_id,
    raw_bytes,
    reply_id,
)
from dure_protocols.versions import ProtocolRange
from dure_protocols.wire import Writer

NODE = node_id("millers", "mill-a")
SMALL = ArrayRef.of("small", np.arange(3, dtype=np.uint16))
LARGE = ArrayRef.of("masked", np.arange(9000, dtype=np.uint64))


def request(**changes: Any) -> Envelope:
    fields: dict[str, Any] = {
        "run_id": 5,
        "dst_node": NODE,
        "group": "steel/1/0/join",
        "message_type": "query.dure",
        "body": b"body",
        "arrays": (SMALL, LARGE),
        "created_at": 1.5,
        "ttl": 60.0,
    }
    return Envelope.request(**(fields | changes))


def test_an_envelope_is_spelled_field_by_field() -> None:
    ref = SMALL
    assert ref.inline is not None
    expected = Writer().u8(1).text(message_id(5, "steel/1/0/join", "query.dure", NODE)).text("")
    expected.u64(5).u64(1).u64(NODE).text("steel/1/0/join").f64(1.5).f64(60.0).text("query.dure").text("")
    expected.u32(1).text("small").text("uint16").u32(1).u64(3).fixed(bytes.fromhex(ref.sha256), 32)
    expected.u8(1).blob(b"\0\0\1\0\2\0").blob(b"body")
    assert request(arrays=(ref,)).encode() == bytes(expected)


def test_an_envelope_comes_back_as_it_was() -> None:
    for envelope in (request(), request().reply(b"yes", (SMALL,), created_at=2.0), request(arrays=(), body=b"")):
        assert Envelope.decode(envelope.encode()) == envelope


def test_an_error_reply_carries_a_code_and_nothing_else() -> None:
    reply = request().reply(error_code="out-of-order", created_at=2.0)
    assert Envelope.decode(reply.encode()).error_code == "out-of-order"
    with pytest.raises(MisuseError, match="neither body nor arrays"):
        request().reply(b"row 17 has a bad value", error_code="internal", created_at=2.0)


def test_a_reply_answers_the_message_it_was_made_for_and_no_other() -> None:
    message, another = request(), request(group="steel/1/1/join")
    reply = message.reply(b"", created_at=2.0)
    assert reply.answers(message)
    assert not reply.answers(another)
    assert not message.answers(message)


OLD_SUBSCRIPTION = bytes.fromhex("01 00000005") + b"0.1.0"
NEW_SUBSCRIPTION = bytes.fromhex("02 00000005") + b"0.2.0" + bytes.fromhex("00000001 00000002")
WELCOME = bytes.fromhex("02 00000005") + b"0.2.0" + bytes.fromhex("00000002 41e0000000000000")


@pytest.mark.parametrize(
    ("frame", "data"),
    [
        pytest.param(Subscribe("0.1.0"), OLD_SUBSCRIPTION, id="a subscription from before there was a choice"),
        pytest.param(Subscribe("0.2.0", ProtocolRange(1, 2)), NEW_SUBSCRIPTION, id="a subscription with a range"),
        pytest.param(Welcome("0.2.0", 2, 2.0**31), WELCOME, id="the link's first word"),
    ],
)
def test_what_is_said_first_is_spelled_field_by_field(frame: Subscribe | Welcome, data: bytes) -> None:
    assert frame.encode() == data
    assert type(frame).decode(data) == frame


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        pytest.param(Subscribe, OLD_SUBSCRIPTION + bytes(8), id="a range in the old form"),
        pytest.param(Subscribe, NEW_SUBSCRIPTION[:-1], id="half a range"),
        pytest.param(Subscribe, NEW_SUBSCRIPTION[:-4] + bytes(4), id="a range that ends before it begins"),
        pytest.param(Subscribe, NEW_SUBSCRIPTION[:-8] + bytes.fromhex("00000000 00000002"), id="protocol 0"),
        pytest.param(Subscribe, NEW_SUBSCRIPTION[:-8] + bytes.fromhex("00000001 00010000"), id="protocol 65536"),
        pytest.param(
            Subscribe, NEW_SUBSCRIPTION[:-8] + bytes.fromhex("00000001 00000001"), id="protocol 1 in format 2"
        ),
        pytest.param(Subscribe, b"\x03" + NEW_SUBSCRIPTION[1:], id="a format of later"),
        pytest.param(Welcome, b"\x01" + WELCOME[1:], id="a welcome of format 1"),
        pytest.param(Welcome, WELCOME[:-12] + bytes(4) + WELCOME[-8:], id="a welcome to protocol 0"),
        pytest.param(Welcome, WELCOME[:-8] + bytes.fromhex("7ff8000000000000"), id="a time that is no number"),
        pytest.param(Welcome, WELCOME + b"x", id="left-over bytes"),
    ],
)
def test_what_is_said_first_in_another_form_is_refused(kind: type[Subscribe | Welcome], data: bytes) -> None:
    with pytest.raises(MessageError):
        kind.decode(data)


def test_ids_follow_from_what_a_message_is_and_differ_when_that_differs() -> None:
    ids = {
        message_id(5, "steel/1/0/join", "query.dure", NODE),
        message_id(6, "steel/1/0/join", "query.dure", NODE),
        message_id(5, "steel/1/1/join", "query.dure", NODE),
        message_id(5, "steel/1/0/join", "train.dure", NODE),
        message_id(5, "steel/1/0/join", "query.dure", NODE + 1),
    }
    assert len(ids) == 5
    assert all(map(is_message_id, ids))
    assert request().message_id == request(created_at=9.0, body=b"other").message_id


def test_a_firms_node_outlives_keys_and_differs_between_firms_and_consortia() -> None:
    nodes = [node_id("millers", "mill-a"), node_id("millers", "mill-b"), node_id("bakers", "mill-a")]
    assert len(set(nodes)) == 3
    assert all(1 < node < 1 << 63 for node in nodes)


@pytest.mark.parametrize("text", ["", "0" * 31, "0" * 33, "../" + "0" * 29, "A" * 32, "0" * 31 + "\n", "0" * 32 + "\n"])
def test_what_may_not_be_a_file_name_is_no_id(text: str) -> None:
    assert not is_message_id(text)
    assert not is_blob_digest(text * 2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"group": ""}, "a group is"),
        ({"group": "a b"}, "a group is"),
        ({"group": "x" * 201}, "a group is"),
        ({"message_type": "steal"}, "message type"),
        ({"message_type": "query."}, "message type"),
        ({"run_id": 1 << 63}, "63 bits"),
        ({"created_at": float("nan")}, "Unix time"),
        ({"ttl": 0.0}, "ttl"),
        ({"ttl": float("inf")}, "ttl"),
        ({"body": bytes(MAX_BODY_BYTES + 1)}, "at most"),
        ({"arrays": (SMALL, SMALL)}, "share a name"),
        ({"arrays": (SMALL,) * 65}, "at most 64"),
    ],
)
def test_an_envelope_that_breaks_a_rule_cannot_be_made(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(MisuseError, match=reason):
        request(**changes)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: ArrayRef("../x", "uint16", (1,), "0" * 64, bytes(2)), "array's name"),
        (lambda: ArrayRef("x", "object", (1,), "0" * 64, bytes(2)), "array's type"),
        (lambda: ArrayRef("x", "uint16", (1,) * 9, "0" * 64, bytes(2)), "dimensions"),
        (lambda: ArrayRef("x", "uint16", (-1,), "0" * 64), "lengths"),
        (lambda: ArrayRef("x", "uint64", (MAX_BLOB_BYTES,), "0" * 64), "at most"),
        (lambda: ArrayRef("x", "uint16", (9000,), "../../etc/passwd"), "digest"),
        (lambda: ArrayRef("x", "uint16", (9000,), "0" * 64, bytes(18000)), "inline"),
        (lambda: ArrayRef("x", "uint16", (2,), "0" * 64), "inline"),
        (lambda: ArrayRef("x", "uint16", (2,), "0" * 64, bytes(2)), "fill its shape"),
        (lambda: ArrayRef("x", "uint16", (2,), "0" * 64, bytes(4)), "matches its digest"),
        (lambda: ArrayRef.of("x", np.array(["text"])), "array's type"),
        (lambda: Subscribe("one\ntwo"), "version"),
        (lambda: Announce("0" * 64, 0), "1 to"),
        (lambda: Announce("0" * 63, 1), "digest"),
        (lambda: Fetch("0" * 64, -1), "offset"),
    ],
)
def test_a_frame_that_breaks_a_rule_cannot_be_made(make: Callable[[], object], reason: str) -> None:
    with pytest.raises(MisuseError, match=reason):
        make()


def test_what_breaks_a_rule_on_the_wire_is_the_senders_error() -> None:
    data = bytearray(request().encode())
    data[5] ^= 1  # a digit of the message id
    with pytest.raises(MessageError, match="breaks a rule of the link"):
        Envelope.decode(bytes(data))


def test_an_oversized_envelope_is_refused_before_it_is_read() -> None:
    with pytest.raises(MessageError, match="at most"):
        Envelope.decode(bytes(MAX_ENVELOPE_BYTES + 1))


def test_a_frame_of_a_later_format_says_that_one_side_is_older() -> None:
    with pytest.raises(MessageError, match="update the older side"):
        Envelope.decode(b"\x02" + request().encode()[1:])


@given(cut=st.integers(min_value=0, max_value=10_000), tail=st.binary(min_size=1, max_size=8))
def test_a_truncated_frame_and_left_over_bytes_are_refused(cut: int, tail: bytes) -> None:
    data = request().encode()
    with pytest.raises(MessageError):
        Envelope.decode(data[: cut % len(data)])
    with pytest.raises(MessageError):
        Envelope.decode(data + tail)


@given(at=st.integers(min_value=0, max_value=10_000), value=st.integers(min_value=1, max_value=255))
def test_an_altered_envelope_is_refused_or_reads_as_exactly_what_its_bytes_say(at: int, value: int) -> None:
    data = bytearray(request().encode())
    data[at % len(data)] ^= value
    try:
        envelope = Envelope.decode(bytes(data))
    except MessageError:
        return
    assert envelope.encode() == bytes(data)


@given(data=st.binary(max_size=400))
@pytest.mark.parametrize("kind", [Envelope, Subscribe, Welcome, Announce, Stored, Fetch])
def test_arbitrary_bytes_are_refused_or_are_the_one_spelling_of_a_frame(
    kind: type[Envelope | Subscribe | Welcome | Announce | Stored | Fetch], data: bytes
) -> None:
    for candidate in (data, b"\x01" + data, b"\x02" + data):
        try:
            frame = kind.decode(candidate)
        except MessageError:
            continue
        assert frame.encode() == candidate


@given(digest=st.binary(min_size=32, max_size=32), number=st.integers(min_value=1, max_value=MAX_BLOB_BYTES))
def test_blob_requests_come_back_as_they_were(digest: bytes, number: int) -> None:
    frames = (Announce(digest.hex(), number), Fetch(digest.hex(), number), Stored(number, complete=number % 2 == 0))
    for frame in frames:
        assert type(frame).decode(frame.encode()) == frame


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u2", "f4", "f8", "i8"])
def test_an_arrays_bytes_are_little_endian_whatever_it_was_made_of(dtype: str, order: str) -> None:
    array = np.arange(12, dtype=f"{order}{dtype}").reshape(3, 4)
    ref = ArrayRef.of("a", array)
    assert ref.inline == array.astype(f"<{dtype}").tobytes()
    assert np.array_equal(ref.view(ref.inline), array)


def test_a_large_arrays_bytes_are_taken_without_a_copy() -> None:
    array = np.arange(9000, dtype=np.uint64)
    assert np.shares_memory(np.frombuffer(raw_bytes(array), np.uint8), array)
    assert LARGE.sha256 == hashlib.sha256(array.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("size_bytes", "is_blob"), [(INLINE_ARRAY_BYTES, False), (INLINE_ARRAY_BYTES + 1, True), (0, False)]
)
def test_arrays_above_the_limit_travel_as_blobs(size_bytes: int, is_blob: bool) -> None:
    assert ArrayRef.of("a", np.zeros(size_bytes, np.uint8)).is_blob is is_blob


def test_a_place_is_spelled_by_its_group() -> None:
    place = Place("steel", 3, 1, "cohort")
    assert Place.of(place.group) == place
    assert Place.of("something-else") == Place("something-else")
    assert reply_id("0" * 32) != reply_id("1" * 32)


def test_a_repr_shows_kind_and_group_and_no_body() -> None:
    assert "secret" not in repr(request(body=b"secret"))
    assert "steel/1/0/join" in repr(request())
