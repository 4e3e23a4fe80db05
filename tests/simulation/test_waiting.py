"""Rounds that do not wait for ever: firms that sit out, quorum, deadlines, divergence; and each wait's one sentence."""

import re

import numpy as np
import pytest

from dure_protocols.errors import RefusalCode
from dure_protocols.job import CodecTerms, FedAvgTerms
from dure_protocols.messages import Absence, AbsenceReason, Invitation, decode, encode
from dure_server.coordinator import conversation, rounds, sentences
from dure_server.coordinator.conversation import JobFailedError, JobStoppedError
from dure_server.operation import Operation
from dure_server.store import JobState
from tests.simulation.consortium import Consortium, PowersTrainer

EVERYBODY = ("firm-a", "firm-b", "firm-c", "firm-d")
UNTIL = 1_772_460_000  # 2026-03-02 14:00 UTC


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(conversation, "ABSENCE_SECONDS", 0.01)
    monkeypatch.setattr(rounds, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(rounds, "LONGEST_PAUSE_SECONDS", 0.02)


class Shown:
    """Every sentence that the console showed, in order."""

    def __init__(self, coordinator):
        self.sentences = []
        show = coordinator._record.show

        def note(situation):
            self.sentences.append(situation.sentence)
            show(situation)

        coordinator._record.show = note


def sit_out(consortium, firm, when, reason=AbsenceReason.MAINTENANCE, until=UNTIL):
    """The firm declines invitations as long as `when(round)`."""
    handle = consortium.firms[firm].handle

    def decline(body, given):
        request = decode(body)
        if isinstance(request, Invitation) and when(request.round):
            return encode(Absence(firm, reason, until)), {}
        return handle(body, given)

    consortium.firms[firm].handle = decline


def operate(consortium, **settings):
    Operation(**settings).check(consortium.job)
    with consortium.store.transaction() as at:
        at.jobs.set_operation(consortium.job.id, settings)


def test_the_others_go_on_without_a_firm_that_sits_out_and_it_is_back_in_the_next_round(tmp_path):
    consortium = Consortium(tmp_path, num_firms=4, rounds=3, statistics=0, minimum_cohort=3)
    sit_out(consortium, "firm-b", lambda round_: round_ == 2)
    shown = Shown(coordinator := consortium.start())
    coordinator.run()
    members = consortium.members_by_round()
    assert members[1] == members[3] == EVERYBODY
    assert members[2] == ("firm-a", "firm-c", "firm-d")
    training = "round 2: firms are training: waiting for firm-a, firm-c, firm-d"
    assert f"{training}; firm-b is in maintenance until 2026-03-02 14:00 UTC" in shown.sentences
    assert not any("maintenance" in told for told in shown.sentences if told.startswith("round 3"))


def test_a_firm_that_resumes_in_a_round_that_waits_for_it_is_in_its_next_attempt(tmp_path):
    consortium = Consortium(tmp_path, num_firms=4, rounds=1, statistics=0, minimum_cohort=4)
    invited = []
    sit_out(
        consortium, "firm-b", lambda round_: not invited.append(round_) and len(invited) < 4, AbsenceReason.PAUSED, 0
    )
    shown = Shown(coordinator := consortium.start())
    coordinator.run()
    assert consortium.members_by_round()[1] == EVERYBODY
    waiting = "3 of at least 4 firms are ready; missing: firm-b (paused by its people until they resume)"
    assert waiting in shown.sentences


def test_a_time_beyond_all_times_is_not_told(tmp_path):
    told = sentences.told_absence(Absence("firm-a", AbsenceReason.MAINTENANCE, 2**64 - 1))
    assert told == "in maintenance"


def test_every_code_that_a_firm_may_refuse_with_is_explained():
    assert set(sentences.WHAT_TO_DO) == set(RefusalCode)


def test_whoever_is_not_connected_is_named_with_what_to_do(tmp_path):
    consortium = Consortium(tmp_path, rounds=1, statistics=0, minimum_cohort=3)
    consortium.run_until_keys()
    consortium.link.away.add("firm-c")
    shown = Shown(coordinator := consortium.start())
    receive = consortium.link.receive

    def come_back(ids, timeout):
        yield from receive(ids, timeout)
        if any("missing: firm-c" in told for told in shown.sentences):
            consortium.link.away.clear()

    consortium.link.receive = come_back
    coordinator.run()
    assert "round 1: inviting the firms: waiting for firm-c (not connected: start its agent)" in shown.sentences
    assert "2 of at least 3 firms are ready; missing: firm-c (not connected: start its agent)" in shown.sentences
    assert all(len(re.findall(r"waiting for|missing:", told)) <= 1 for told in shown.sentences)


def test_an_attempt_begins_with_the_quorum_and_not_before(tmp_path):
    consortium = Consortium(tmp_path, num_firms=4, rounds=2, statistics=0, minimum_cohort=2)
    operate(consortium, quorum=4)
    invited = []
    sit_out(consortium, "firm-b", lambda round_: round_ == 1 and not invited.append(1) and len(invited) < 3)
    consortium.run()
    assert len(invited) >= 3
    assert consortium.members_by_round()[1] == EVERYBODY


def test_a_quorum_that_is_taken_back_counts_from_the_next_attempt_on(tmp_path):
    consortium = Consortium(tmp_path, num_firms=4, rounds=1, statistics=0, minimum_cohort=2)
    operate(consortium, quorum=4)
    invited = []

    def until_the_operator_sees_it(round_):
        invited.append(round_)
        if len(invited) == 3:
            operate(consortium)
        return True

    sit_out(consortium, "firm-b", until_the_operator_sees_it)
    consortium.run()
    assert consortium.members_by_round()[1] == ("firm-a", "firm-c", "firm-d")


def test_each_phase_waits_as_long_as_its_own_deadline(tmp_path, monkeypatch):
    consortium = Consortium(tmp_path, num_firms=4, rounds=1, statistics=0, threshold=3, phase_seconds=7.0)
    operate(consortium, join_seconds=1.0, update_seconds=2.0, vote_seconds=3.0, release_seconds=4.0)
    coordinator, waits = consortium.start(), {}
    ask = coordinator._talk.ask

    def note(requests, situation, **options):
        waits[situation.phase] = options.get("patience_seconds")
        return ask(requests, situation, **options)

    coordinator._talk.ask = note
    coordinator.run()
    assert [waits[phase] for phase in ("join", "update", "vote", "release", "finish")] == [1.0, 2.0, 3.0, 4.0, 7.0]


class WorseningTrainer(PowersTrainer):
    """Its loss is ten times larger in each round."""

    def assess(self, model, statistics):
        return {"validation_loss": (10.0 ** len(self.trained_rounds) * self.rows, float(self.rows))}


class RunawayTrainer(PowersTrainer):
    """Its updates are as large as the clip lets them be."""

    def train(self, model, statistics, *, round_number, seed):
        trained = super().train(model, statistics, round_number=round_number, seed=seed)
        trained.update[:] = 1e20
        return trained


def test_a_job_that_diverges_is_stopped_with_its_reason_and_may_go_on_all_the_same(tmp_path):
    consortium = Consortium(tmp_path, rounds=6, statistics=0, make_trainer=WorseningTrainer)
    with pytest.raises(JobFailedError, match=r"diverged.*after round 5: .*10 times its best.*3 rounds.*job set job-1"):
        consortium.run()
    operate(consortium, diverged_rounds=0)
    consortium.run()
    assert len(consortium.members_by_round()) == 7


def test_a_model_that_is_no_number_any_more_stops_the_job(tmp_path):
    consortium = Consortium(
        tmp_path,
        rounds=3,
        statistics=0,
        codec=CodecTerms(clip=1e20, count_cap=100),
        server_step=FedAvgTerms(learning_rate=1e30),
        make_trainer=RunawayTrainer,
    )
    with pytest.raises(JobFailedError, match="after round 1: the model holds NaN or infinity"):
        consortium.run()


@pytest.mark.parametrize("state", [JobState.PAUSED, JobState.STOPPED])
@pytest.mark.parametrize("phase", ["keys", "establish", "join", "update", "release", "finish"])
def test_a_job_is_paused_and_resumed_or_stopped_in_any_phase(tmp_path, phase, state):
    consortium = Consortium(tmp_path, rounds=1, statistics=0, phase_seconds=5.0)
    deliver, halted = consortium.link._deliver, []

    def halt(ask_id):
        if not halted and f"/{phase}" in ask_id:
            halted.append(ask_id)
            with consortium.store.transaction() as at:
                at.jobs.set_state(consortium.job.id, state)
        deliver(ask_id)

    consortium.link._deliver = halt
    with pytest.raises(JobStoppedError) as stopped:
        consortium.run()
    assert stopped.value.is_for_good is (state is JobState.STOPPED)
    if state is JobState.STOPPED:
        return
    with consortium.store.transaction() as at:
        at.jobs.set_state(consortium.job.id, JobState.RUNNING)
    consortium.run()
    assert consortium.members_by_round()[1] == ("firm-a", "firm-b", "firm-c")
    assert np.isfinite(consortium.coordinator.state.model).all()
    assert {firm.side.state.hash for firm in consortium.firms.values()} == {consortium.coordinator.state.hash}
