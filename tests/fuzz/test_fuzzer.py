"""The fuzzer itself: a bug that is planted is found, a decoder without one is left in peace."""

import json
import random
from collections.abc import Callable
from itertools import islice

import pytest

from dure_protocols.errors import MessageError
from dure_protocols.invitation import InvitationError, read_invitation
from dure_protocols.wire import Reader, Writer
from tests.fuzz import __main__ as command
from tests.fuzz import campaign, judge, mutate
from tests.fuzz.campaign import Tally, inputs, run
from tests.fuzz.mutate import GENERIC, LONGEST_BYTES, damaged, num_systematic, systematic
from tests.fuzz.target import Target
from tests.fuzz.targets import all_targets
from tests.protocols.test_invitation import INVITATION

SEED = bytes(Writer().text("firm-a").u64(7).blob(b"0123456789"))
Value = tuple[str, int, bytes]


def read(data: bytes) -> Value:
    """A decoder as they should be."""
    reader = Reader(data)
    value = reader.text(64), reader.u64(), reader.blob(64)
    reader.end()
    return value


def written(value: Value) -> bytes:
    return bytes(Writer().text(value[0]).u64(value[1]).blob(value[2]))


def target_of(decode: Callable[[bytes], object], **more: object) -> Target:
    return Target("planted/bug", decode, (MessageError,), [SEED], 16, **more)  # type: ignore[arg-type]


def fuzzed(decode: Callable[[bytes], object], *, count: int = 3000, **more: object) -> Tally:
    return run(target_of(decode, **more), "seed", count=count)


def raising(data: bytes) -> Value:
    value = read(data)
    return value[0], 100 // (value[1] - (1 << 64) + 1), value[2]  # a division by zero for the largest number


class PanicError(BaseException):
    """As a library of Rust's raises it: no Exception."""


def panicking(data: bytes) -> Value:
    if read(data)[0] != "firm-a":
        raise PanicError("index out of bounds")
    return read(data)


def allocating(data: bytes) -> Value:
    bytearray(min(int.from_bytes(data[:4], "big"), 1 << 24))  # believes the length before it looks
    return read(data)


def keeping(data: bytes) -> Value:
    return read(data[: len(data) // 2 * 2])  # an odd byte at the end is not seen


def endless(data: bytes) -> Value:
    while read(data)[1] == 0:
        pass
    return read(data)


def without(value: Value) -> None:
    assert value[2], "an empty body"


@pytest.mark.parametrize(
    ("decode", "more", "says"),
    [
        pytest.param(raising, {}, "ZeroDivisionError", id="another exception"),
        pytest.param(panicking, {}, "PanicError", id="what is no Exception"),
        pytest.param(allocating, {}, "allocation of", id="memory by a length that a peer says"),
        pytest.param(keeping, {"encode": written}, "not canonical", id="two encodings of one value"),
        pytest.param(read, {"check": without}, "an empty body", id="a value that must not be"),
        pytest.param(read, {"encode": lambda value: value[3]}, "IndexError", id="a value that cannot be written"),
    ],
)
def test_a_planted_bug_is_found(decode: Callable[[bytes], object], more: dict[str, object], says: str) -> None:
    tally = fuzzed(decode, **more)
    assert any(says in failure.what for failure in tally.failures), [failure.what for failure in tally.failures]


def test_a_decoder_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(campaign, "smallest", lambda target, data, shape: data)
    assert ["EndlessError" in failure.what for failure in fuzzed(endless, count=400).failures] == [True]


def test_a_decoder_without_a_bug_is_left_in_peace_and_everything_is_counted() -> None:
    tally = fuzzed(read, encode=written)
    assert tally.failures == []
    assert tally.inputs == 3000
    assert tally.values["tuple"] + tally.refusals["MessageError"] == 3000
    assert min(tally.values["tuple"], tally.refusals["MessageError"]) > 100
    assert 0 < tally.largest_share < 1


def test_memory_that_is_taken_once_and_kept_is_no_failure() -> None:
    held: list[bytes] = []

    def caching(data: bytes) -> Value:
        if not held:
            held.append(bytes(1 << 20))
        return read(data)

    assert fuzzed(caching, count=50).failures == []


def test_a_failure_names_target_seed_and_input_and_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "all_targets", lambda: (target_of(raising),))
    (failure,) = fuzzed(raising).failures
    told = failure.told()
    assert "planted/bug" in told
    assert "of seed 'seed'" in told
    again = told.rpartition("python -m tests.fuzz ")[2].split()
    assert command.main(again) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_a_failing_input_is_shortened() -> None:
    def picky(data: bytes) -> Value:
        assert b"\xff\xff" not in data
        return read(data)

    assert [failure.data for failure in fuzzed(picky).failures] == [b"\xff\xff"]


def test_failures_of_one_shape_count_once_and_many_shapes_end_the_run() -> None:
    def chaotic(data: bytes) -> None:
        raise type(f"Error{len(data) % 50}x", (Exception,), {})

    assert len(fuzzed(chaotic, count=100_000).failures) == campaign.MOST_FAILURES
    assert len(fuzzed(raising, count=6000).failures) == 1


def test_inputs_follow_from_the_seed() -> None:
    target = target_of(read)
    first, again, other = (list(islice(inputs(target, seed, []), 500)) for seed in ("one", "one", "two"))
    assert first == again
    assert first != other
    assert first[0] == SEED


def test_systematic_damage_reaches_every_place_of_every_seed() -> None:
    seeds = [b"abcdef", b"", b"xy"]
    made = [systematic(seeds, number) for number in range(num_systematic(seeds))]
    expected = {seed + b"\0" for seed in seeds}
    for seed in seeds:
        for at in range(len(seed)):
            numbers = (b"\xff" * 4, b"\xff" * 8, bytes(4))
            expected |= {seed[:at], *(seed[:at] + number + seed[at + len(number) :] for number in numbers)}
    assert set(made) == expected
    assert len(made) == 4 * 8 + 3
    with pytest.raises(IndexError):
        systematic(seeds, len(made))


@pytest.mark.parametrize("mutator", [*{*GENERIC, *mutate.JSON, *mutate.TOML, mutate.in_pem}], ids=lambda m: m.__name__)
def test_damage_is_other_bytes_and_the_same_for_the_same_chance(mutator: mutate.Mutator) -> None:
    texts = (b'{"a":[1,{"b":"c"},true]}', b"-----BEGIN X-----\nAAECAwQF\n-----END X-----\n", SEED, b"a")
    changed = 0
    for number, text in enumerate(texts * 50):
        one, again = (mutator(text, random.Random(number)) for _ in range(2))
        assert one == again
        changed += one != text
    assert changed > 20


def test_damage_stays_below_a_length() -> None:
    chance = random.Random(5)
    assert max(len(damaged([SEED * 400], chance, mutate.JSON)) for _ in range(2000)) <= LONGEST_BYTES


def test_damage_inside_a_wrapping_gets_past_its_checksum() -> None:
    (target,) = (each for each in all_targets() if each.name == "invitation")
    reasons = set()
    for number in range(300):
        data = target.mutators[0](INVITATION.to_text().encode(), random.Random(number))
        try:
            read_invitation(data.decode())
        except InvitationError as error:
            reasons.add(str(error))
    assert not any("checksum" in reason for reason in reasons)
    assert len(reasons) > 3


def test_the_command_chooses_targets_counts_and_tells_by_its_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = target_of(read, encode=written), target_of(raising)
    monkeypatch.setattr(command, "all_targets", lambda: (good,))
    assert command.main(["--list"]) == 0
    assert "planted/bug" in capsys.readouterr().out
    assert command.main(["--seconds", "0.1"]) == 0
    assert "0 failures" in capsys.readouterr().out
    assert command.main(["--target", "planted", "--hex", SEED.hex()]) == 0
    assert command.main(["--target", "nobody"]) == 2
    monkeypatch.setattr(command, "all_targets", lambda: (bad,))
    capsys.readouterr()
    assert command.main(["--seconds", "1", "--json", "--target", "planted/bug"]) == 1
    (counted,) = json.loads(capsys.readouterr().out)
    assert counted["target"] == "planted/bug"
    assert counted["failures"][0]["what"].startswith("ZeroDivisionError")
    assert sum(counted["values"].values()) + sum(counted["refusals"].values()) < counted["inputs"]
