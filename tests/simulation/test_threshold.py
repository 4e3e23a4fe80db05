"""Threshold mode with the real coordinator, store, firms and cryptography: survivors open the sum, whoever is gone."""

import itertools
import random

import numpy as np
import pytest

from dure_server.coordinator import conversation, rounds
from dure_server.coordinator.conversation import JobFailedError
from tests.simulation.consortium import Consortium, Fault

SEVEN = {"num_firms": 7, "threshold": 5}
FIVE = {"num_firms": 5, "threshold": 4}
ALL = tuple(f"firm-{letter}" for letter in "abcdefg")
STEP = 2.0 / (2**12 - 2)  # of one coordinate; rounding is stochastic and within one step a firm


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(conversation, "ABSENCE_SECONDS", 0.01)
    monkeypatch.setattr(rounds, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(rounds, "LONGEST_PAUSE_SECONDS", 0.01)


def mean_update(members):
    return sum(2.0 ** -(ALL.index(firm) + 1) for firm in members) / len(members)


def check_counted_once(consortium, num_rounds=None):
    """Every published sum is over its members' updates, each once; and all firms that are there hold that model."""
    members = {number: of for number, of in consortium.members_by_round().items() if number in range(1, 100)}
    trained = [of for number, of in members.items() if number <= consortium.job.rounds]
    expected = sum(mean_update(of) for of in trained)
    model = consortium.coordinator.state.model
    assert np.allclose(model, expected, atol=1.5 * STEP * len(trained)), (model[0], expected)
    if num_rounds is not None:
        assert len(trained) == num_rounds


def check_all_agree(consortium):
    server = consortium.coordinator.state
    for firm in consortium.firms.values():
        assert firm.side.state.hash == server.hash, firm.name


def test_control_every_firm_computes_the_model_that_the_server_computes(tmp_path):
    consortium = Consortium(tmp_path, rounds=3, **SEVEN)
    consortium.run()
    check_counted_once(consortium, 3)
    check_all_agree(consortium)
    assert consortium.members_by_round() == dict.fromkeys(range(5), ALL)
    assert consortium.coordinator.state.normalisation.tolist() == [350.0, -175.0, 700.0]


PHASES = ["join", "update", "vote", "release"]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", ["silent", "refuse"])
def test_one_drop_out_at_any_step_costs_no_attempt(tmp_path, phase, kind):
    consortium = Consortium(tmp_path, rounds=2, statistics=0, faults=[Fault("firm-b", phase, 1, kind)], **FIVE)
    consortium.run()
    first = set(ALL[:5]) - ({"firm-b"} if phase in ("join", "update") else set())
    assert set(consortium.members_by_round()[1]) == first
    assert consortium.members_by_round()[2] == ALL[:5]
    assert attempts(consortium)[1] == 1
    check_counted_once(consortium, 2)
    check_all_agree(consortium)


def attempts(consortium):
    """How many attempts each round took."""
    with consortium.store.reading() as at:
        return {row.number: row.attempt for row in at.rounds.of(consortium.job.id) if row.sum_digest}


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations_with_replacement(PHASES, 2)))
def test_as_many_drop_outs_as_the_threshold_bears_cost_no_attempt(tmp_path, first, second):
    faults = [Fault("firm-b", first, 1, "silent"), Fault("firm-f", second, 1, "silent")]
    consortium = Consortium(tmp_path, rounds=2, statistics=0, faults=faults, **SEVEN)
    consortium.run()
    gone = {f.firm for f in faults if f.phase in ("join", "update")}
    assert set(consortium.members_by_round()[1]) == set(ALL) - gone
    assert attempts(consortium)[1] == 1
    check_counted_once(consortium, 2)
    check_all_agree(consortium)


def test_a_corrupt_vector_is_a_drop_out(tmp_path):
    faults = [Fault("firm-b", "update", 1, "corrupt")]
    consortium = Consortium(tmp_path, rounds=1, statistics=0, faults=faults, **FIVE)
    consortium.run()
    assert set(consortium.members_by_round()[1]) == set(ALL[:5]) - {"firm-b"}
    check_counted_once(consortium, 1)


@pytest.mark.parametrize("phase", ["update", "vote"])
def test_below_the_threshold_an_attempt_is_abandoned_and_the_next_one_works(tmp_path, phase):
    faults = [Fault(firm, phase, 1, "silent") for firm in ("firm-a", "firm-d")]
    consortium = Consortium(tmp_path, rounds=2, statistics=0, faults=faults, **FIVE)
    forget = consortium.link.forget

    def forget_and_recover(ids):  # what an abandoned attempt ends with
        if any(phase in ask_id for ask_id in ids):
            consortium.link.faults.clear()
        forget(ids)

    consortium.link.forget = forget_and_recover
    consortium.run()
    assert attempts(consortium)[1] > 1
    check_counted_once(consortium, 2)
    check_all_agree(consortium)


def test_below_the_threshold_of_releases_nothing_is_published_and_the_job_ends_with_names(tmp_path):
    faults = [Fault(firm, "release", 1, "refuse") for firm in ("firm-a", "firm-d")]
    consortium = Consortium(tmp_path, rounds=1, statistics=0, faults=faults, **FIVE)
    with pytest.raises(JobFailedError, match=r"too few firms can open.*firm-a.*firm-d"):
        consortium.run()
    assert consortium.members_by_round() == {}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", ["crash", "lost"])
def test_a_firm_restored_between_any_two_steps_goes_on_from_its_files(tmp_path, phase, kind):
    faults = [Fault("firm-c", phase, 1, kind)]
    consortium = Consortium(tmp_path, rounds=2, statistics=0, faults=faults, **FIVE)
    consortium.run()
    assert not consortium.link.faults
    assert consortium.members_by_round()[2] == ALL[:5]
    # One that was killed before it could say that it had joined is let in by a fresh attempt.
    assert attempts(consortium)[1] == (2 if (phase, kind) == ("join", "lost") else 1)
    check_counted_once(consortium, 2)
    check_all_agree(consortium)


def test_every_firm_crashes_before_every_step(tmp_path):
    faults = [Fault(firm, phase, number, "crash") for firm in ALL for phase in PHASES for number in (0, 1, 2, 3)]
    faults += [Fault(firm, phase, 0, "crash") for firm in ALL for phase in ("keys", "roster", "establish")]
    consortium = Consortium(tmp_path, rounds=2, faults=faults, **SEVEN)
    consortium.run()
    assert not consortium.link.faults
    assert consortium.members_by_round() == dict.fromkeys(range(4), ALL)
    check_counted_once(consortium, 2)
    check_all_agree(consortium)


class KilledError(Exception):
    """The coordinator's process ends here."""


def killed_at(consortium, moment):
    """Kill the coordinator behind the moment-th answer. Whether it came to that."""
    deliver, delivered = consortium.link._deliver, []

    def deliver_and_die(ask_id):
        deliver(ask_id)
        delivered.append(ask_id)
        if len(delivered) == moment:
            raise KilledError

    consortium.link._deliver = deliver_and_die
    try:
        consortium.run()
    except KilledError:
        return True
    finally:
        consortium.link._deliver = deliver
    return False


@pytest.mark.parametrize("moment", range(1, 92, 3))
def test_a_coordinator_killed_at_any_answer_goes_on_and_counts_nothing_twice(tmp_path, moment):
    faults = [Fault("firm-b", "update", 1, "silent")]
    consortium = Consortium(tmp_path, rounds=2, statistics=0, faults=faults, **FIVE)
    if killed_at(consortium, moment):
        consortium.run()
    assert set(consortium.members_by_round()[1]) >= set(ALL[:5]) - {"firm-b"}
    assert consortium.members_by_round()[2] == ALL[:5]
    check_counted_once(consortium, 2)
    check_all_agree(consortium)


def random_faults(chance, names, most, rounds_):
    """Faults of which in each round at most `most` firms have any, so that every round can be finished."""
    faults = []
    for number in rounds_:
        for firm in chance.sample(names, chance.randint(0, most)):
            phase = chance.choice(PHASES)
            kind = chance.choice(["silent", "crash", "lost", "refuse"] + ["corrupt"] * (phase == "update"))
            faults.append(Fault(firm, phase, number, kind))
    return faults


@pytest.mark.parametrize("seed", range(24))
def test_random_faults_and_restarts_count_nothing_twice(tmp_path, seed):
    """Eight rounds with a list of faults each, and a coordinator that is killed three times."""
    chance = random.Random(f"threshold {seed}")
    options = chance.choice([{"num_firms": 4, "threshold": 3}, FIVE, {"num_firms": 6, "threshold": 5}, SEVEN])
    names, most = ALL[: options["num_firms"]], options["num_firms"] - options["threshold"]
    faults = random_faults(chance, names, most, range(1, 9))
    consortium = Consortium(tmp_path, rounds=8, statistics=0, faults=faults, **options)
    for _ in range(3):
        if not killed_at(consortium, chance.randint(1, 15 * len(names))):
            break
    consortium.run()
    check_counted_once(consortium, 8)
    assert all(len(members) >= options["threshold"] for members in consortium.members_by_round().values())
    check_all_agree(consortium)
