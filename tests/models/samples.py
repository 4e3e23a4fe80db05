"""Small contracts, tables and models that the tests of `dure_models` share. Made up, with known answers."""

import numpy as np
import polars as pl

from dure_models import registry
from dure_models.contract import Column, ColumnType, DataContract, Role

PRESS = DataContract(
    name="press",
    title="A press that fails when hot and fast",
    columns=(
        Column(name="heat", type=ColumnType.FLOAT, role=Role.FEATURE, unit="K", range=(0, 100)),
        Column(name="speed", type=ColumnType.FLOAT, role=Role.FEATURE, unit="1/min", range=(0, 10)),
        Column(name="grade", type=ColumnType.CATEGORY, role=Role.FEATURE, categories=("a", "b")),
        Column(name="note", type=ColumnType.TEXT, role=Role.IGNORE),
        Column(name="failed", type=ColumnType.INTEGER, role=Role.TARGET, range=(0, 1)),
    ),
)

ENGINES = DataContract(
    name="engines",
    title="Engines that wear out",
    columns=(
        Column(name="engine", type=ColumnType.INTEGER, role=Role.GROUP),
        Column(name="cycle", type=ColumnType.INTEGER, role=Role.TIME),
        Column(name="altitude", type=ColumnType.FLOAT, role=Role.CONDITION, range=(0, 10)),
        Column(name="pressure", type=ColumnType.FLOAT, role=Role.FEATURE, range=(-50, 50)),
        Column(name="remaining", type=ColumnType.INTEGER, role=Role.TARGET, range=(0, 1000)),
    ),
)
ENGINE_OPTIONS = {"conditions": [[0.0], [10.0]], "window": 8, "cap": 30.0, "channels": 8, "hidden": 8}


def press_rows(num_rows: int, seed: int) -> pl.DataFrame:
    """Fails when heat x speed is over 560 (about one row in ten); grade means nothing."""
    random = np.random.default_rng(seed)
    heat, speed = random.uniform(0, 100, num_rows), random.uniform(0, 10, num_rows)
    return pl.DataFrame(
        {
            "heat": heat,
            "speed": speed,
            "grade": random.choice(["a", "b"], num_rows),
            "failed": (heat * speed > 560).astype(np.int64),
        }
    )


def engine_rows(num_engines: int, seed: int) -> pl.DataFrame:
    """Engines of 20 to 60 cycles; pressure is minus the remaining life, moved by 30 at altitude 10."""
    random = np.random.default_rng(seed)
    parts = []
    for engine in range(num_engines):
        life = int(random.integers(20, 60))
        altitude = random.choice([0.0, 10.0], life)
        remaining = np.arange(life - 1, -1, -1)
        pressure = -np.minimum(remaining, 30) / 2.0 + 3.0 * altitude + random.normal(0, 0.5, life)
        parts.append(
            pl.DataFrame(
                {
                    "engine": np.full(life, engine),
                    "cycle": np.arange(1, life + 1),
                    "altitude": altitude,
                    "pressure": pressure,
                    "remaining": remaining,
                }
            )
        )
    return pl.concat(parts)


def press_model(**options):
    return registry.create("tabular", PRESS, {"hidden": 16, "dropout": 0.0, **options})


def engine_model(**options):
    return registry.create("rul", ENGINES, {**ENGINE_OPTIONS, "train_stride": 1, **options})
