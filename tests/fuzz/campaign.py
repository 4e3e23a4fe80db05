"""Inputs without end for one target, judged and counted."""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count as count_from

from tests.fuzz.judge import Outcome, judge, measuring, smallest
from tests.fuzz.mutate import damaged, num_systematic, systematic
from tests.fuzz.target import Target

MOST_FAILURES = 20
_MOST_FOUND = 400
_LONGEST_FOUND_BYTES = 1 << 13


@dataclass(frozen=True)
class Failure:
    """An input that a decoder must not treat as it did. number: its place in the run of this seed."""

    target: str
    seed: str
    number: int
    data: bytes
    what: str

    def told(self) -> str:
        """What failed, the input, and how to see it again."""
        return (
            f"FAILED {self.target}: {self.what}\n"
            f"  input {self.number} of seed {self.seed!r}, {len(self.data)} bytes, shortened: {self.data.hex()}\n"
            f"  again: python -m tests.fuzz --target {self.target} --hex {self.data.hex() or chr(39) * 2}"
        )


@dataclass
class Tally:
    """What the inputs of one target came to. Sizes in bytes, times in seconds."""

    target: str
    inputs: int = 0
    values: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    largest_peak_bytes: int = 0
    largest_share: float = 0.0
    """The largest part of its limit that an input took."""
    slowest_seconds: float = 0.0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    def add(self, target: Target, data: bytes, outcome: Outcome) -> None:
        """Count one outcome."""
        self.inputs += 1
        if outcome.failure is None:
            (self.values if outcome.is_value else self.refusals)[outcome.what] += 1
        self.largest_peak_bytes = max(self.largest_peak_bytes, outcome.peak_bytes)
        self.largest_share = max(self.largest_share, outcome.peak_bytes / target.limit_bytes(data))
        self.slowest_seconds = max(self.slowest_seconds, outcome.seconds)

    def as_json(self) -> dict[str, object]:
        """The counts and failures as a JSON value."""
        return {
            "target": self.target,
            "inputs": self.inputs,
            "seconds": round(self.seconds, 1),
            "values": dict(self.values.most_common()),
            "refusals": dict(self.refusals.most_common()),
            "largest_peak_bytes": self.largest_peak_bytes,
            "largest_share_of_limit": round(self.largest_share, 3),
            "slowest_milliseconds": round(1000 * self.slowest_seconds, 1),
            "failures": [
                {"what": f.what, "seed": f.seed, "number": f.number, "hex": f.data.hex()} for f in self.failures
            ],
        }


def inputs(target: Target, seed: str, found: Sequence[bytes], kept: Sequence[bytes] = ()) -> Iterator[bytes]:
    """The target's seeds and kept inputs as they are, then, without end and by turns, systematic damage (in an order of
    chance) and damage by chance. found: further inputs to damage; it may grow meanwhile. The seed decides everything.
    """
    yield from target.seeds
    yield from kept
    order = list(range(num_systematic(target.seeds)))
    random.Random(f"{seed} {target.name}").shuffle(order)
    for number in count_from(0):
        if number < len(order):
            yield systematic(target.seeds, order[number])
        chance = random.Random(f"{seed} {target.name} {number}")
        yield damaged([*target.seeds, *found], chance, target.mutators)


def run(
    target: Target,
    seed: str,
    *,
    count: int | None = None,
    seconds: float | None = None,
    kept: Sequence[bytes] = (),
) -> Tally:
    """Judge `count` inputs, or as many as `seconds` allow. Failures of one shape count once; after twenty it ends.

    An input that went a way that none went before is damaged further: so the run works itself into a format. The inputs
    follow from the seed alone, however long the run is.
    """
    tally, started = Tally(target.name), time.monotonic()
    found: list[bytes] = []
    shapes: set[str] = set()
    with measuring():
        for number, data in enumerate(inputs(target, seed, found, kept)):
            outcome = judge(target, data)
            tally.add(target, data, outcome)
            if outcome.shape not in shapes:
                shapes.add(outcome.shape)
                if outcome.failure is not None:
                    shorter = smallest(target, data, outcome.shape)
                    told = judge(target, shorter).failure or outcome.failure
                    tally.failures.append(Failure(target.name, seed, number, shorter, told))
                elif len(found) < _MOST_FOUND and len(data) <= _LONGEST_FOUND_BYTES:
                    found.append(data)
            is_over = seconds is not None and time.monotonic() - started > seconds
            if is_over or tally.inputs == count or len(tally.failures) == MOST_FAILURES:
                break
    tally.seconds = time.monotonic() - started
    return tally
