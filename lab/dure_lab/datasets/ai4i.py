"""AI4I 2020 (Matzka 2020, UCI 601) as published, dealt to five like firms with one common held-out test."""

from pathlib import Path

import numpy as np
import polars as pl

from dure_lab.datasets import machining
from dure_lab.datasets.deal import DataSetError, Deal, FirmTables, Task, write_deal

FILE_NAME = "ai4i2020.csv"
FIRM_NAMES = ("north-mill", "river-mill", "harbour-mill", "hill-mill", "forest-mill")
TEST_FRACTION = 0.2
NUM_ROWS, NUM_FAILURES = 10_000, 339

_RENAMED = {
    "Type": "product_quality",
    "Air temperature [K]": "air_temperature",
    "Process temperature [K]": "process_temperature",
    "Rotational speed [rpm]": "rotational_speed",
    "Torque [Nm]": "torque",
    "Tool wear [min]": "tool_wear",
    "Machine failure": "machine_failure",
}

_TITLE = "AI4I 2020, a published simulated milling process"
_LICENCE = "CC BY 4.0; Matzka, Explainable Artificial Intelligence for Predictive Maintenance Applications, AI4I 2020"


def task() -> Task:
    """The task on AI4I 2020: will this workpiece's run end in a machine failure?"""
    contract = machining.contract(
        "ai4i-2020",
        _TITLE,
        simulated=True,
        licence=_LICENCE,
        description="Simulated and published by S. Matzka; the causes TWF, HDF, PWF, OSF, RNF are not part of it.",
    )
    return Task(_TITLE, True, _LICENCE, contract, machining.MODEL, machining.MODEL_OPTIONS, machining.TRAINING)


def read(source: Path) -> pl.DataFrame:
    """The published file's columns under the contract's names; `source` is the file or its folder.

    Counters, serial numbers and the five causes are left out: they are no inputs. Raises DataSetError.
    """
    path = source / FILE_NAME if source.is_dir() else source
    if not path.is_file():
        raise DataSetError(f"{path} is not there; give the folder that holds {FILE_NAME} as published (UCI 601)")
    table = pl.read_csv(path)
    missing = [name for name in _RENAMED if name not in table.columns]
    if missing:
        raise DataSetError(f"{path} lacks the columns {', '.join(missing)}; use {FILE_NAME} as published")
    table = table.select(pl.col(old).alias(new) for old, new in _RENAMED.items())
    if table.height != NUM_ROWS or table["machine_failure"].sum() != NUM_FAILURES:
        raise DataSetError(
            f"{path} has {table.height} rows with {table['machine_failure'].sum()} failures; the published file has "
            f"{NUM_ROWS} with {NUM_FAILURES}"
        )
    return table.with_columns(pl.col("rotational_speed").cast(pl.Float64), pl.col("tool_wear").cast(pl.Float64))


def tables(source: Path, random: np.random.Generator) -> list[FirmTables]:
    """Five like firms: rows dealt at random, failures and product qualities in proportion; one test for all."""
    table = read(source)
    strata = (table["machine_failure"].cast(pl.String) + table["product_quality"]).to_numpy()
    parts: list[list[int]] = [[] for _ in FIRM_NAMES]
    test: list[int] = []
    for stratum in np.unique(strata):
        rows = random.permutation(np.flatnonzero(strata == stratum))
        num_test = round(TEST_FRACTION * len(rows))
        test.extend(rows[:num_test])
        # Dealt like cards, starting at another firm each time, so that rests do not gather at the first.
        start = int(random.integers(len(FIRM_NAMES)))
        for at, row in enumerate(rows[num_test:]):
            parts[(start + at) % len(FIRM_NAMES)].append(int(row))
    held_out = table[sorted(test)]
    return [
        FirmTables(name, table[sorted(rows)], held_out, "like the others")
        for name, rows in zip(FIRM_NAMES, parts, strict=True)
    ]


def deal(source: Path, directory: Path, random: np.random.Generator) -> Deal:
    """Read, deal and write; see `tables`. Raises DataSetError."""
    return write_deal(task(), tables(source, random), directory)
