"""What a server asks for beyond the job that firms approved, over the firm's whole side: files, rounds and jobs."""

import numpy as np
import pytest

from dure_client.jobs.side import FirmLimits, Given
from dure_protocols.errors import RefusalCode, RefusedError
from dure_protocols.global_state import last_round
from dure_protocols.messages import Cohort, Finish, Invitation, PublishedSum, Refusal
from dure_server.coordinator.conversation import JobFailedError
from dure_server.coordinator.rounds import Coordinator
from tests.simulation.consortium import Consortium, Fault
from tests.simulation.false_sums import FalseSums

FOUR = {"num_firms": 4, "rounds": 1}


def without_finish(consortium):
    """Run every round of the job, and leave the firms before the end that they would be told of."""
    coordinator = consortium.start()
    coordinator._finishing.run = lambda: None
    coordinator.run()
    return coordinator


def invitation(consortium, round_, attempt=1, sums=()):
    return Invitation(consortium.job.digest(), 1, round_, attempt, sums)


def last_sum(consortium):
    done = consortium.coordinator._record.finished_rounds()[-1]
    published = PublishedSum(done.epoch, done.number, done.attempt, done.cohort, done.members, done.sum_digest)
    array = {published.array_name: consortium.link.shared[done.sum_digest]}
    return (published,), Given(array, {published.array_name: done.sum_digest})


def test_rounds_behind_the_last_are_refused(tmp_path):
    """There the model stands still and metrics are exact: two cohorts would show one firm's."""
    consortium = Consortium(tmp_path, **FOUR)
    without_finish(consortium)
    sums, given = last_sum(consortium)
    over = last_round(consortium.job) + 1
    for name in ("firm-a", "firm-b", "firm-c"):
        answer = consortium.firms[name].side.answer(invitation(consortium, over, sums=sums), given).message
        assert answer == Refusal(name, RefusalCode.GLOBAL_MODEL, over)


def sides_of(consortium):
    """Firms' sides, asked for nothing before: a firm makes its own at its first request."""
    consortium.run_until_keys()
    return {name: firm.side for name, firm in consortium.firms.items()}


def test_statistics_over_some_of_the_firms_are_refused_by_each_firm(tmp_path):
    consortium = Consortium(tmp_path, **FOUR)
    sides = sides_of(consortium)
    joins = tuple(sides[n].answer(invitation(consortium, 0), Given()).message for n in ("firm-a", "firm-b", "firm-c"))
    with pytest.raises(RefusedError) as info:
        sides["firm-a"].answer(Cohort(consortium.job.digest(), 1, 0, 1, joins), Given())
    assert info.value.code is RefusalCode.COHORT_TOO_SMALL


class NeutralSumServer(FalseSums):
    """Publishes, for round 1, a sum that leaves the model where it is, to have another round on the same model."""

    def falsify(self, total, layout, members):
        if self.state.round == 1:
            middle = (2 ** (self._job.codec.bits - 1) - 1) * len(members)
            total[: layout.packed_words].view(np.uint16)[:] = middle


def test_a_false_sum_that_would_leave_the_model_in_place_is_refused_by_every_firm(tmp_path):
    consortium = Consortium(tmp_path, **{**FOUR, "rounds": 2})
    server = consortium.start(NeutralSumServer)
    with pytest.raises(JobFailedError, match="refuse a published sum"):
        server.run()
    assert np.array_equal(server.state.model, consortium.initial)


def test_a_server_cannot_retire_a_firm_before_the_job_is_over(tmp_path):
    consortium = Consortium(tmp_path, **FOUR)
    side = sides_of(consortium)["firm-a"]
    answer = side.answer(Finish(consortium.job.digest(), ()), Given()).message
    assert answer == Refusal("firm-a", RefusalCode.GLOBAL_MODEL, 0)
    assert side.answer(invitation(consortium, 0), Given()).message.firm == "firm-a"


class GaveUpError(Exception):
    """The test has seen enough."""


def refusals_of_second_job(tmp_path, **options):
    """Run a job over four firms, then begin another on the same data; why firms refuse its first round, if they do."""
    Consortium(tmp_path, **FOUR).run()
    second = Consortium(tmp_path, job_id="job-2", **options)
    coordinator = second.start()

    def give_up(situation, seconds):
        raise GaveUpError(situation.sentence)

    coordinator._talk.pause = give_up
    try:
        coordinator.run()
    except (GaveUpError, JobFailedError) as error:
        return str(error)
    return ""


def test_a_second_job_without_one_firm_gets_no_statistics(tmp_path):
    assert "cohort-too-small" in refusals_of_second_job(tmp_path, num_firms=3, rounds=1, first_value=1.0)


def test_a_second_job_over_the_same_firms_runs(tmp_path):
    assert refusals_of_second_job(tmp_path, num_firms=4, rounds=1, first_value=1.0) == ""


def test_a_second_job_from_the_same_first_model_is_refused(tmp_path):
    assert "has released" in refusals_of_second_job(tmp_path, num_firms=4, rounds=1)


def test_a_firm_may_consent_to_statistics_that_differ_by_one_firm(tmp_path):
    limits = FirmLimits(minimum_statistics_difference=1)
    assert refusals_of_second_job(tmp_path, num_firms=3, rounds=1, first_value=1.0, limits=limits) == ""


class CarelessServer(Coordinator):
    """Is content with as many firms' statistics as the threshold."""

    @property
    def _num_needed(self):
        return self._terms.least_survivors


@pytest.mark.parametrize("phase", ["join", "update"])
def test_in_threshold_mode_statistics_over_some_of_the_firms_get_no_vote(tmp_path, phase):
    """Whether the server leaves a firm out of the cohort or out of the survivors."""
    firms = Consortium(
        tmp_path, num_firms=5, threshold=4, rounds=1, faults=[Fault("firm-b", phase, 0, "silent")], phase_seconds=0.2
    )
    server = firms.start(CarelessServer)

    def give_up(situation, seconds):
        raise GaveUpError

    server._talk.pause = give_up
    with pytest.raises(GaveUpError):
        server.run()
    with firms.store.reading() as at:
        reasons = [row.reason for row in at.rounds.of("job-1") if row.reason]
    others = ("firm-a", "firm-c", "firm-d", "firm-e")
    assert reasons
    assert all(f"{firm}: cohort-too-small" in reasons[0] for firm in others), reasons
    assert firms.members_by_round() == {}
