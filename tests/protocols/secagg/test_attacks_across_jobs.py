"""Two jobs over the same data that a server runs interleaved: what one released counts before the other releases."""

import numpy as np
import pytest

from dure_protocols.errors import RefusalCode
from dure_protocols.secagg.disclosure import Disclosures
from tests.protocols.secagg.parties import FIRST, MODEL, OTHER_MODEL, Parties, refused

STATISTICS = (1, 0, 1)


def another_job(parties, names):
    """A second job over some of the firms, which remember both jobs in one place."""
    terms = parties.terms
    other = Parties(names, threshold=terms.threshold, job=bytes(32), minimum_difference=terms.minimum_difference)
    other.disclosures = {name: parties.disclosures[name] for name in names}
    other.sessions = {name: other.fresh(name) for name in names}
    return other.establish()


def up_to_the_uploads(parties, at, model=MODEL):
    return parties.upload(parties.join(at, model=model), at)


def released(parties, uploads, at):
    request = parties.release_request(uploads, at)
    return {name: session.release(request) for name, session in parties.sessions.items()}


def test_control_one_job_after_the_other_over_the_same_firms_and_another_model():
    first = Parties("abcd").establish()
    first.run()
    second = another_job(first, "abcd")
    opened = second.run(model=OTHER_MODEL)
    assert np.allclose(second.mean(opened.total), second.mean_of("abcd"), atol=1e-3)


def test_statistics_of_two_jobs_that_differ_by_one_firm_are_not_both_released_however_they_interleave():
    first = Parties("abcd").establish()
    second = another_job(first, "abc")
    uploads, others = up_to_the_uploads(first, STATISTICS), up_to_the_uploads(second, STATISTICS, OTHER_MODEL)
    released(first, uploads, STATISTICS)
    for name in "abc":
        with refused(RefusalCode.COHORT_TOO_SMALL):
            second.sessions[name].release(second.release_request(others, STATISTICS))


def test_one_model_is_released_on_once_however_two_jobs_interleave():
    first = Parties("abcd").establish()
    second = another_job(first, "abc")
    uploads, others = up_to_the_uploads(first, FIRST), up_to_the_uploads(second, FIRST)
    released(first, uploads, FIRST)
    for name in "abc":
        with refused(RefusalCode.ALREADY_RELEASED):
            second.sessions[name].release(second.release_request(others, FIRST))


def test_cohorts_that_differ_by_one_firm_are_not_both_released_where_the_policy_asks_for_two():
    first = Parties("abcd", minimum_difference=2).establish()
    second = another_job(first, "abc")
    uploads, others = up_to_the_uploads(first, FIRST), up_to_the_uploads(second, FIRST, OTHER_MODEL)
    released(first, uploads, FIRST)
    for name in "abc":
        with refused(RefusalCode.COHORT_TOO_SMALL):
            second.sessions[name].release(second.release_request(others, FIRST))


def test_in_threshold_mode_one_model_is_uploaded_on_once_however_two_jobs_interleave():
    first = Parties("abcde", threshold=4).establish()
    second = another_job(first, "abcde")
    joins, others = first.join(), second.join()
    first.upload(joins)
    for name in "abcde":
        cohort = second.cohort(name, others)
        second.sessions[name].accept_cohort(cohort)
        with refused(RefusalCode.ALREADY_RELEASED):
            second.sessions[name].sign_upload(bytes(32))


@pytest.mark.parametrize("threshold", [None, 4], ids=["retry", "threshold"])
def test_a_release_repeated_after_a_crash_before_the_memory_was_stored_is_given_and_noted(threshold):
    """The session is stored first, what it released second; the power fails in between."""
    parties = Parties("abcde", threshold=threshold).establish()
    uploads = parties.upload(parties.join())
    votes = parties.votes(uploads) if threshold else ()
    request = parties.release_request(uploads, votes=votes)
    first = parties.sessions["a"].release(request)
    stored = parties.sessions["a"].snapshot()
    parties.disclosures["a"] = Disclosures()
    restored = parties.fresh("a")
    restored.restore(stored)
    assert restored.release(request) == first
    with refused(RefusalCode.ALREADY_RELEASED):
        parties.disclosures["a"].check_model(MODEL)
