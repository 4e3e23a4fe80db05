"""What a fuzz target is: a decoder, what it may raise, how its values are written, and how much memory it may take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.fuzz.mutate import Mutator

BASE_BYTES = 64 << 10
"""What decoding may take however short the input is: an error with its traceback, a session, a reader."""


def nothing(value: object) -> None:
    """The check of a target that has none."""


@dataclass(frozen=True)
class Target:
    """A decoder under test.

    decode: from bytes to any value; refusals: the exceptions that it may raise, and no others; seeds: valid inputs, and
    perhaps interesting invalid ones; base_bytes, per_byte: the declared limit at the peak, so much and so much for each
    byte of the input; encode: from a value to its bytes, where a value has one encoding; check: raises AssertionError
    if something does not hold of a decoded value; mutators: further ways to damage this target's inputs.
    """

    name: str
    decode: Callable[[bytes], Any]
    refusals: tuple[type[Exception], ...]
    seeds: Sequence[bytes]
    per_byte: int
    encode: Callable[[Any], bytes] | None = None
    check: Callable[[Any], None] = nothing
    mutators: Sequence[Mutator] = ()
    base_bytes: int = BASE_BYTES

    @property
    def group(self) -> str:
        """What stands before the slash of its name."""
        return self.name.partition("/")[0]

    def limit_bytes(self, data: bytes) -> int:
        """The most memory that decoding these bytes may take."""
        return self.base_bytes + self.per_byte * len(data)
