"""The server's time, as the link told it, beside this machine's clock.

Only what the server itself set is measured by it: when a message expires, and when a certificate is due for renewal. A
server that lies about it can spoil its own messages and no more; ledger, policy and budgets know nothing of it.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

TOLERATED_SECONDS: Final = 60.0
"""A clock that is off by less needs no word."""


class ServerClock:
    """Goes on from the server's last word by the monotonic clock, so that setting this machine's clock changes nothing.

    Until the server has spoken it is this machine's clock. Methods may be called from any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`clock`: this machine's Unix time in seconds; `monotonic`: seconds that nobody sets."""
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._offset: float | None = None  # server's time minus monotonic

    def start(self) -> float:
        """The moment of a question; give it to `hear`."""
        return self._monotonic()

    def hear(self, server_time: float, asked_at: float) -> float:
        """Take the server's time from its answer. Returns how far this machine's clock is ahead, in seconds.

        The server wrote it between question and answer; the middle is right to within half of that span.
        """
        with self._lock:
            self._offset = server_time - (asked_at + self._monotonic()) / 2
        return self.ahead_seconds or 0.0

    def now(self) -> float:
        """The server's Unix time in seconds, as far as it is known."""
        with self._lock:
            return self._clock() if self._offset is None else self._monotonic() + self._offset

    def now_utc(self) -> datetime:
        """The same as a datetime in UTC."""
        return datetime.fromtimestamp(self.now(), UTC)

    def local_utc(self) -> datetime:
        """What this machine's clock says."""
        return datetime.fromtimestamp(self._clock(), UTC)

    @property
    def ahead_seconds(self) -> float | None:
        """How far this machine's clock is ahead of the server's; None until the server has told its time."""
        with self._lock:
            return None if self._offset is None else self._clock() - (self._monotonic() + self._offset)


def clock_sentence(ahead_seconds: float) -> str:
    """What a person should know of this machine's clock; empty if it needs no word."""
    if abs(ahead_seconds) < TOLERATED_SECONDS:
        return ""
    where = "ahead of" if ahead_seconds > 0 else "behind"
    return (
        f"this machine's clock is {_span(abs(ahead_seconds))} {where} the server's: set it right, for example by "
        "`timedatectl set-ntp true`, or tell the operator if it is the server's that is wrong. Jobs go on by the "
        "server's time meanwhile; past a day, certificates may be refused"
    )


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    days, hours, rest = minutes // 1440, minutes // 60 % 24, minutes % 60
    parts = [f"{number} {unit}" for number, unit in ((days, "d"), (hours, "h"), (rest, "min")) if number]
    return " ".join(parts[:2])
