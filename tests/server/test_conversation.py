"""How long the coordinator waits for firms that are away."""

from types import SimpleNamespace
from typing import cast

import pytest

from dure_server.coordinator.conversation import Conversation, JobStoppedError
from dure_server.coordinator.firms import Firms
from dure_server.coordinator.record import JobRecord, Situation

WAITING = Situation("join", "too few firms are ready")


class Time:
    """A clock that goes on by a second whenever it is looked at."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def talk(presence: list[set[str]], clock: Time, *, runs: bool = True) -> Conversation:
    """A conversation with firms that come and go: who is there at each look, the last for ever."""

    def connected() -> set[str]:
        return presence.pop(0) if len(presence) > 1 else presence[0]

    record = SimpleNamespace(show=lambda situation: None, should_run=lambda: runs, is_over=lambda: False)
    return Conversation("job", cast(Firms, SimpleNamespace(connected=connected)), cast(JobRecord, record), clock)


@pytest.mark.parametrize(
    ("presence", "ends_at"),
    [
        pytest.param([{"alder"}, {"alder"}, {"alder", "birch"}], 3.0, id="a firm comes"),
        pytest.param([{"alder"}, {"alder"}], 6.0, id="nobody comes"),
        pytest.param([{"alder"}, set()], 6.0, id="a firm goes"),
    ],
)
def test_a_pause_is_over_once_a_firm_has_come_or_its_time_is_up(presence: list[set[str]], ends_at: float) -> None:
    clock = Time()
    talk(presence, clock).pause(WAITING, 4.5)
    assert clock.now == ends_at


def test_a_pause_ends_when_the_operator_stops_the_job() -> None:
    with pytest.raises(JobStoppedError):
        talk([set()], Time(), runs=False).pause(WAITING, 60)
