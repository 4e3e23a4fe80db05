"""The comparison: federated equals pooled where it must, gains are counted in pairs, and every arm is repeatable."""

from dataclasses import replace

import numpy as np
import pytest

from dure_lab import arms
from dure_lab.arms import Arm, FirmResult
from dure_lab.datasets import milling
from dure_models import registry
from dure_models.interface import Purpose
from dure_models.parameters import initial_parameters
from dure_models.training import TrainingData, TrainingSettings, train_round
from dure_protocols.errors import MisuseError
from dure_protocols.job import CodecTerms
from tests.models.samples import press_model, press_rows

DEFAULT_BITS = CodecTerms(clip=1.0, count_cap=1).bits
QUICK = TrainingSettings(num_rounds=2, learning_rate=2e-3, batch_size=64, count_cap=300)


def press_data(num_rows, seed):
    model = press_model()
    table, validation = press_rows(num_rows, seed), press_rows(100, seed + 100)
    statistics = model.statistics(press_rows(500, 0))
    return TrainingData(
        model.examples(table, statistics, Purpose.TRAIN), model.examples(validation, statistics, Purpose.VALIDATION)
    )


def test_a_federation_of_one_takes_the_firms_own_step_but_for_rounding():
    model = press_model()
    module, data = model.build(), press_data(300, 1)
    initial = initial_parameters(module, 0)
    settings = QUICK.model_copy(update={"num_rounds": 1})
    own = train_round(model, module, data, initial, settings, round_number=1, seed=0).update
    result = arms.train_federated(model, module, [data], initial, settings, 0)
    step = 2 * settings.update_clip / (2**DEFAULT_BITS - 2)
    stepped = result.parameters if result.best_round == 1 else initial + own
    assert np.abs(stepped - (initial + own)).max() <= 1.01 * step


def test_joined_examples_are_the_firms_examples_in_a_row():
    one, other = press_data(50, 1), press_data(30, 2)
    joined = arms.join([one, other])
    assert len(joined.train) == 80
    assert joined.train.source[joined.train.rows[60]].equal(other.train.source[other.train.rows[10]])
    assert joined.validation.targets[100:].equal(other.validation.targets)


def test_all_arms_run_for_every_firm_and_a_seed_repeats_exactly():
    task = replace(milling.task(), training=QUICK)

    def small(seed):
        return [
            replace(f, train=f.train[:600], test=f.test[:600]) for f in milling.tables(2, np.random.default_rng(seed))
        ]

    first, again = (arms.compare(task, small, [3]) for _ in range(2))
    assert first == again
    assert [result.name for result in first] == ["north-mill", "river-mill"]
    assert all(set(result.metrics) == set(Arm) for result in first)
    assert all(0 <= result.metrics[arm]["pr_auc"] <= 1 for result in first for arm in Arm)


def results(alone, federated, pooled, metric):
    return [
        FirmResult("a", seed, 10, {Arm.ALONE: {metric: x}, Arm.FEDERATED: {metric: y}, Arm.POOLED: {metric: z}})
        for seed, (x, y, z) in enumerate(zip(alone, federated, pooled, strict=True))
    ]


def test_a_gain_is_the_mean_of_paired_differences_with_their_own_scatter():
    model = press_model()
    (gain,) = arms.gains(model, results([0.1, 0.5], [0.3, 0.8], [0.4, 0.7], "pr_auc"))
    assert gain.mean_gain == pytest.approx(0.25)
    assert gain.sd_gain == pytest.approx(np.std([0.2, 0.3], ddof=1))
    assert gain.num_won == gain.num_seeds == 2
    assert gain.share_of_pooled == pytest.approx(0.55 / 0.55)
    assert gain.beats_noise


def test_for_an_error_less_is_a_gain():
    model = registry.create("rul", *rul_terms())
    (gain,) = arms.gains(model, results([20.0, 22.0], [10.0, 16.0], [12.0, 12.0], "rmse"))
    assert gain.mean_gain == pytest.approx(8.0)
    assert gain.share_of_pooled == pytest.approx(12 / 13)


def rul_terms():
    from tests.models.samples import ENGINE_OPTIONS, ENGINES

    return ENGINES, ENGINE_OPTIONS


def test_a_difference_that_scatters_more_than_it_amounts_to_does_not_beat_noise():
    (gain,) = arms.gains(press_model(), results([0.5, 0.5], [0.4, 0.7], [0.7, 0.7], "pr_auc"))
    assert gain.mean_gain > 0
    assert not gain.beats_noise


def test_one_seed_tells_nothing_about_noise():
    with pytest.raises(MisuseError, match="two seeds"):
        arms.gains(press_model(), results([0.5], [0.6], [0.7], "pr_auc"))
