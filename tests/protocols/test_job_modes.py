"""The job file's mode: retry for few firms, threshold with a threshold that no two survivor sets can both reach."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure_protocols.errors import MisuseError
from dure_protocols.job import JobFile, JobFileError, least_threshold
from dure_protocols.secagg.terms import Terms
from tests.protocols.test_job import VALUES


def with_firms(num, **changes):
    firms = {f"firm-{i:03}": f"{i:064x}" for i in range(num)}
    return json.dumps(VALUES | {"firms": firms} | changes).encode()


def job(num, **changes):
    made = JobFile.model_validate_json(with_firms(num, **changes))
    return JobFile.from_bytes(made.to_bytes())


@given(st.integers(1, 500), st.data())
def test_two_survivor_sets_of_the_least_threshold_take_a_third_of_dishonest_firms(num, data):
    """Each set needs t votes, honest firms give one and dishonest ones two: 2t <= n + c only from c >= n/3 on."""
    threshold = least_threshold(num)
    dishonest = data.draw(st.integers(0, num))
    if 2 * threshold <= num + dishonest:
        assert 3 * dishonest >= num
    assert 2 * (threshold - 1) <= num + (num + 2) // 3  # one vote less would not do


@pytest.mark.parametrize(("num", "threshold"), [(4, 3), (5, 4), (6, 5), (7, 5), (7, 6), (100, 67), (100, 99)])
def test_a_threshold_of_more_than_two_thirds_is_accepted(num, threshold):
    made = job(num, mode="threshold", threshold=threshold)
    terms = Terms.of(made)
    assert terms.threshold == threshold
    assert terms.least_survivors == threshold


@pytest.mark.parametrize(
    ("num", "threshold"), [(4, 2), (4, 4), (7, 4), (7, 7), (100, 66), (3, 3), (3, 2), (7, None), (7, 0), (7, -1)]
)
def test_another_threshold_is_refused_with_the_range_it_must_be_in(num, threshold):
    with pytest.raises(JobFileError, match=f"threshold mode with {num} firms takes a threshold from"):
        JobFile.from_bytes(with_firms(num, mode="threshold", threshold=threshold))


def test_retry_mode_has_no_threshold():
    with pytest.raises(JobFileError, match="retry mode has no threshold"):
        JobFile.from_bytes(with_firms(5, threshold=4))


def test_retry_mode_is_for_sixteen_firms_at_most_and_threshold_mode_for_more():
    assert job(16).mode == "retry"
    with pytest.raises(JobFileError, match=r"retry mode takes 2 .* to 16 firms; 17 are listed"):
        JobFile.from_bytes(with_firms(17))
    assert job(17, mode="threshold", threshold=12).threshold == 12


def test_the_mode_and_the_threshold_are_part_of_what_firms_approve():
    digests = {job(7, **changes).digest() for changes in ({}, *({"mode": "threshold", "threshold": t} for t in (5, 6)))}
    assert len(digests) == 3


def test_a_minimum_cohort_above_the_threshold_holds():
    assert Terms.of(job(7, mode="threshold", threshold=5, minimum_cohort=6)).least_survivors == 6
    assert Terms.of(job(7, mode="threshold", threshold=5), minimum_cohort=7).least_survivors == 7


@pytest.mark.parametrize("threshold", [3, 6])
def test_terms_take_no_threshold_that_a_job_file_would_not(threshold):
    firms = {name: bytes(32) for name in "abcdef"}
    with pytest.raises(MisuseError, match="at least 5 and fewer than all"):
        Terms(bytes(32), firms, 2, threshold=threshold)


@pytest.mark.parametrize(("num", "witnesses"), [(2, 1), (3, 2), (4, 3), (5, 4), (7, 5), (16, 11)])
def test_a_snapshot_takes_as_many_witnesses_as_leave_an_honest_one(num, witnesses):
    firms = {f"firm-{i}": bytes([i]) * 32 for i in range(num)}
    assert Terms(bytes(32), firms, 2).witnesses == witnesses
