"""Error feedback at the firms: what a sum's clipping lost comes with the next sum, once, whoever drops out."""

import numpy as np
import pytest

from dure_protocols.job import CodecTerms
from dure_server.coordinator import conversation, rounds
from tests.simulation.consortium import PARAMETERS, Consortium, Fault, PowersTrainer

CLIP = 0.25
FIRST, LATER = 2 * CLIP, CLIP / 2
STEP = CLIP / 2047


class FirstUpdateTrainer(PowersTrainer):
    """An update of twice the clip in the first round, and of half the clip in each later one."""

    def train(self, model, statistics, *, round_number, seed):
        trained = super().train(model, statistics, round_number=round_number, seed=seed)
        trained.update[:] = FIRST if round_number == 1 else LATER
        return trained


def job(folder, *, error_feedback=True, faults=(), threshold=None, clip_rule="fixed", num_firms=3, num_rounds=4):
    codec = CodecTerms(clip=CLIP, count_cap=100, error_feedback=error_feedback, clip_rule=clip_rule)
    return Consortium(
        folder,
        num_firms=num_firms,
        rounds=num_rounds,
        codec=codec,
        faults=faults,
        threshold=threshold,
        make_trainer=FirstUpdateTrainer,
    )


def stands_at(consortium, value):
    model = consortium.coordinator.state.model
    hashes = {firm.side.state.hash for firm in consortium.firms.values()}
    return np.allclose(model, value, atol=4 * STEP) and hashes == {consortium.coordinator.state.hash}


def residual_files(consortium):
    home = consortium.firms["firm-a"].home
    return sorted(path.name for path in home.glob("*/*/residual-*"))


def test_what_clipping_cuts_off_comes_with_the_next_sum(tmp_path):
    consortium = job(tmp_path)
    consortium.run()
    assert stands_at(consortium, FIRST + 3 * LATER)


def test_without_error_feedback_it_is_lost(tmp_path):
    consortium = job(tmp_path, error_feedback=False)
    consortium.run()
    assert stands_at(consortium, CLIP + 3 * LATER)
    assert residual_files(consortium) == []


def test_one_file_a_firm_is_left(tmp_path):
    consortium = job(tmp_path)
    consortium.run()
    assert residual_files(consortium) == ["residual-1-4-1.f32"] * 3


FAULTS = [
    pytest.param(phase, kind, threshold, id=f"{phase}-{kind}-{'threshold' if threshold else 'retry'}")
    for threshold in (None, 3)
    for phase in ("join", "update", "release")
    for kind in ("crash", "lost", "refuse", "silent")
    # a release that never comes ends a job in retry mode (ADR 0006)
    if threshold or phase != "release" or kind in {"crash", "lost"}
]


@pytest.mark.parametrize(("phase", "kind", "threshold"), FAULTS)
@pytest.mark.parametrize("round_", [1, 2])
def test_faults_of_a_firm_count_nothing_twice_and_lose_no_residual(
    tmp_path, monkeypatch, phase, kind, threshold, round_
):
    """Where the firm is in every sum, nothing is; where it missed round 1, its update is, and no residual."""
    monkeypatch.setattr(conversation, "ABSENCE_SECONDS", 0.01)
    monkeypatch.setattr(rounds, "FIRST_PAUSE_SECONDS", 0.01)
    consortium = job(tmp_path, faults=[Fault("firm-c", phase, round_, kind)], threshold=threshold, num_firms=4)
    consortium.run()
    members = consortium.members_by_round()
    sent = np.zeros(4)
    owed = {f"firm-{letter}": 0.0 for letter in "abcd"}
    for number in range(1, 5):
        for firm in members[number]:
            value = owed[firm] + (FIRST if number == 1 else LATER)
            owed[firm] = value - min(value, CLIP)
            sent[number - 1] += min(value, CLIP) / len(members[number])
    assert stands_at(consortium, sent.sum())


def test_a_firm_that_lost_its_disk_begins_with_nothing_kept(tmp_path):
    consortium = job(tmp_path, faults=[Fault("firm-c", "join", 2, "wipe")], num_firms=4)
    consortium.run()
    assert consortium.members_by_round() == dict.fromkeys(range(6), tuple(consortium.firms))
    lost = FIRST - CLIP
    assert stands_at(consortium, FIRST + 3 * LATER - lost / 4)


def test_the_clip_follows_what_is_quantised_residual_included(tmp_path):
    """Round 1 fills the clip: the next is four times as wide. Round 2 quantises LATER and what was cut off before."""
    consortium = job(tmp_path, clip_rule="rms", num_rounds=3)
    consortium.run()
    assert consortium.coordinator.state.clip == pytest.approx(8 * (LATER + FIRST - CLIP), rel=1e-3)


def test_a_damaged_residual_is_none(tmp_path):
    consortium = job(tmp_path)
    folder = consortium.firms["firm-a"]
    consortium.run()
    jobs = folder.side._folder
    place = (1, 4, 1)
    jobs.save_residual(place, np.full(PARAMETERS, np.nan, np.float32))
    assert not jobs.load_residual(place, PARAMETERS).any()
    jobs.save_residual(place, np.ones(PARAMETERS - 1, np.float32))
    assert not jobs.load_residual(place, PARAMETERS).any()
    jobs.save_residual(place, np.ones(PARAMETERS, np.float32))
    assert jobs.load_residual(place, PARAMETERS).all()
