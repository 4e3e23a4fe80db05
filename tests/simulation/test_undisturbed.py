"""A run that was killed, cut and started again ends with the very model of one that was left alone, bit for bit."""

from contextlib import contextmanager

import numpy as np
import pytest

from dure_protocols.job import CodecTerms, FedAdamTerms
from dure_server.coordinator import conversation, rounds
from tests.simulation.consortium import PARAMETERS, Consortium, Fault, PowersTrainer

CODEC = CodecTerms(clip=0.25, count_cap=100, error_feedback=True, clip_rule="rms")
FIRMS = ("firm-a", "firm-b", "firm-c", "firm-d")


class WanderingTrainer(PowersTrainer):
    """An update that depends on the model, the round and the firm: whatever goes another way shows in every bit."""

    def train(self, model, statistics, *, round_number, seed):
        trained = super().train(model, statistics, round_number=round_number, seed=seed)
        chance = np.random.default_rng([self.rank, round_number])
        trained.update[:] = chance.normal(0, 0.2, PARAMETERS).astype(np.float32) - 0.1 * model
        return trained


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(conversation, "ABSENCE_SECONDS", 0.01)
    monkeypatch.setattr(rounds, "FIRST_PAUSE_SECONDS", 0.01)


def a_consortium(folder, *, threshold=None, faults=()):
    folder.mkdir()
    return Consortium(
        folder,
        num_firms=len(FIRMS),
        rounds=2,
        codec=CODEC,
        server_step=FedAdamTerms(),
        threshold=threshold,
        phase_seconds=5.0,
        faults=faults,
        make_trainer=WanderingTrainer,
    )


@pytest.fixture(scope="module", params=[None, 3], ids=["retry", "threshold"])
def undisturbed(request, tmp_path_factory):
    """The mode's threshold, and the final state's hash and model of a run that nothing happens to."""
    consortium = a_consortium(tmp_path_factory.mktemp("undisturbed") / "run", threshold=request.param)
    final = consortium.run()
    return request.param, consortium.coordinator.state.hash, final.tobytes()


def check_the_same(consortium, undisturbed):
    _, wanted, final = undisturbed
    assert set(consortium.members_by_round().values()) == {FIRMS}
    assert consortium.coordinator.state.hash == wanted
    assert consortium.coordinator.state.final.tobytes() == final
    for firm in consortium.firms.values():
        assert firm.side.state.hash == wanted
        assert np.fromfile(firm.home / firm.name / "job-1" / "final.f32", "<f4").tobytes() == final


def test_another_run_with_other_keys_is_the_same(tmp_path, undisturbed):
    consortium = a_consortium(tmp_path / "run", threshold=undisturbed[0])
    consortium.run()
    check_the_same(consortium, undisturbed)


PHASES = [("keys", 0), ("roster", 0), ("establish", 0), ("finish", 0)]
PHASES += [(phase, round_) for round_ in (0, 1, 2) for phase in ("join", "update", "vote", "release")]


@pytest.mark.parametrize(("phase", "round_"), PHASES, ids=[f"{phase}-{round_}" for phase, round_ in PHASES])
@pytest.mark.parametrize("kind", ["crash", "lost"])
def test_a_firm_killed_at_any_phase(tmp_path, undisturbed, phase, round_, kind):
    if undisturbed[0] and (phase, kind) == ("update", "lost") and round_:
        return  # in threshold mode the round goes on without that firm, which is another model
    if undisturbed[0] is None and phase == "vote":
        return  # which retry mode does not have
    fault = Fault("firm-b", phase, round_, kind)
    consortium = a_consortium(tmp_path / "run", threshold=undisturbed[0], faults=[fault])
    consortium.run()
    assert consortium.link.faults == []
    check_the_same(consortium, undisturbed)


class KilledError(Exception):
    """The coordinator's process ends here."""


class Killing:
    """Ends the coordinator once: at its `moment`-th call of something, before it is done or after."""

    def __init__(self, moment, *, after):
        self.moment, self.after, self.calls = moment, after, 0

    def at(self, work):
        self.calls += 1
        if self.calls == self.moment and not self.after:
            raise KilledError
        result = work()
        if self.calls == self.moment and self.after:
            raise KilledError
        return result


def run_with_kills(consortium):
    for _ in range(5):
        try:
            return consortium.run()
        except KilledError:
            continue
    raise AssertionError("killed more often than it should be")


@pytest.mark.parametrize("moment", range(1, 80, 13))
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_coordinator_killed_at_an_answer(tmp_path, undisturbed, moment, after):
    consortium = a_consortium(tmp_path / "run", threshold=undisturbed[0])
    killing, deliver = Killing(moment, after=after), consortium.link._deliver
    consortium.link._deliver = lambda ask_id: killing.at(lambda: deliver(ask_id))
    run_with_kills(consortium)
    assert killing.calls > moment or moment > 60
    check_the_same(consortium, undisturbed)


@pytest.mark.parametrize("moment", range(1, 100, 14))
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_coordinator_killed_at_a_transaction(tmp_path, undisturbed, moment, after):
    consortium = a_consortium(tmp_path / "run", threshold=undisturbed[0])
    killing, transaction = Killing(moment, after=after), consortium.store.transaction

    @contextmanager
    def killed():
        killing.calls += 1
        if killing.calls == moment and not after:
            raise KilledError
        with transaction() as at:
            yield at
        if killing.calls == moment and after:
            raise KilledError

    consortium.store.transaction = killed
    run_with_kills(consortium)
    check_the_same(consortium, undisturbed)


@pytest.mark.parametrize("moment", [2, 4])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_coordinator_killed_as_it_publishes(tmp_path, undisturbed, moment, after):
    consortium = a_consortium(tmp_path / "run", threshold=undisturbed[0])
    killing, share = Killing(moment, after=after), consortium.link.share
    consortium.link.share = lambda vector: killing.at(lambda: share(vector))
    run_with_kills(consortium)
    assert killing.calls >= moment
    check_the_same(consortium, undisturbed)


def test_a_firm_that_lost_everything_takes_the_moments_from_a_snapshot(tmp_path):
    """Its residual is gone with its disk, so the models differ from an undisturbed run's, but not from one another."""
    consortium = a_consortium(tmp_path / "run", faults=[Fault("firm-b", "join", 2, "wipe")])
    consortium.run()
    state = consortium.coordinator.state
    assert len(state.moments.vectors) == 2
    assert {firm.side.state.hash for firm in consortium.firms.values()} == {state.hash}
