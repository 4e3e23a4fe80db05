"""The tabular classifier: additive statistics, inputs by federated quantiles, and that it learns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure_models.interface import Purpose, Statistics
from dure_models.parameters import initial_parameters
from dure_models.tabular.inputs import NUM_CELLS, histogram, piecewise_linear, quantile_edges
from dure_models.training import TrainingData, TrainingSettings, evaluate, train_own
from tests.models.samples import press_model, press_rows

DERIVED = [{"name": "load", "derivation": "product", "left": "heat", "right": "speed"}]


def test_statistics_of_two_firms_add_up_to_those_of_their_rows_together():
    model, table = press_model(derived=DERIVED), press_rows(500, 0)
    together = model.statistics(table)
    added = model.statistics(table[:200]) + model.statistics(table[200:])
    assert together.sums.shape == (model.num_statistics,)
    assert np.array_equal(together.sums, added.sums)
    assert together.count == added.count == 500


def test_no_row_moves_a_statistic_by_more_than_one():
    model, table = press_model(derived=DERIVED), press_rows(500, 0)
    moved = model.statistics(table).sums - model.statistics(table[1:]).sums
    assert np.abs(moved).max() <= 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200), st.integers(2, 16))
def test_edges_increase_and_part_the_rows_about_evenly(values, num_bins):
    edges = quantile_edges(histogram(np.array(values)), num_bins)
    assert edges.shape == (num_bins + 1,)
    assert (np.diff(edges) > 0).all()
    code = piecewise_linear(np.array(values), edges)
    assert np.isfinite(code).all()
    assert np.abs(code).max() <= 1


def test_edges_of_evenly_spread_rows_are_evenly_spread():
    edges = quantile_edges(np.ones(NUM_CELLS), 4)
    assert edges == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_statistics_without_any_row_still_give_finite_inputs():
    model, table = press_model(), press_rows(5, 0)
    empty = Statistics(np.zeros(model.num_statistics), 0)
    assert np.isfinite(model.examples(table, empty, Purpose.TEST).source.numpy()).all()


def test_it_learns_a_rule_that_needs_both_columns_and_ranks_unseen_rows_by_it():
    model = press_model()
    train, validation, test = press_rows(800, 1), press_rows(200, 2), press_rows(800, 3)
    statistics = model.statistics(train)
    data = TrainingData(
        model.examples(train, statistics, Purpose.TRAIN), model.examples(validation, statistics, Purpose.VALIDATION)
    )
    module = model.build()
    settings = TrainingSettings(num_rounds=8, local_epochs=2, learning_rate=5e-3, batch_size=32)
    result = train_own(model, module, data, initial_parameters(module, 0), settings, seed=0)
    report = evaluate(model, module, result.parameters, model.examples(test, statistics, Purpose.TEST))
    assert report["pr_auc"] > 0.9
    assert report["roc_auc"] > 0.97


def test_a_positive_weight_is_taken_off_the_probabilities_again():
    import torch

    plain, heavy = press_model(), press_model(positive_weight=10.0)
    outputs = torch.tensor([0.0, 1.0])
    assert heavy.predict(outputs + float(np.log(10.0))).numpy() == pytest.approx(plain.predict(outputs).numpy())
    assert heavy.loss(outputs, torch.ones(2)).numpy() == pytest.approx(10 * plain.loss(outputs, torch.ones(2)).numpy())


def test_validation_sums_of_firms_without_events_weigh_nothing():
    sums = press_model().validation_sums(np.array([0.1, 0.7], np.float32), np.array([0.0, 0.0], np.float32))
    assert sums["validation_pr_gap"] == (0.0, 0.0)
    assert sums["validation_precision"] == (0.0, 1.0)
