"""A server that cannot choose the model: what it would gain by choosing, and how it is refused.

Firms compute each model from sums whose tag they check, and bind its hash into their masks. Each attack is tried on
firms that do so, and, as a control, on firms that do not: there it succeeds.
"""

import numpy as np
import pytest

from dure_protocols.errors import RefusalCode, RefusedError
from dure_protocols.job import CodecTerms
from dure_protocols.secagg.firm import FirmSession
from dure_server.coordinator.conversation import JobFailedError
from tests.simulation.consortium import Consortium
from tests.simulation.false_sums import FalseSums
from tests.simulation.lying_server import LyingServer, WithoutTags, WithoutTagsAndHashes
from tests.simulation.small_net import HIDDEN, INPUTS, Net, NetTrainer, first_model

NAMES = ("firm-a", "firm-b", "firm-c", "firm-d")
VICTIM = "firm-b"
CODEC = CodecTerms(bits=20, clip=4.0, count_cap=10)
STEP = 2 * CODEC.clip / (2**CODEC.bits - 2)


def consortium(tmp_path, **options):
    return Consortium(
        tmp_path,
        num_firms=4,
        rounds=3,
        statistics=0,
        initial=first_model(),
        codec=CODEC,
        make_trainer=NetTrainer,
        **options,
    )


def after_round_one(tmp_path, firms_run):
    """A lying server before round 2, with the true sum of round 1, and the model that follows from it."""
    server = LyingServer(consortium(tmp_path), firms_run)
    true = server.attempt(1)
    return server, true, server.model_after(true, first_model())


def trainer_of(server, name):
    return server.consortium.firms[name].trainer


def model_at(server, name):
    return server.consortium.firms[name].side.state.model


def goes_on_honestly(server, true, model):
    """Every firm is ready: shown the true sum, all stand on its model, and round 2 sums their updates on it."""
    second = server.attempt(2, dict.fromkeys(NAMES, true))
    expected = np.mean([trainer_of(server, name).update(model) for name in NAMES], axis=0)
    assert np.allclose(server.mean(second), expected, atol=2 * STEP)
    assert all(np.array_equal(model_at(server, name), model) for name in NAMES)


def test_control_honest_rounds_train_the_model_of_all(tmp_path):
    goes_on_honestly(*after_round_one(tmp_path, FirmSession))


class SteeringServer(FalseSums):
    """Adds something of its own to every parameter of every sum."""

    def falsify(self, total, layout, members):
        total[: layout.packed_words].view(np.uint32)[:] += np.uint32(1000)


@pytest.mark.parametrize("threshold", [None, 3], ids=["retry", "threshold"])
def test_a_steered_model_is_refused_by_every_firm_and_the_job_ends(tmp_path, threshold):
    firms = consortium(tmp_path, threshold=threshold)
    server = firms.start(SteeringServer)
    with pytest.raises(JobFailedError, match="refuse a published sum: its tag"):
        server.run()
    assert all(np.array_equal(firm.side.state.model, firms.initial) for firm in firms.firms.values())


TARGET = np.linspace(-1, 1, first_model().size).astype(np.float32)


def steered(tmp_path, firms_run):
    server, true, model = after_round_one(tmp_path, firms_run)
    forged = server.leading_to(true, TARGET, before=first_model())
    return server, true, model, server.attempt(2, dict.fromkeys(NAMES, forged))


def test_control_firms_that_believe_any_sum_stand_on_the_server_s_model(tmp_path):
    server, _, _, outcome = steered(tmp_path, WithoutTags)
    assert all(np.allclose(model_at(server, name), TARGET, atol=STEP) for name in NAMES)
    expected = np.mean([trainer_of(server, name).update(TARGET) for name in NAMES], axis=0)
    assert np.allclose(server.mean(outcome), expected, atol=1e-3)


def test_a_false_sum_that_leads_to_the_server_s_model_is_refused_and_every_firm_stays_ready(tmp_path):
    server, true, model, outcome = steered(tmp_path, FirmSession)
    assert outcome == dict.fromkeys(NAMES, "false-sum")
    goes_on_honestly(server, true, model)


def dead(model):
    """The same model, but no hidden unit fires on inputs from 0 to 1: nothing below the output gets a gradient."""
    net = Net.of(model)
    net.first[:] = 0.0
    net.bias[:] = -1.0
    return net.flat()


def inconsistent(tmp_path, firms_run):
    """Pasquini et al. 2022: everybody but the victim trains a dead model, so the sum is the victim's update."""
    server, true, model = after_round_one(tmp_path, firms_run)
    forged = server.leading_to(true, dead(model), before=first_model())
    sums = {name: true if name == VICTIM else forged for name in NAMES}
    return server, true, model, server.attempt(2, sums)


BELOW_THE_OUTPUT = slice(0, -1)


def test_control_without_any_defence_the_model_inconsistency_attack_shows_the_victim_s_update(tmp_path):
    server, _, model, outcome = inconsistent(tmp_path, WithoutTagsAndHashes)
    victims = trainer_of(server, VICTIM).update(model)[BELOW_THE_OUTPUT]
    seen = len(NAMES) * server.mean(outcome)[BELOW_THE_OUTPUT]
    assert np.abs(victims).max() > 100 * STEP
    assert np.allclose(seen, victims, atol=1.01 * STEP)  # to the last step of the codec


def test_the_model_inconsistency_attack_fails_because_every_false_sum_is_refused(tmp_path):
    server, true, model, outcome = inconsistent(tmp_path, FirmSession)
    assert outcome == {name: "false-sum" for name in NAMES if name != VICTIM}
    goes_on_honestly(server, true, model)


def test_the_model_inconsistency_attack_fails_at_the_models_hashes_even_without_tags(tmp_path):
    """Two defences: firms that believe every sum still mask with nobody who stands on another model."""
    *_, outcome = inconsistent(tmp_path, WithoutTags)
    assert outcome == dict.fromkeys(NAMES, "global-model")


def test_one_model_a_firm_is_refused_at_every_firm(tmp_path):
    server, true, model = after_round_one(tmp_path, FirmSession)
    sums = {
        name: server.leading_to(true, (place / 4 * TARGET).astype(np.float32), before=first_model())
        for place, name in enumerate(NAMES)
    }
    assert server.attempt(2, sums) == dict.fromkeys(NAMES, "false-sum")
    goes_on_honestly(server, true, model)


def test_control_without_any_defence_each_firm_trains_a_model_of_its_own(tmp_path):
    server, true, _ = after_round_one(tmp_path, WithoutTagsAndHashes)
    models = {name: (place / 4 * TARGET).astype(np.float32) for place, name in enumerate(NAMES)}
    sums = {name: server.leading_to(true, model, before=first_model()) for name, model in models.items()}
    outcome = server.attempt(2, sums)
    expected = np.mean([trainer_of(server, name).update(models[name]) for name in NAMES], axis=0)
    assert np.allclose(server.mean(outcome), expected, atol=1e-3)


def planted():
    """Fowl et al. 2022, Boenisch et al. 2021: hidden unit k fires for rows whose mean is above the k-th of growing
    thresholds, and all have one weight behind them. Between two units lies, often, a single row of all firms."""
    thresholds = np.linspace(0.68, 0.86, HIDDEN)
    return Net(
        first=np.full((HIDDEN, INPUTS), 1.0 / INPUTS),
        bias=-thresholds,
        second=np.full(HIDDEN, 2.0),
        offset=np.zeros(1),
    ).flat()


def rows_in(mean):
    """What the difference of neighbouring units' gradients says: sums of rows by sums of ones."""
    net = Net.of(mean)
    weights, ones = -np.diff(net.first, axis=0), -np.diff(net.bias)
    weights = np.vstack([weights, net.first[-1:]])
    ones = np.append(ones, net.bias[-1])
    seen = np.abs(ones) > 50 * STEP
    return weights[seen] / ones[seen, None]


def nearest(candidates, server):
    """The smallest distance of a candidate from a row of any firm's data."""
    rows = np.vstack([trainer_of(server, name).rows for name in NAMES])
    return min(float(np.linalg.norm(rows - candidate, axis=1).min()) for candidate in candidates)


def test_control_firms_that_believe_any_sum_give_a_planted_model_a_row_of_their_data(tmp_path):
    server, true, _ = after_round_one(tmp_path, WithoutTags)
    forged = server.leading_to(true, planted(), before=first_model())
    outcome = server.attempt(2, dict.fromkeys(NAMES, forged))
    assert nearest(rows_in(server.mean(outcome)), server) < 0.005


def test_control_the_model_that_firms_trained_themselves_shows_no_row(tmp_path):
    server, true, _ = after_round_one(tmp_path, FirmSession)
    outcome = server.attempt(2, dict.fromkeys(NAMES, true))
    assert nearest(rows_in(server.mean(outcome)), server) > 0.05


def test_a_planted_model_is_refused_and_every_firm_stays_ready(tmp_path):
    server, true, model = after_round_one(tmp_path, FirmSession)
    forged = server.leading_to(true, planted(), before=first_model())
    assert server.attempt(2, dict.fromkeys(NAMES, forged)) == dict.fromkeys(NAMES, "false-sum")
    goes_on_honestly(server, true, model)


def test_a_planted_first_model_is_refused_by_every_firm_that_makes_its_own(tmp_path):
    """The job file names the digest of the first model; each firm's trainer makes it from the job's seed."""

    def honest(rank, _):
        return NetTrainer(rank, first_model())

    firms = Consortium(
        tmp_path, num_firms=4, rounds=1, statistics=0, initial=planted(), codec=CODEC, make_trainer=honest
    )
    firms.run_until_keys()
    for firm in firms.firms.values():
        with pytest.raises(RefusedError) as info:
            _ = firm.side.state
        assert info.value.code is RefusalCode.GLOBAL_MODEL
