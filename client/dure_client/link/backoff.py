"""How long to wait before the next attempt: exponential, with full jitter, bounded."""

import random
from typing import Final

FIRST_BOUND_SECONDS: Final = 0.2
LONGEST_BOUND_SECONDS: Final = 2.5


class Backoff:
    """Pauses between attempts. Each is drawn evenly from nothing up to a bound that doubles with every attempt.

    So a hundred agents that lost their server at one moment come back spread over about the time that it was away, and
    no agent waits longer than `longest_seconds` for a server that is there again.
    """

    def __init__(
        self,
        chance: random.Random,
        *,
        first_seconds: float = FIRST_BOUND_SECONDS,
        longest_seconds: float = LONGEST_BOUND_SECONDS,
    ) -> None:
        self._chance = chance
        self._first_seconds = first_seconds
        self._longest_seconds = longest_seconds
        self._bound_seconds = first_seconds

    def pause_seconds(self) -> float:
        """The next pause."""
        pause = self._chance.uniform(0.0, self._bound_seconds)
        self._bound_seconds = min(2 * self._bound_seconds, self._longest_seconds)
        return pause

    def reset(self) -> None:
        """An attempt went through: begin with short pauses again."""
        self._bound_seconds = self._first_seconds
