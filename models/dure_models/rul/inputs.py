"""From a table of sensor rows to standardised rows and the windows that end on them."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dure_models.contract import Column
from dure_models.interface import Purpose

Floats = NDArray[np.float64]

_SMALLEST_SPREAD = 1e-4  # of half a column's range: below it a column says nothing in that condition
_LARGEST_SCORE = 5.0  # standard deviations beyond which a value is cut


def unit_values(table: pl.DataFrame, columns: tuple[Column, ...]) -> Floats:
    """The columns brought from their ranges into [-1, 1], (rows, columns)."""
    return np.column_stack([_unit(table[column.name].to_numpy(), column) for column in columns])


def _unit(values: NDArray[np.generic] | Floats, column: Column) -> Floats:
    assert column.range is not None  # noqa: S101  # the contract admits no number feature without one
    low, high = column.range
    return np.clip((np.asarray(values, dtype=np.float64) - low) / (high - low) * 2 - 1, -1.0, 1.0)


def nearest_condition(
    table: pl.DataFrame, columns: tuple[Column, ...], centres: tuple[tuple[float, ...], ...]
) -> NDArray[np.int64]:
    """The index of the nearest operating point for each row, (rows,); all 0 where there are none to tell apart.

    Distances are measured after each column is brought into [-1, 1] by its range.
    """
    if not columns or len(centres) < 2:
        return np.zeros(table.height, dtype=np.int64)
    rows = unit_values(table, columns)
    points = np.column_stack([_unit(np.array(centres)[:, at], column) for at, column in enumerate(columns)])
    distances = ((rows[:, None, :] - points[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(distances.argmin(axis=1), dtype=np.int64)


def moments(values: Floats, condition: NDArray[np.int64], num_conditions: int) -> Floats:
    """Per condition the count, the sum and the sum of squares of (rows, f) values: (conditions, 1 + 2 f)."""
    rows = np.column_stack([np.ones(len(values)), values, values**2])
    table = np.zeros((num_conditions, rows.shape[1]))
    np.add.at(table, condition, rows)
    return table


def standardise(values: Floats, condition: NDArray[np.int64], sums: Floats) -> NDArray[np.float32]:
    """(rows, f) values less their condition's mean, over its standard deviation; `sums` are `moments` of all firms.

    A condition that no firm saw takes the mean and spread over all conditions.
    """
    num_features = values.shape[1]
    totals = np.where(sums[:, :1] >= 2, sums, sums.sum(axis=0, keepdims=True))
    count = np.maximum(totals[:, :1], 1.0)
    mean = totals[:, 1 : 1 + num_features] / count
    spread = np.sqrt(np.maximum(totals[:, 1 + num_features :] / count - mean**2, 0.0))
    scores = np.where(
        spread[condition] > _SMALLEST_SPREAD,
        (values - mean[condition]) / np.maximum(spread[condition], _SMALLEST_SPREAD),
        0.0,
    )
    return np.clip(scores, -_LARGEST_SCORE, _LARGEST_SCORE).astype(np.float32)


def window_rows(
    group: NDArray[np.int64], window: int, purpose: Purpose, stride: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of each window, (n, window), and the row each ends on, (n,). `group` is sorted: equal values lie together.

    Windows that would begin before their group's first row repeat that row. A test takes each group's last row only, as
    the published tests do; otherwise every `stride`-th row from a group's last backwards ends a window.
    """
    starts = np.flatnonzero(np.diff(group, prepend=group[:1] - 1))
    lengths = np.diff(np.append(starts, len(group)))
    first = np.repeat(starts, lengths)
    from_end = np.repeat(starts + lengths - 1, lengths) - np.arange(len(group))
    chosen = from_end == 0 if purpose is Purpose.TEST else from_end % stride == 0
    ends = np.flatnonzero(chosen)
    rows = ends[:, None] + np.arange(1 - window, 1)[None, :]
    return np.maximum(rows, first[ends][:, None]), ends
