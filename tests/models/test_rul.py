"""The remaining-useful-life model: windows that never cross engines, standardisation per operating condition."""

import numpy as np
import pytest

from dure_models.interface import Purpose
from dure_models.parameters import initial_parameters
from dure_models.rul.inputs import moments, standardise, window_rows
from dure_models.training import TrainingData, TrainingSettings, evaluate, train_own
from tests.models.samples import engine_model, engine_rows

TWO_ENGINES = np.array([0, 0, 0, 0, 0, 1, 1])
WINDOWS = {
    "a test takes each engine's last row": (Purpose.TEST, 1, [[2, 3, 4], [5, 5, 6]]),
    "training takes every row, repeating an engine's first": (
        Purpose.TRAIN,
        1,
        [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [5, 5, 5], [5, 5, 6]],
    ),
    "a stride counts back from an engine's last row": (Purpose.TRAIN, 2, [[0, 0, 0], [0, 1, 2], [2, 3, 4], [5, 5, 6]]),
}


@pytest.mark.parametrize(("purpose", "stride", "expected"), WINDOWS.values(), ids=WINDOWS)
def test_windows(purpose, stride, expected):
    rows, ends = window_rows(TWO_ENGINES, 3, purpose, stride)
    assert rows.tolist() == expected
    assert ends.tolist() == [row[-1] for row in expected]


def test_values_are_standardised_within_their_condition_by_the_sums_of_all_firms():
    random = np.random.default_rng(0)
    condition = random.integers(0, 2, 400)
    values = (random.normal(0, 0.1, 400) + 0.5 * condition)[:, None]
    firms = [slice(0, 100), slice(100, 400)]
    sums = sum(moments(values[part], condition[part], 2) for part in firms)
    scores = standardise(values, condition, sums)
    for which in (0, 1):
        assert scores[condition == which].mean() == pytest.approx(0, abs=1e-5)
        assert scores[condition == which].std() == pytest.approx(1, abs=1e-4)


def test_a_condition_that_no_firm_saw_takes_the_spread_over_all():
    values = np.array([[-0.5], [0.5]])
    sums = moments(values, np.array([0, 0]), 2)
    assert standardise(np.array([[0.5]]), np.array([1]), sums)[0, 0] == pytest.approx(1.0)


def test_statistics_of_two_firms_add_up_to_those_of_their_rows_together_and_stay_within_the_count():
    model, table = engine_model(), engine_rows(6, 0)
    added = model.statistics(table[:70]) + model.statistics(table[70:])
    assert np.allclose(added.sums, model.statistics(table).sums)
    assert np.abs(added.sums).max() <= added.count == table.height


def test_examples_do_not_depend_on_the_order_of_rows_and_cap_the_target():
    model, table = engine_model(), engine_rows(5, 0)
    statistics = model.statistics(table)
    one = model.examples(table, statistics, Purpose.TRAIN)
    other = model.examples(table.sample(fraction=1.0, shuffle=True, seed=1), statistics, Purpose.TRAIN)
    assert one.source[one.rows].equal(other.source[other.rows])
    assert one.targets.equal(other.targets)
    assert float(one.targets.max()) == 30.0


def test_it_learns_remaining_life_through_the_change_of_altitude():
    model = engine_model()
    train, validation, test = engine_rows(30, 1), engine_rows(8, 2), engine_rows(20, 3)
    statistics = model.statistics(train)
    data = TrainingData(
        model.examples(train, statistics, Purpose.TRAIN), model.examples(validation, statistics, Purpose.VALIDATION)
    )
    module = model.build()
    settings = TrainingSettings(num_rounds=6, local_epochs=2, learning_rate=5e-3, batch_size=32)
    result = train_own(model, module, data, initial_parameters(module, 0), settings, seed=0)
    report = evaluate(model, module, result.parameters, model.examples(test, statistics, Purpose.VALIDATION))
    assert report["rmse"] < 4.0  # cycles; the target's own standard deviation is about 10
