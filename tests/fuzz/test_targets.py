"""Every target for a moment: the same inputs each time. `python -m tests.fuzz` runs longer."""

from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dure_protocols.messages import Reply, Request
from tests.fuzz.campaign import run
from tests.fuzz.judge import judge, measuring
from tests.fuzz.kept import kept, kept_for
from tests.fuzz.mutate import damaged
from tests.fuzz.target import Target
from tests.fuzz.targets import MAKERS, Maker, all_targets, targets_of

DAMAGED_INPUTS = 150
"""Beside the seeds and the kept inputs, for each target."""
OF_HYPOTHESIS = settings(
    max_examples=20, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_damaged_bytes_give_a_value_or_a_typed_refusal_within_the_declared_memory(
    make: Maker,
) -> None:
    told = []
    for target in targets_of(make):
        before = kept_for(target.name)
        tally = run(target, "short", count=len(target.seeds) + len(before) + DAMAGED_INPUTS, kept=before)
        told += [failure.told() for failure in tally.failures]
        assert sum(tally.values.values()) + sum(tally.refusals.values()) + len(tally.failures) == tally.inputs
    assert not told, "\n".join(told)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_bytes_of_hypothesis_making_do_so_too(make: Maker) -> None:
    with measuring():
        for target in targets_of(make):
            judged_by_hypothesis(target)


def judged_by_hypothesis(target: Target) -> None:
    chances = st.randoms(use_true_random=False)

    @OF_HYPOTHESIS
    @given(st.binary(max_size=200) | chances.map(lambda chance: damaged(target.seeds, chance, target.mutators)))
    def holds(data: bytes) -> None:
        outcome = judge(target, data)
        assert outcome.failure is None, f"{target.name}: {outcome.failure}: {data.hex()}"

    holds()


def test_what_once_failed_fails_no_more() -> None:
    targets = {target.name: target for target in all_targets()}
    with measuring():
        outcomes = {f"{each.target}: {each.name}": judge(targets[each.target], each.data) for each in kept()}
    assert len(outcomes) == len(kept()), "two kept inputs have one name"
    assert {name: outcome.failure for name, outcome in outcomes.items() if outcome.failure} == {}


def test_every_target_begins_with_something_that_it_takes() -> None:
    with measuring():
        taken = {t.name: any(judge(t, seed).is_value for seed in t.seeds) for t in all_targets()}
    assert [name for name, is_taken in taken.items() if not is_taken] == ["enrolment/problem"]  # it is always refused


def test_every_kind_of_message_is_among_what_is_damaged() -> None:
    (messages,) = (target for target in all_targets() if target.name == "messages")
    tally = run(messages, "kinds", count=len(messages.seeds))
    assert set(tally.values) == {cls.__name__ for cls in (*get_args(Request), *get_args(Reply))}
