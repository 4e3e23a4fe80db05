"""Messages: one encoding, and a decoder that answers any bytes with a message or a MessageError."""

import dataclasses
import struct
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure_protocols import messages as m
from dure_protocols.errors import MessageError, RefusalCode
from dure_protocols.fields import Fields

SEALED_KEY = m.SealedKey("firm-a", "firm-b", bytes(1088), bytes(48), bytes(64))
PUBLISHED = m.PublishedSum(1, 2, 3, ("firm-a", "firm-b", "firm-c"), ("firm-a", "firm-b"), bytes(32))
JOIN = m.Join("firm-a", 1, 2, 3, bytes(32), bytes(32), bytes(64))
SHARES = m.SealedShares("firm-b", bytes(82), bytes(32), bytes(32))
ESCROW = m.Escrow(bytes(32), bytes(32), bytes(48), (bytes(32),), (SHARES,))
RECEIPT = m.MaskedUpdate("firm-a", bytes(32), bytes(32), ("firm-b",), bytes(64))

SAMPLES = [
    m.Proposal(b"{}"),
    m.Approval("firm-a", bytes(32), bytes(64)),
    m.AskKeys(bytes(range(32)), 7),
    m.KeyAdvertisement("firm-a", 1, bytes(32), bytes(1184), bytes(64)),
    m.Roster(bytes(32), 1, (m.KeyAdvertisement("firm-a", 1, bytes(32), bytes(1184), bytes(64)),)),
    m.KeyCiphertexts("firm-a", 1, (SEALED_KEY,)),
    m.Establish(bytes(32), 1, (SEALED_KEY,)),
    m.Established("firm-a", 1, bytes(32)),
    m.Invitation(bytes(32), 1, 2, 3, (PUBLISHED,), (m.Snapshot(bytes(32), (JOIN,)),)),
    JOIN,
    m.EscrowedJoin(JOIN, ESCROW),
    m.Cohort(bytes(32), 1, 2, 3, (JOIN,), (m.Delivery("firm-a", bytes(32), SHARES),)),
    RECEIPT,
    m.VoteRequest(bytes(32), 1, 2, 3, (RECEIPT,)),
    m.Vote("firm-a", bytes(32), bytes(32), bytes(64)),
    m.ReleaseRequest(bytes(32), 1, 2, 3, (RECEIPT,), (m.Vote("firm-a", bytes(32), bytes(32), bytes(64)),)),
    m.Release("firm-a", bytes(32), bytes(32), (("firm-b", bytes(33)),), (("firm-c", bytes(33)),), bytes(64)),
    m.Finish(bytes(32), ()),
    m.Finished("firm-a", bytes(32)),
    m.Refusal("firm-a", RefusalCode.ROSTER, 4),
    m.Absence("firm-a", m.AbsenceReason.MAINTENANCE, 1_772_460_000),
    m.Hello(),
    m.Present("firm-a"),
]


def test_every_message_has_a_sample_here():
    assert {type(sample) for sample in SAMPLES} == set(m._CLASSES.values())


@pytest.mark.parametrize("message", SAMPLES, ids=lambda s: type(s).__name__)
def test_what_is_encoded_is_decoded(message):
    assert m.decode(m.encode(message)) == message


def test_a_join_s_bytes_field_by_field():
    join = m.Join("firm-a", 1, 2, 3, b"\x0a" * 32, b"\x0c" * 32, b"\x0b" * 64)
    expected = bytes([10]) + struct.pack(">I", 6) + b"firm-a" + struct.pack(">QQQ", 1, 2, 3)
    assert m.encode(join) == expected + b"\x0a" * 32 + b"\x0c" * 32 + b"\x0b" * 64


@pytest.mark.parametrize("message", SAMPLES, ids=lambda s: type(s).__name__)
def test_truncated_and_extended_messages_are_refused(message):
    data = m.encode(message)
    for cut in {0, len(data) // 2, len(data) - 1}:
        with pytest.raises(MessageError):
            m.decode(data[:cut])
    with pytest.raises(MessageError, match="left over"):
        m.decode(data + b"\x00")


@given(sample=st.sampled_from(SAMPLES), position=st.floats(0, 1), value=st.integers(0, 255))
def test_a_changed_byte_gives_a_message_or_a_typed_refusal(sample, position, value):
    data = bytearray(m.encode(sample))
    data[int(position * (len(data) - 1))] = value
    try:
        again = m.decode(bytes(data))
    except MessageError:
        return
    assert m.encode(again) == bytes(data)


@given(st.binary(max_size=300))
def test_any_bytes_give_a_message_or_a_typed_refusal(data):
    try:
        again = m.decode(data)
    except MessageError:
        return
    assert m.encode(again) == data


@pytest.mark.parametrize("length", [2**32 - 1, 5000])
def test_a_huge_declared_length_is_refused_before_memory_is_taken(length):
    with pytest.raises(MessageError, match="at most"):
        m.decode(bytes([2]) + struct.pack(">I", length))


def test_a_message_over_the_limit_is_refused():
    with pytest.raises(MessageError, match="at most"):
        m.decode(bytes(m.MAX_MESSAGE_BYTES + 1))


def test_a_release_shows_no_seed():
    assert repr(m.Release("firm-a", bytes(32), b"\xaa" * 32, (), (), bytes(64))) == "Release(firm='firm-a')"


def test_every_message_is_frozen_and_every_field_has_a_codec():
    for cls in m._CLASSES.values():
        assert issubclass(cls, Fields)
        assert cls.__dataclass_params__.frozen
        hints = get_type_hints(cls, include_extras=True)
        assert all(hasattr(hints[field.name], "__metadata__") for field in dataclasses.fields(cls))
