"""When agents that lost their server come back: soon, bounded, and not all at once."""

import random

import pytest

from dure_client.link.backoff import FIRST_BOUND_SECONDS, LONGEST_BOUND_SECONDS, Backoff


def returns_after(outage_seconds: float, chance: random.Random) -> float:
    """When an agent's first attempt after the outage comes, counted from the outage's begin."""
    backoff, now = Backoff(chance), 0.0
    while now < outage_seconds:
        now += backoff.pause_seconds()
    return now


class Most(random.Random):
    """Chance that always draws the most."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_the_bound_doubles_up_to_the_longest_and_begins_anew_after_a_success() -> None:
    backoff = Backoff(Most(), first_seconds=0.5, longest_seconds=3.0)
    assert [backoff.pause_seconds() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    backoff.reset()
    assert backoff.pause_seconds() == 0.5


def test_a_pause_is_drawn_from_the_whole_span_down_to_nothing() -> None:
    chance = random.Random(1)
    firsts = [Backoff(chance).pause_seconds() for _ in range(1000)]
    assert min(firsts) < 0.05 * FIRST_BOUND_SECONDS
    assert 0.95 * FIRST_BOUND_SECONDS < max(firsts) <= FIRST_BOUND_SECONDS


@pytest.mark.parametrize("outage_seconds", [0.5, 1.0, 3.0, 60.0, 300.0])
def test_a_hundred_agents_are_back_soon_after_their_server_and_not_in_one_burst(outage_seconds: float) -> None:
    for seed in range(20):
        chance = random.Random(seed)
        returns = sorted(returns_after(outage_seconds, chance) for _ in range(100))
        assert returns[-1] <= outage_seconds + LONGEST_BOUND_SECONDS
        # In no tenth of a second come more than a third, and the middle one is there within the outage's length.
        assert max(sum(at <= other < at + 0.1 for other in returns) for at in returns) <= 33
        assert returns[50] <= outage_seconds + min(outage_seconds, LONGEST_BOUND_SECONDS / 2 + 0.5)
