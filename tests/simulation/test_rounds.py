"""The course of a job with the real coordinator, store, firms and cryptography. Powers of two show who was counted."""

import random

import numpy as np
import pytest

from dure_server.coordinator import conversation, rounds
from dure_server.coordinator.conversation import JobFailedError
from tests.simulation.consortium import Consortium, Fault


def mean_update(ranks: list[int]) -> float:
    return sum(2.0**-rank for rank in ranks) / len(ranks)


def close(model: np.ndarray, expected: float, rounds: int) -> bool:
    step = 2.0 / (2**12 - 2)  # of each coordinate of the sum; rounding is stochastic and within one step a firm
    return bool(np.allclose(model, expected, atol=rounds * 1.5 * step))


def test_every_firm_computes_the_model_that_the_server_computes(tmp_path):
    consortium = Consortium(tmp_path, rounds=3)
    consortium.run()
    server = consortium.coordinator.state
    assert close(server.model, 3 * mean_update([1, 2, 3]), 3)
    assert server.normalisation.tolist() == [150.0, -75.0, 300.0]
    for firm in consortium.firms.values():
        assert np.array_equal(firm.side.state.model, server.model)
        assert firm.side.state.hash == server.hash


def test_the_model_handed_over_is_the_one_with_the_best_validation_loss(tmp_path):
    """The loss grows with each round of this trainer, so the first model is the best."""
    consortium = Consortium(tmp_path, rounds=2)
    final = consortium.run()
    assert np.array_equal(final, consortium.initial)
    assert np.array_equal(np.fromfile(tmp_path / "firm-a" / "job-1" / "final.f32", "<f4"), final)


@pytest.mark.parametrize("kind", ["silent", "refuse", "corrupt"])
def test_a_drop_out_before_upload_costs_a_fresh_attempt_without_it(tmp_path, kind):
    consortium = Consortium(tmp_path, num_firms=4, rounds=2, faults=[Fault("firm-b", "update", 1, kind)])
    consortium.run()
    members = consortium.members_by_round()
    assert members[1] == ("firm-a", "firm-c", "firm-d")
    assert members[2] == ("firm-a", "firm-b", "firm-c", "firm-d")
    expected = mean_update([1, 3, 4]) + mean_update([1, 2, 3, 4])
    assert close(consortium.coordinator.state.model, expected, 2)
    assert consortium.firms["firm-b"].side.state.hash == consortium.coordinator.state.hash


@pytest.mark.parametrize("phase", ["join", "update", "release"])
def test_an_agent_that_crashes_between_two_phases_goes_on_from_its_files(tmp_path, phase):
    consortium = Consortium(tmp_path, rounds=2, faults=[Fault("firm-b", phase, 1, "crash")])
    consortium.run()
    assert consortium.members_by_round()[1] == ("firm-a", "firm-b", "firm-c")
    assert close(consortium.coordinator.state.model, 2 * mean_update([1, 2, 3]), 2)


@pytest.mark.parametrize("phase", ["join", "update", "release"])
def test_an_agent_killed_before_its_answer_is_stored_is_in_the_next_attempt_of_the_round(tmp_path, phase):
    faults = [Fault("firm-b", phase, 1, "lost")]
    consortium = Consortium(tmp_path, rounds=3, faults=faults, phase_seconds=5.0)
    consortium.run()
    members = consortium.members_by_round()
    assert members[1] == members[2] == members[3] == ("firm-a", "firm-b", "firm-c")
    assert {firm.side.state.hash for firm in consortium.firms.values()} == {consortium.coordinator.state.hash}


@pytest.mark.parametrize("phase", ["join", "update"])
def test_an_agent_that_is_killed_again_and_again_sits_the_round_out(tmp_path, phase):
    consortium = Consortium(tmp_path, rounds=3, phase_seconds=5.0)
    deliver, seen = consortium.link._deliver, set()

    def kill_once_an_attempt(ask_id):
        is_wanted = ask_id.startswith("job-1/1/") and f"/{phase}" in ask_id and ask_id.endswith("/1")
        if is_wanted and ask_id not in seen:
            seen.add(ask_id)
            consortium.link.faults.append(Fault("firm-b", phase, 1, "lost"))
        deliver(ask_id)

    consortium.link._deliver = kill_once_an_attempt
    consortium.run()
    assert len(seen) == 2
    members = consortium.members_by_round()
    assert members[1] == ("firm-a", "firm-c")
    assert members[2] == ("firm-a", "firm-b", "firm-c")


def test_a_further_attempt_on_the_same_model_trains_nothing_again(tmp_path):
    consortium = Consortium(tmp_path, rounds=2, faults=[Fault("firm-b", "update", 1, "refuse")])
    consortium.run()
    assert consortium.firms["firm-a"].trainer.trained_rounds == [1, 2]


def final_model(folder, firm):
    return np.fromfile(folder / firm / "job-1" / "final.f32", "<f4")


def test_a_firm_that_missed_the_last_rounds_gets_the_right_model_from_a_restarted_coordinator(tmp_path):
    faults = [Fault("firm-c", "join", number, "silent") for number in (1, 2, 3, 4)]
    consortium = Consortium(tmp_path, rounds=3, faults=faults)
    coordinator = consortium.start()
    coordinator._finishing.run = lambda: None  # it is killed here
    coordinator.run()
    assert consortium.firms["firm-c"].side.state.round < consortium.firms["firm-a"].side.state.round
    final = consortium.run()
    assert np.array_equal(final_model(tmp_path, "firm-c"), final)
    assert consortium.firms["firm-c"].side.state.hash == consortium.coordinator.state.hash


def test_a_firm_that_is_away_at_the_end_takes_the_model_when_it_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(conversation, "ABSENCE_SECONDS", 0.01)
    consortium = Consortium(tmp_path, rounds=1)
    coordinator = consortium.start()
    finish = coordinator._finishing.run

    def go_away_and_finish():
        consortium.link.away.add("firm-c")
        finish()

    coordinator._finishing.run = go_away_and_finish
    final = coordinator.run()
    assert not (tmp_path / "firm-c" / "job-1" / "final.f32").exists()
    consortium.link.away.clear()
    waiting = [ask_id for ask_id in consortium.link.asked if ask_id not in consortium.link.answers]
    assert len(list(consortium.link.receive(waiting, 0))) == 1
    assert np.array_equal(final_model(tmp_path, "firm-c"), final)


def test_a_firm_that_stays_away_is_waited_for_once_and_invited_when_it_is_back(tmp_path, monkeypatch):
    monkeypatch.setattr(conversation, "ABSENCE_SECONDS", 0.01)
    consortium = Consortium(tmp_path, rounds=5, statistics=0)
    consortium.run_until_keys()
    link = consortium.link
    link.away.add("firm-c")
    share, push, invited = link.share, link.push, []

    def come_back_after_three_rounds(vector):
        if len(link.shared) == 2:
            link.away.clear()
        return share(vector)

    def note_and_push(asks):
        invited.extend(asks)
        return push(asks)

    link.share, link.push = come_back_after_three_rounds, note_and_push
    consortium.run()
    rounds = {ask.place.round for ask in invited if ask.node == 2 and ask.place.phase.startswith("join")}
    assert rounds == {1, 4, 5, 6}
    assert consortium.members_by_round()[5] == ("firm-a", "firm-b", "firm-c")
    assert consortium.firms["firm-c"].side.state.hash == consortium.coordinator.state.hash


def test_a_firm_that_dropped_out_and_stays_away_is_waited_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr(conversation, "ABSENCE_SECONDS", 0.01)
    faults = [Fault("firm-c", "update", 1, "silent")]
    consortium = Consortium(tmp_path, rounds=4, statistics=0, faults=faults)
    consortium.run_until_keys()
    link = consortium.link
    share, push, invited = link.share, link.push, []

    def go_away(vector):
        link.away.add("firm-c")
        return share(vector)

    def note_and_push(asks):
        invited.extend(asks)
        return push(asks)

    link.share, link.push = go_away, note_and_push
    consortium.run()
    rounds = [ask.place.round for ask in invited if ask.node == 2 and ask.place.phase.startswith("join")]
    assert rounds == [1, 2]


class GaveUpError(Exception):
    """The test has seen enough."""


def test_a_coordinator_that_waited_long_begins_at_once_after_a_restart(tmp_path, monkeypatch):
    """Attempts that too few joined have used numbers, and recorded answers: a restart does not repeat them."""
    monkeypatch.setattr(conversation, "ABSENCE_SECONDS", 0.001)
    consortium = Consortium(tmp_path, rounds=1, statistics=0, minimum_cohort=3)
    consortium.run_until_keys()
    consortium.link.away.add("firm-c")
    coordinator, pauses = consortium.start(), []

    def count(situation, seconds):
        pauses.append(situation.sentence)
        if len(pauses) == 20:
            raise GaveUpError

    coordinator._talk.pause = count
    with pytest.raises(GaveUpError):
        coordinator.run()
    assert "firm-c (not connected: start its agent)" in pauses[0]
    consortium.link.away.clear()
    again, pauses_again = consortium.start(), []
    again._talk.pause = lambda situation, seconds: pauses_again.append(situation.sentence)
    again.run()
    assert pauses_again == []


def test_a_firm_that_was_away_for_rounds_catches_up_with_the_sums_it_missed(tmp_path):
    faults = [Fault("firm-c", "join", number, "silent") for number in (1, 2)]
    consortium = Consortium(tmp_path, rounds=4, faults=faults)
    consortium.run()
    members = consortium.members_by_round()
    assert members[1] == members[2] == ("firm-a", "firm-b")
    assert members[3] == ("firm-a", "firm-b", "firm-c")
    assert consortium.firms["firm-c"].side.state.hash == consortium.coordinator.state.hash


class KilledError(Exception):
    """The coordinator's process ends here."""


@pytest.mark.parametrize("moment", range(1, 52, 2))
def test_a_coordinator_killed_at_any_answer_goes_on_and_counts_nothing_twice(tmp_path, moment):
    consortium = Consortium(tmp_path, rounds=2)
    deliver, delivered = consortium.link._deliver, []

    def deliver_and_die(ask_id: str) -> None:
        deliver(ask_id)
        delivered.append(ask_id)
        if len(delivered) == moment:
            raise KilledError

    consortium.link._deliver = deliver_and_die
    try:
        consortium.run()
    except KilledError:
        consortium.run()
    assert close(consortium.coordinator.state.model, 2 * mean_update([1, 2, 3]), 2)
    assert all(len(members) == 3 for members in consortium.members_by_round().values())


def test_a_member_that_cannot_release_ends_the_job_with_its_name(tmp_path):
    consortium = Consortium(tmp_path, rounds=2, faults=[Fault("firm-b", "release", 1, "refuse")])
    with pytest.raises(JobFailedError, match=r"refused: firm-b.*propose a job"):
        consortium.run()


def test_statistics_are_summed_over_every_firm_or_not_at_all(tmp_path):
    """Exact sums over all firms but one would show that one's: the round waits for the firm instead."""
    consortium = Consortium(tmp_path, rounds=1, faults=[Fault("firm-b", "update", 0, "silent")])
    link = consortium.link
    receive = link.receive
    waits = []

    def receive_then_recover(ids, timeout):
        if any("/0/" in i and "update" in i for i in ids):
            waits.append(ids)
            if len(waits) > 3:
                link.faults.clear()
        yield from receive(ids, timeout)

    link.receive = receive_then_recover
    consortium.run()
    assert consortium.members_by_round()[0] == ("firm-a", "firm-b", "firm-c")
    assert consortium.coordinator.state.normalisation.tolist() == [150.0, -75.0, 300.0]


@pytest.mark.parametrize("seed", range(12))
def test_random_faults_and_restarts_count_nothing_twice(tmp_path, monkeypatch, seed):
    """Eight rounds with a list of faults each, and a coordinator that is killed three times."""
    monkeypatch.setattr(conversation, "ABSENCE_SECONDS", 0.01)
    monkeypatch.setattr(rounds, "FIRST_PAUSE_SECONDS", 0.01)
    chance = random.Random(f"retry {seed}")
    names = [f"firm-{letter}" for letter in "abcdef"[: chance.randint(3, 6)]]
    faults = []
    for number in range(1, 9):
        for firm in chance.sample(names, chance.randint(0, len(names) - 2)):
            phase = chance.choice(["join", "update", "release"])
            kinds = ["crash", "lost"] + ["silent", "refuse"] * (phase != "release") + ["corrupt"] * (phase == "update")
            faults.append(Fault(firm, phase, number, chance.choice(kinds)))
    consortium = Consortium(tmp_path, num_firms=len(names), rounds=8, statistics=0, faults=faults)
    deliver, left = consortium.link._deliver, [0]

    def deliver_and_die(ask_id):
        deliver(ask_id)
        left[0] -= 1
        if left[0] == 0:
            raise KilledError

    consortium.link._deliver = deliver_and_die
    for _ in range(3):
        left[0] = chance.randint(1, 15 * len(names))
        try:
            consortium.run()
        except KilledError:
            continue
        break
    left[0] = 0
    consortium.run()
    members = consortium.members_by_round()
    expected = sum(mean_update([names.index(firm) + 1 for firm in members[number]]) for number in range(1, 9))
    assert close(consortium.coordinator.state.model, expected, 8)
    assert {firm.side.state.hash for firm in consortium.firms.values()} == {consortium.coordinator.state.hash}
