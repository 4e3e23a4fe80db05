"""False sums shown to the firms' whole sides: refused by every firm, which then takes the true one and goes on."""

from dataclasses import replace

import numpy as np
import pytest

from dure_protocols.errors import MessageError
from dure_protocols.global_state import layout_of
from tests.simulation.consortium import Consortium
from tests.simulation.lying_server import LyingServer, Sum
from tests.simulation.test_rounds import close, mean_update

NAMES = ("firm-a", "firm-b", "firm-c", "firm-d")


@pytest.fixture
def shown(tmp_path):
    """A lying server before round 2, and the true sum of round 1."""
    server = LyingServer(Consortium(tmp_path, num_firms=4, rounds=3, statistics=0))
    return server, server.attempt(1)


def changed(place, by):
    """One word of the vector changed, counted from the first behind the packed words."""

    def change(server, true):
        words = true.words.copy()
        start = layout_of(server.job, 1).packed_words
        words[start + place : start + place + 1] += np.uint64(by % 2**64)
        return true.with_words(words)

    return change


def scaled(by):
    return lambda _, true: true.with_words(true.words * np.uint64(by))


def entered(**fields):
    return lambda _, true: Sum(replace(true.entry, **fields), true.words)


def over(*members):
    return entered(cohort=members, members=members)


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        (changed(-1, 1), "false-sum"),
        (changed(-3, -(1 << 48)), "false-sum"),
        (changed(0, 100), "false-sum"),
        (changed(1, -1), "false-sum"),
        (changed(2, 1 << 24), "false-sum"),
        (changed(4, 1), "false-sum"),
        (changed(5, 1), "false-sum"),
        (scaled(2), "false-sum"),
        (scaled(0), "false-sum"),
        (entered(attempt=7), "false-sum"),
        (over("firm-a", "firm-b", "firm-c"), "roster"),
        (over("firm-a", "firm-b", "firm-c", "firm-x"), "roster"),
        (entered(members=("firm-a", "firm-b", "firm-c")), "roster"),
        (entered(epoch=2), "snapshot-needed"),
        (entered(vector_digest=bytes(32)), "malformed"),
    ],
    ids=[
        "a field",
        "another field",
        "the count",
        "the firms",
        "a metric",
        "the low tag word",
        "the high tag word",
        "twice the sum",
        "nothing",
        "another attempt",
        "fewer members",
        "a stranger",
        "some of the cohort",
        "another epoch",
        "another vector",
    ],
)
def test_a_false_sum_is_refused_by_every_firm_and_the_true_one_is_taken(shown, lie, code):
    server, true = shown
    assert server.attempt(2, dict.fromkeys(NAMES, lie(server, true))) == dict.fromkeys(NAMES, code)
    assert all(not firm.side.state.model.any() for firm in server.consortium.firms.values())
    second = server.attempt(2, dict.fromkeys(NAMES, true))
    assert close(server.mean(second), mean_update([1, 2, 3, 4]), 1)
    assert all(close(firm.side.state.model, mean_update([1, 2, 3, 4]), 1) for firm in server.consortium.firms.values())


@pytest.mark.parametrize("length", [-1, 1])
def test_a_sum_cut_short_or_extended_is_no_sum(shown, length):
    server, true = shown
    with pytest.raises(MessageError):
        server.attempt(2, dict.fromkeys(NAMES, true.with_words(np.resize(true.words, true.words.size + length))))


def test_the_sum_of_an_earlier_round_under_a_later_number_is_refused(shown):
    server, first = shown
    second = server.attempt(2, dict.fromkeys(NAMES, first))
    replayed = Sum(replace(second.entry, vector_digest=first.entry.vector_digest), first.words)
    assert server.attempt(3, dict.fromkeys(NAMES, replayed)) == dict.fromkeys(NAMES, "false-sum")
    third = server.attempt(3, dict.fromkeys(NAMES, second))
    assert close(server.mean(third), mean_update([1, 2, 3, 4]), 1)


def test_a_sum_shown_again_is_applied_once(shown):
    server, first = shown
    server.attempt(2, dict.fromkeys(NAMES, first))
    refused = server.attempt(3, dict.fromkeys(NAMES, first))  # what they have applied, instead of what they lack
    assert refused == dict.fromkeys(NAMES, "global-model")
    assert all(close(firm.side.state.model, mean_update([1, 2, 3, 4]), 1) for firm in server.consortium.firms.values())


def test_a_true_sum_for_some_and_none_for_others_sums_nothing(shown):
    """Who was not shown the sum stands before round 1 and does not join round 2."""
    server, true = shown
    refused = server.attempt(2, dict.fromkeys(NAMES[:3], true))
    assert refused == {"firm-d": "global-model"}
