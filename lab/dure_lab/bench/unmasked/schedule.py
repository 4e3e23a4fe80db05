"""Which rounds are masked. Rounds go in pairs, one of each kind; which comes first is drawn for each pair."""

import random


def pair_of(round_number: int) -> int:
    """The pair that a round belongs to. Rounds count from 1."""
    return (round_number - 1) // 2


def is_masked(round_number: int) -> bool:
    """Whether a round is an ordinary, encrypted one. The same in every process."""
    masked_first = random.Random(pair_of(round_number)).random() < 0.5  # noqa: S311  # an order, not a secret
    return (round_number % 2 == 1) == masked_first
