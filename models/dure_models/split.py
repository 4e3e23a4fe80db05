"""Parts a firm's training table into training and validation rows. Deterministic, by the seed it is given."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dure_models.contract import ColumnType, DataContract, Role

_FEW_VALUES = 20  # a target with at most so many values is stratified


def validation_split(
    contract: DataContract, table: pl.DataFrame, fraction: float, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(training rows, validation rows) of a conforming table, each in the table's order.

    Whole groups go one way or the other where the contract has a group column; otherwise each value of a target with
    few values (a class) is dealt in proportion, so that rare failures are on both sides.
    """
    random = np.random.default_rng([seed, table.height])
    group = contract.by_role(Role.GROUP)
    if group:
        labels = table[group[0].name].to_numpy()
        distinct = np.unique(labels)
        chosen = random.permutation(distinct)[: max(1, round(fraction * len(distinct)))]
        held_out: NDArray[np.bool_] = np.isin(labels, chosen)
    else:
        held_out = _stratified(_strata(contract, table), fraction, random)
    return table.filter(~held_out), table.filter(held_out)


def _strata(contract: DataContract, table: pl.DataFrame) -> NDArray[np.int64]:
    target = contract.by_role(Role.TARGET)
    if not target or target[0].type is ColumnType.FLOAT:
        return np.zeros(table.height, dtype=np.int64)
    distinct, codes = np.unique(table[target[0].name].to_numpy(), return_inverse=True)
    return codes.astype(np.int64) if len(distinct) <= _FEW_VALUES else np.zeros(table.height, dtype=np.int64)


def _stratified(strata: NDArray[np.int64], fraction: float, random: np.random.Generator) -> NDArray[np.bool_]:
    held_out = np.zeros(len(strata), dtype=bool)
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        held_out[random.permutation(rows)[: round(fraction * len(rows))]] = True
    return held_out
