"""The local training loop: repeatable, bounded, and the same for every arm."""

import numpy as np
import pytest
from pydantic import ValidationError

from dure_models.interface import Purpose
from dure_models.parameters import initial_parameters
from dure_models.split import validation_split
from dure_models.training import Schedule, Selection, TrainingData, TrainingSettings, learning_rate_at, train_own
from dure_models.training import train_round as train
from dure_protocols.errors import MisuseError
from tests.models.samples import ENGINES, PRESS, engine_rows, press_model, press_rows

SETTINGS = TrainingSettings(num_rounds=3, local_epochs=1, learning_rate=2e-3, batch_size=32)


@pytest.fixture(scope="module")
def bench():
    model = press_model(dropout=0.2)
    table = press_rows(300, 0)
    statistics = model.statistics(table)
    data = TrainingData(
        model.examples(table[:240], statistics, Purpose.TRAIN),
        model.examples(table[240:], statistics, Purpose.VALIDATION),
    )
    module = model.build()
    return model, module, data, initial_parameters(module, 0)


def test_a_round_repeated_with_its_seed_gives_the_same_bytes_and_with_another_seed_does_not(bench):
    one, same, other = (train(*bench, SETTINGS, round_number=1, seed=seed) for seed in (5, 5, 6))
    assert one.update.tobytes() == same.update.tobytes() != other.update.tobytes()
    assert one.metrics == same.metrics
    assert one.update.dtype == np.float32
    assert one.count == 240


def test_round_metrics_are_those_the_model_names_in_its_order_and_within_their_bounds(bench):
    model = bench[0]
    metrics = train(*bench, SETTINGS, round_number=1, seed=0).metrics
    assert list(metrics) == [metric.name for metric in model.round_metrics]
    for metric in model.round_metrics:
        value, weight = metrics[metric.name]
        assert 0 <= value <= metric.maximum * weight
    assert metrics["validation_loss"][1] == 60


def test_the_proximal_term_keeps_the_model_near_the_global_one(bench):
    far, near = (
        train(*bench, SETTINGS.model_copy(update={"proximal_mu": mu, "local_epochs": 5}), round_number=1, seed=0)
        for mu in (0.0, 10.0)
    )
    assert np.linalg.norm(near.update) < np.linalg.norm(far.update) / 2


SCHEDULES = {
    "constant": (Schedule.CONSTANT, [1.0, 1.0, 1.0]),
    "cosine falls from the first to the last round": (Schedule.COSINE, [1.0, 0.525, 0.05]),
}


@pytest.mark.parametrize(("schedule", "expected"), SCHEDULES.values(), ids=SCHEDULES)
def test_the_learning_rate_is_a_function_of_the_round(schedule, expected):
    settings = TrainingSettings(num_rounds=3, learning_rate=1.0, schedule=schedule)
    assert [learning_rate_at(settings, number) for number in (1, 2, 3)] == pytest.approx(expected)
    with pytest.raises(MisuseError, match="not one of 1 … 3"):
        learning_rate_at(settings, 4)


@pytest.mark.parametrize("wrong", [{"learning_rate": 0}, {"num_rounds": 0}, {"epochs": 3}], ids=str)
def test_wrong_settings_are_refused_when_they_are_built(wrong):
    with pytest.raises(ValidationError):
        TrainingSettings(**{"num_rounds": 1, "learning_rate": 1e-3, **wrong})


def test_training_that_diverges_says_what_to_change(bench):
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(MisuseError, match="lower learning_rate"):
        train(*bench, settings, round_number=1, seed=0)


def test_the_checkpoint_with_the_lowest_selection_metric_is_kept_and_of_equal_ones_the_first(bench):
    selection = Selection(bench[0])
    for at, (value, weight) in enumerate([(5, 10), (2, 10), (2, 10), (0, 0), (3, 10)]):
        selection.note(np.full(1, at, np.float32), {"validation_pr_gap": (value, weight)})
    assert selection.best_round == 1
    assert selection.best.tolist() == [1.0]


def test_training_on_ones_own_notes_the_first_and_the_last_model_too(bench):
    result = train_own(*bench, SETTINGS, seed=0)
    assert len(result.selection) == SETTINGS.num_rounds + 1
    assert result.selection[result.best_round] == min(result.selection)


def test_a_split_keeps_engines_whole():
    table = engine_rows(20, 0)
    kept, held_out = validation_split(ENGINES, table, 0.25, 3)
    assert held_out["engine"].n_unique() == 5
    assert not set(kept["engine"]) & set(held_out["engine"])
    assert kept.height + held_out.height == table.height


def test_a_split_deals_rare_failures_in_proportion_and_by_its_seed():
    table = press_rows(1000, 0)
    kept, held_out = validation_split(PRESS, table, 0.2, 3)
    assert held_out["failed"].sum() == round(0.2 * table["failed"].sum())
    assert kept.height + held_out.height == table.height
    assert held_out.equals(validation_split(PRESS, table, 0.2, 3)[1])
    assert not held_out.equals(validation_split(PRESS, table, 0.2, 4)[1])
