"""Metrics in plain numpy, for reports that stay at the firm. All take 1-D arrays of one length.

They agree with scikit-learn's (average_precision_score, roc_auc_score, f1_score, root_mean_squared_error). A metric
that the targets do not define (one class only, no rows) is NaN: a firm may have seen no failure yet.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _floats(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def pr_auc(targets: ArrayLike, scores: ArrayLike) -> float:
    """Average precision: the area under the precision-recall curve as a step function. `targets` are 0 or 1."""
    true_positives, flagged = _at_thresholds(_floats(targets), _floats(scores))
    if true_positives.size == 0 or true_positives[-1] == 0:
        return float("nan")
    gained = np.diff(true_positives, prepend=0.0)
    return float(np.sum(gained * true_positives / flagged) / true_positives[-1])


def roc_auc(targets: ArrayLike, scores: ArrayLike) -> float:
    """The chance that a positive is scored above a negative, ties counting half."""
    true_positives, flagged = _at_thresholds(_floats(targets), _floats(scores))
    false_positives = flagged - true_positives
    if true_positives.size == 0 or true_positives[-1] == 0 or false_positives[-1] == 0:
        return float("nan")
    x = np.concatenate([[0.0], false_positives / false_positives[-1]])
    y = np.concatenate([[0.0], true_positives / true_positives[-1]])
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def _at_thresholds(
    targets: NDArray[np.float64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True positives and all flagged rows at each distinct score, from the highest score down."""
    if targets.size == 0:
        return np.zeros(0), np.zeros(0)
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), targets.size - 1)
    return np.cumsum(targets[order])[last_of_tie], (last_of_tie + 1).astype(np.float64)


def f1(targets: ArrayLike, flagged: ArrayLike) -> float:
    """Harmonic mean of precision and recall of the positive class; `flagged` are decisions, 0 or 1."""
    truth, said = _floats(targets), _floats(flagged)
    positives = float(truth.sum() + said.sum())
    return float(2 * (truth * said).sum() / positives) if positives else float("nan")


def rmse(targets: ArrayLike, predictions: ArrayLike) -> float:
    """Root of the mean squared error, in the target's unit."""
    error = _floats(predictions) - _floats(targets)
    return float(np.sqrt(np.mean(error**2))) if error.size else float("nan")


def phm08(targets: ArrayLike, predictions: ArrayLike) -> float:
    """The PHM 2008 challenge's score, summed over engines: late predictions cost more than early ones (cycles).

    exp(-e / 13) - 1 for e < 0 (too early) and exp(e / 10) - 1 for e >= 0, with e = prediction - truth.
    """
    error = _floats(predictions) - _floats(targets)
    return float(np.sum(np.expm1(np.where(error < 0, -error / 13.0, error / 10.0))))
