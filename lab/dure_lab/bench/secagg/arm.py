"""What an arm is, and the clock it is timed by."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

CLIP = 0.05
"""Bound on a coordinate; the updates have a standard deviation of a fifth of it."""
COUNT_CAP = 1000
_CACHE_BYTES = 96 << 20
_DIFFERENT_UPDATES = 4


@dataclass(frozen=True)
class Case:
    """How many firms sum how many parameters. Updates and sample counts follow from the seed."""

    firms: int
    parameters: int
    seed: int

    @cached_property
    def _updates(self) -> list[NDArray[np.float32]]:
        chance = np.random.default_rng([self.seed, self.parameters])
        deviation = np.float32(CLIP / 5)
        return [
            np.clip(chance.standard_normal(self.parameters, np.float32) * deviation, -CLIP, CLIP, dtype=np.float32)
            for _ in range(self.different)
        ]

    @property
    def different(self) -> int:
        """How many firms differ in update and count; the next one has the first one's again."""
        return min(self.firms, _DIFFERENT_UPDATES)

    def update(self, firm: int) -> NDArray[np.float32]:
        """A firm's update, (d,) float32 within ±CLIP."""
        return self._updates[firm % self.different]

    def count(self, firm: int) -> int:
        """A firm's sample count, at most COUNT_CAP."""
        return COUNT_CAP - 100 * (firm % self.different)

    def weight(self, firm: int) -> float:
        """A firm's share of the cap, in (0, 1]."""
        return self.count(firm) / COUNT_CAP

    @cached_property
    def mean(self) -> NDArray[np.float32]:
        """The weighted mean of the updates, (d,) float32: what each arm must come to."""
        total = np.zeros(self.parameters)
        for firm in range(self.firms):
            total += self.update(firm) * self.weight(firm)
        return (total / sum(map(self.weight, range(self.firms)))).astype(np.float32)


class Stopwatch:
    """Seconds by part. The caches are emptied before a part begins: in a round, other work came in between."""

    def __init__(self, *, cold: bool = True) -> None:
        self.seconds: dict[str, float] = {}
        self._filler = np.ones(_CACHE_BYTES // 8 if cold else 0, np.uint64)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time the block as this part."""
        self._filler += np.uint64(1)
        begun = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - begun

    def taken(self) -> dict[str, float]:
        """The seconds so far; begins anew."""
        taken, self.seconds = self.seconds, {}
        return taken


class Arm(ABC):
    """One way to sum. Whatever `client` and `server` work on was made and touched when the arm was built.

    client_parts, server_parts: the parts that add up to a firm's and to the server's work of a round.
    """

    client_parts: ClassVar[tuple[str, ...]]
    server_parts: ClassVar[tuple[str, ...]]

    @abstractmethod
    def client(self, watch: Stopwatch) -> None:
        """One firm's work of a round."""

    @abstractmethod
    def server(self, watch: Stopwatch) -> None:
        """The server's work of a round over every firm."""

    @abstractmethod
    def decode(self, watch: Stopwatch) -> NDArray[np.float32]:
        """From the last sum to the mean update, (d,) float32, d being what was measured."""

    @property
    @abstractmethod
    def vector_bytes(self) -> int:
        """Bytes of a firm's vector on the wire; the server holds at least as many for the sum."""

    @property
    def extrapolated_from(self) -> Mapping[str, int]:
        """Empty, or what was measured in place of the case: the seconds are scaled to the case already."""
        return {}


MakeArm = Callable[[Case], Arm]
