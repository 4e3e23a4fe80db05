"""A machine whose clock is wrong goes by the server's, and says so."""

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from dure_client.link.clock import ServerClock, clock_sentence

HOUR = 3600.0


@dataclass
class Machine:
    """A machine's two clocks: the one that people set, and the one that nobody does."""

    wall: float
    running: float = 0.0

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.running += seconds

    def server_clock(self) -> ServerClock:
        return ServerClock(lambda: self.wall, lambda: self.running)


def test_before_the_server_has_spoken_the_machines_clock_counts() -> None:
    clock = Machine(1000.0).server_clock()
    assert clock.now() == 1000.0
    assert clock.ahead_seconds is None


@pytest.mark.parametrize("off", [0.0, 5 * HOUR, -5 * HOUR, 400 * 24 * HOUR])
def test_afterwards_the_servers_time_goes_on_whatever_this_machine_says(off: float) -> None:
    machine = Machine(1_000_000.0 + off)
    clock = machine.server_clock()
    asked = clock.start()
    machine.passes(2.0)
    assert clock.hear(1_000_001.0, asked) == pytest.approx(off)  # the answer was written half-way
    machine.passes(10.0)
    assert clock.now() == pytest.approx(1_000_012.0)
    assert clock.now_utc() == datetime.fromtimestamp(clock.now(), UTC)


def test_setting_the_clock_right_while_connected_is_seen_and_changes_nothing_else() -> None:
    machine = Machine(1_000_000.0 + 5 * HOUR)
    clock = machine.server_clock()
    clock.hear(1_000_000.0, clock.start())
    machine.wall -= 5 * HOUR
    assert clock.ahead_seconds == pytest.approx(0.0)
    assert clock.now() == pytest.approx(1_000_000.0)


@pytest.mark.parametrize(
    ("ahead", "says"),
    [
        (0.0, ""),
        (59.0, ""),
        (-59.0, ""),
        (150.0, "2 min ahead of"),
        (-5 * HOUR - 120, "5 h 2 min behind"),
        (50 * HOUR, "2 d 2 h ahead of"),
    ],
)
def test_only_a_clock_that_is_off_needs_a_word_and_it_says_by_how_much_and_what_to_do(ahead: float, says: str) -> None:
    sentence = clock_sentence(ahead)
    assert says in sentence
    assert bool(sentence) is bool(says)
    assert not sentence or "timedatectl" in sentence
