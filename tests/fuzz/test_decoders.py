"""Every decoder on a short run of damaged bytes, and that no decoder of the protocol goes without a target.

The long run: `make fuzz ARGS='--seconds 600 --target messages'`.
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from dure_protocols.errors import MessageError
from dure_protocols.wire import Reader
from tests.fuzz import decoders
from tests.fuzz.campaign import run
from tests.fuzz.judge import judge, measuring
from tests.fuzz.kept import kept, kept_for
from tests.fuzz.target import Target
from tests.fuzz.targets import all_targets

INPUTS = 150
NO_DECODERS = {
    "dure_protocols.frames:ArrayRef.view": "bytes whose length its constructor has checked",
    "dure_protocols.ledger:append": "writes",
    "dure_protocols.secagg.codec:warm_up": "words of its own making",
    "dure_protocols.secagg.published:check_sum": "hands the words on to `codec.carries_tag`",
    "dure_protocols.secagg.run:run_secure_aggregation": "plays all parties",
    "dure_protocols.secagg.server:Attempt.unmask": "messages that were decoded",
    "dure_protocols.secagg.tags:split": "random bytes of its own caller",
}
NO_MESSAGES = {
    "dure_protocols.enrolment:_Frozen": "a base class",
    "dure_protocols.job:_Frozen": "a base class",
    "dure_protocols.secagg.handshake:EpochKeys": "never written",
}


@pytest.mark.parametrize("target", all_targets(), ids=lambda target: target.name)
def test_damaged_bytes_are_refused_by_type_or_read_within_the_limit_of_memory(target):
    tally = run(target, "short", count=len(target.seeds) + INPUTS)
    assert not tally.failures, "\n".join(failure.told() for failure in tally.failures)
    assert tally.inputs >= INPUTS


@pytest.mark.parametrize("found", kept(), ids=lambda found: f"{found.target}: {found.name}")
def test_what_once_was_read_wrongly_is_not_any_more(found):
    (target,) = (target for target in all_targets() if target.name == found.target)
    with measuring():
        assert judge(target, found.data).failure is None


def reached():
    """Functions and classes that the targets' seeds and kept inputs go through."""
    functions, classes = set(), set()
    for target in all_targets():
        for data in [*target.seeds, *kept_for(target.name)]:
            with decoders.watching() as seen:
                judge_quietly(target, data)
            functions |= seen.functions
            classes |= seen.classes
    return functions, classes


def judge_quietly(target: Target, data: bytes) -> None:
    with contextlib.suppress(target.refusals):
        target.decode(data)


def test_every_decoder_of_the_protocol_has_a_target():
    functions, classes = reached()
    found = {name for name in decoders.found_functions() if name.startswith("dure_protocols.")}
    assert found - functions == set(NO_DECODERS)
    reading = classes | decoders.inside_models(classes)
    assert {name for name, cls in decoders.found_classes().items() if cls not in reading} == set(NO_MESSAGES)


def target_of(decode: Callable[[bytes], object], **options: object) -> Target:
    plain = Target("planted", decode, (MessageError,), [b"\x00\x00\x00\x02ab", b"\x00\x00\x00\x00"], per_byte=16)
    return replace(plain, **options)


def honest(data: bytes) -> bytes:
    reader = Reader(data)
    value = reader.blob(64)
    reader.end()
    return value


def encoded(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def trusting(data: bytes) -> bytes:
    """Takes the memory that a length announces before it looks."""
    size = int.from_bytes(data[:4], "big")
    return bytes(min(size, 1 << 24))[: len(data)]


def loose(data: bytes) -> bytes:
    """Takes what is left over for good."""
    return Reader(data).blob(64)


def careless(data: bytes) -> bytes:
    return data[4 : 5 + data[3]]


def test_control_an_honest_decoder_passes():
    assert not run(target_of(honest, encode=encoded), "planted", count=2000).failures


@pytest.mark.parametrize(
    ("decode", "options", "told"),
    [
        (careless, {}, "IndexError"),
        (trusting, {}, "allocation"),
        (loose, {"encode": encoded}, "canonical"),
    ],
    ids=["another exception", "memory by a length field", "bytes left over"],
)
def test_a_planted_defect_is_found(decode, options, told):
    tally = run(target_of(decode, **options), "planted", count=2000)
    assert any(told in failure.what for failure in tally.failures), [failure.what for failure in tally.failures]


def test_a_run_is_repeated_by_its_seed():
    (target,) = (target for target in all_targets() if target.name == "frames/fetch")
    one, other, another = (run(target, seed, count=300) for seed in ("a", "a", "b"))
    assert (one.values, one.refusals) == (other.values, other.refusals)
    assert (one.values, one.refusals) != (another.values, another.refusals)
