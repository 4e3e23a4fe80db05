"""From a table's columns to numbers in [0, 1], and from those to a piecewise-linear code by federated quantiles."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dure_models.contract import NUMERIC, Column, DataContract, Role
from dure_models.errors import ModelOptionsError
from dure_models.tabular.options import Derivation, DerivedInput, TabularOptions

NUM_CELLS = 256
"""Cells of the histogram over a number's range from which quantiles are read."""


@dataclass(frozen=True)
class NumberInput:
    """A number the network reads: one feature column, or two of them joined. `low` and `high` bound it."""

    name: str
    low: float
    high: float
    columns: tuple[str, ...]
    derivation: Derivation | None = None

    def unit_values(self, table: pl.DataFrame) -> NDArray[np.float64]:
        """The input of each row brought into [0, 1] by its bounds, (rows,)."""
        values = [table[name].to_numpy().astype(np.float64) for name in self.columns]
        if self.derivation is Derivation.DIFFERENCE:
            joined = values[0] - values[1]
        elif self.derivation is Derivation.PRODUCT:
            joined = values[0] * values[1]
        else:
            joined = values[0]
        return np.clip((joined - self.low) / (self.high - self.low), 0.0, 1.0)


def number_inputs(contract: DataContract, options: TabularOptions) -> tuple[NumberInput, ...]:
    """All number inputs, feature columns first. Raises ModelOptionsError for a derived input of unknown columns."""
    plain = {
        column.name: NumberInput(column.name, *_bounds(column), (column.name,))
        for column in contract.by_role(Role.FEATURE)
        if column.type in NUMERIC
    }
    return (*plain.values(), *(_derived(item, plain) for item in options.derived))


def category_columns(contract: DataContract) -> tuple[Column, ...]:
    """The feature columns that are categories; each becomes one input a category."""
    return tuple(column for column in contract.by_role(Role.FEATURE) if column.categories)


def _bounds(column: Column) -> tuple[float, float]:
    assert column.range is not None  # noqa: S101  # the contract admits no number feature without one
    return column.range


def _derived(item: DerivedInput, plain: dict[str, NumberInput]) -> NumberInput:
    for name in (item.left, item.right):
        if name not in plain:
            known = ", ".join(plain) or "none"
            raise ModelOptionsError(
                f"the derived input {item.name!r} reads {name!r}, which is no number feature of the contract; "
                f"use one of: {known}"
            )
    left, right = plain[item.left], plain[item.right]
    if item.range is not None:
        low, high = item.range
    elif item.derivation is Derivation.DIFFERENCE:
        low, high = left.low - right.high, left.high - right.low
    else:
        corners = [a * b for a in (left.low, left.high) for b in (right.low, right.high)]
        low, high = min(corners), max(corners)
    return NumberInput(item.name, low, high, (item.left, item.right), item.derivation)


def histogram(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many of the (rows,) values in [0, 1] lie in each of NUM_CELLS equal cells, (NUM_CELLS,)."""
    cells = np.minimum((values * NUM_CELLS).astype(np.int64), NUM_CELLS - 1)
    return np.bincount(cells, minlength=NUM_CELLS).astype(np.float64)


def quantile_edges(counts: NDArray[np.float64], num_bins: int) -> NDArray[np.float64]:
    """num_bins + 1 increasing edges in [0, 1] that part the histogram's rows as evenly as its cells allow.

    Within a cell rows are taken as evenly spread. Neighbouring edges are at least a quarter of a cell apart, so a value
    that many rows share does not make an empty piece.
    """
    cumulated = np.concatenate([[0.0], np.cumsum(np.maximum(counts, 0.0))])
    total = max(cumulated[-1], 1e-12)
    # A slight slope everywhere makes the function invertible where cells are empty.
    grid = np.linspace(0.0, 1.0, len(cumulated))
    share = (cumulated / total + 1e-6 * grid) / (1 + 1e-6)
    edges = np.interp(np.linspace(0.0, 1.0, num_bins + 1), share, grid)
    occupied = np.flatnonzero(counts > 0)
    if occupied.size:
        edges[0], edges[-1] = grid[occupied[0]], grid[occupied[-1] + 1]
    smallest = 0.25 / NUM_CELLS
    for at in range(1, len(edges)):
        edges[at] = max(edges[at], edges[at - 1] + smallest)
    return np.asarray(edges, dtype=np.float64)


def piecewise_linear(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float32]:
    """(rows, num_bins) code in [-1, 1]: pieces below the value are 1, above it -1, its own in proportion.

    After Gorishniy, Rubachev, Babenko, "On Embeddings for Numerical Features in Tabular Deep Learning", 2022, moved
    from [0, 1] to [-1, 1].
    """
    parts = (values[:, None] - edges[None, :-1]) / np.diff(edges)[None, :]
    return np.asarray(2.0 * np.clip(parts, 0.0, 1.0) - 1.0, dtype=np.float32)
