"""How a job is run: what fits it, which deadline counts, and when it has diverged."""

import math

import pytest

from dure_server.operation import Operation, OperationError, changed_operation
from tests.server.samples import job_file


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        ([], False),
        ([1.0], False),
        ([1.0, 11.0, 12.0, 13.0], True),
        ([1.0, 11.0, 12.0], False),
        ([1.0, 11.0, 9.0, 13.0], False),
        ([1.0, 0.5, 6.0, 6.0, 6.0], True),
        ([0.0, 50.0, 50.0, 50.0], False),
        ([-1.0, 50.0, 50.0, 50.0], False),
        ([1.0, math.nan], True),
        ([math.inf], True),
    ],
)
def test_a_job_has_diverged_when_its_metric_stays_far_above_its_best(values, stops):
    assert bool(Operation().why_diverged(values)) is stops


def test_the_reason_says_how_far_and_how_long():
    told = Operation(diverged_factor=2, diverged_rounds=2).why_diverged([0.5, 3.0, 4.0])
    assert told == "the selection metric has been above 2 times its best (0.5) for 2 rounds, last 4"


def test_with_no_rounds_it_is_only_held_to_be_finite():
    never = Operation(diverged_rounds=0)
    assert not never.why_diverged([1.0, 1e9, 1e9, 1e9, 1e9])
    assert never.why_diverged([1.0, math.nan])


def test_a_phase_has_its_own_deadline_or_the_job_s():
    job = job_file("job-1", firms=("firm-a", "firm-b", "firm-c"))
    operation = Operation(update_seconds=900)
    assert operation.seconds("update", job) == 900
    assert operation.seconds("join", job) == job.phase_seconds


def test_a_quorum_lies_between_what_was_agreed_on_and_all_firms():
    job = job_file("job-1", firms=("firm-a", "firm-b", "firm-c"))
    for quorum in range(job.minimum_cohort, len(job.firms) + 1):
        Operation(quorum=quorum).check(job)
    with pytest.raises(OperationError, match="quorum of 9"):
        Operation(quorum=9).check(job)
    with pytest.raises(OperationError, match="cannot be run like that"):
        changed_operation(job, {}, {"quorum": 1})


def test_settings_change_one_by_one_and_zero_takes_one_back():
    job = job_file("job-1", firms=("firm-a", "firm-b", "firm-c"))
    kept = changed_operation(job, {}, {"quorum": 2, "update_seconds": 9.0}).model_dump(exclude_defaults=True)
    changed = changed_operation(job, kept, {"update_seconds": 0.0, "diverged_rounds": 0})
    assert (changed.quorum, changed.update_seconds, changed.diverged_rounds) == (2, None, 0)
    kept = changed_operation(job, {}, {"keep_sums": True}).model_dump(exclude_defaults=True)
    assert not changed_operation(job, kept, {"keep_sums": False}).keep_sums
