"""The metrics agree with scikit-learn's, and with the formulas where it has none."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from dure_models import metrics

BINARY = st.lists(st.tuples(st.integers(0, 1), st.integers(-5, 5)), min_size=2, max_size=60).filter(
    lambda pairs: len({target for target, _ in pairs}) == 2
)


@given(BINARY)
def test_ranking_metrics_agree_with_scikit_learn_also_with_ties(pairs):
    targets, scores = np.array(pairs).T
    assert metrics.pr_auc(targets, scores) == pytest.approx(reference.average_precision_score(targets, scores))
    assert metrics.roc_auc(targets, scores) == pytest.approx(reference.roc_auc_score(targets, scores))
    assert metrics.f1(targets, scores > 0) == pytest.approx(reference.f1_score(targets, scores > 0))


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=30))
def test_rmse_agrees_with_scikit_learn(pairs):
    targets, predictions = np.array(pairs).T
    assert metrics.rmse(targets, predictions) == pytest.approx(reference.root_mean_squared_error(targets, predictions))


def test_the_phm08_score_punishes_late_predictions_more_than_early_ones():
    assert metrics.phm08([50, 50], [50, 50]) == 0
    assert metrics.phm08([50], [60]) == pytest.approx(math.e - 1)
    assert metrics.phm08([50], [37]) == pytest.approx(math.e - 1)


@pytest.mark.parametrize("metric", [metrics.pr_auc, metrics.f1], ids=lambda metric: metric.__name__)
def test_what_one_class_or_no_row_does_not_define_is_nan(metric):
    assert math.isnan(metric([0, 0], [0, 0]))
    assert math.isnan(metric([], []))
    assert math.isnan(metrics.roc_auc([1, 1], [0.2, 0.3]))
    assert math.isnan(metrics.rmse([], []))
