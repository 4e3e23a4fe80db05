"""SIMULATED data: the milling process behind AI4I 2020, by its published rules, for firms that differ from each other.

Rules after Matzka, "Explainable Artificial Intelligence for Predictive Maintenance Applications", AI4I 2020. The
published text does not say how speed follows from the power of 2860 W; the offsets here (95 rad/s, 5 N*m) were matched
to the published file's mean speed at each torque. Nothing was measured on a machine, and all made from it says so.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dure_lab.datasets import machining
from dure_lab.datasets.deal import DataSetError, Deal, FirmTables, Task, write_deal

Floats = NDArray[np.float64]

QUALITIES = ("L", "M", "H")
WEAR_MINUTES = {"L": 2.0, "M": 3.0, "H": 5.0}
OVERSTRAIN_LIMIT = {"L": 11_000.0, "M": 12_000.0, "H": 13_000.0}  # min * N*m
POWER_W = 2860.0
IDLE_RAD_S, IDLE_TORQUE, SPEED_NOISE_RPM = 95.0, 5.0, 54.0
MAX_SPEED_RPM = 3000.0  # the published file ends at 2886
TORQUE_SD = 10.0  # N*m
RPM_PER_RAD_S = 60 / (2 * math.pi)
RANDOM_FAILURE_RATE = 0.001
MAX_FIRMS = 16


@dataclass(frozen=True)
class Workshop:
    """In what one firm differs: quality mix (L, M, H), load, when it changes tools, the hall's climate, rows it has."""

    name: str
    quality_mix: tuple[float, float, float]
    mean_torque: float  # N*m
    tool_change_minutes: tuple[float, float]  # a tool is changed at a wear drawn from here, unless it fails before
    mean_air_kelvin: float
    num_train_rows: int
    note: str


WORKSHOPS = (
    Workshop("north-mill", (0.70, 0.25, 0.05), 41.0, (190.0, 240.0), 300.5, 2000, "mass goods, tools used to the end"),
    Workshop("river-mill", (0.35, 0.45, 0.20), 39.0, (170.0, 230.0), 299.5, 1600, "mixed goods, a cooler hall"),
    Workshop("harbour-mill", (0.50, 0.35, 0.15), 43.0, (200.0, 240.0), 300.0, 1200, "heavy cuts, the fewest rows"),
)
_MORE_NAMES = (
    *("hill", "forest", "valley", "island", "meadow", "bridge", "lake"),
    *("quarry", "garden", "castle", "market", "tower", "field"),
)

NUM_TEST_ROWS = 8000
_TITLE = "Simulated milling process (rules of AI4I 2020)"
_LICENCE = "Simulated here; free to use"


def task() -> Task:
    """The task on simulated milling: will this workpiece's run end in a machine failure?"""
    contract = machining.contract(
        "milling-simulated",
        _TITLE,
        simulated=True,
        licence=_LICENCE,
        description="Simulated by the published rules of AI4I 2020 (Matzka 2020). Not measured on any machine.",
    )
    return Task(_TITLE, True, _LICENCE, contract, machining.MODEL, machining.MODEL_OPTIONS, machining.TRAINING)


def workshops(num_firms: int) -> tuple[Workshop, ...]:
    """The first `num_firms` workshops; beyond three they repeat the three kinds under other names.

    Raises DataSetError outside 1 … MAX_FIRMS.
    """
    if not 1 <= num_firms <= MAX_FIRMS:
        raise DataSetError(f"the simulated data set is for 1 to {MAX_FIRMS} firms, {num_firms} were asked for")
    more = [
        Workshop(f"{name}-mill", *_character(WORKSHOPS[at % len(WORKSHOPS)])) for at, name in enumerate(_MORE_NAMES)
    ]
    return (*WORKSHOPS, *more)[:num_firms]


def _character(kind: Workshop) -> tuple[tuple[float, float, float], float, tuple[float, float], float, int, str]:
    return (
        kind.quality_mix,
        kind.mean_torque,
        kind.tool_change_minutes,
        kind.mean_air_kelvin,
        kind.num_train_rows,
        f"works like {kind.name}",
    )


def simulate(workshop: Workshop, num_rows: int, random: np.random.Generator) -> pl.DataFrame:
    """`num_rows` workpieces in the order they were made, with the contract's columns."""
    quality = random.choice(np.array(QUALITIES), size=num_rows, p=workshop.quality_mix)
    air = workshop.mean_air_kelvin + 2.0 * _walk(num_rows, random)
    process = air + 10.0 + _walk(num_rows, random)
    torque = np.abs(workshop.mean_torque + TORQUE_SD * random.standard_normal(num_rows))
    speed = RPM_PER_RAD_S * (IDLE_RAD_S + POWER_W / (torque + IDLE_TORQUE))
    speed = np.minimum(speed + SPEED_NOISE_RPM * random.standard_normal(num_rows), MAX_SPEED_RPM)
    wear, tool_failure = _tools(quality, workshop.tool_change_minutes, random)
    power = torque * speed / RPM_PER_RAD_S
    limit = np.array([OVERSTRAIN_LIMIT[value] for value in quality])
    failure = (
        tool_failure
        | ((process - air < 8.6) & (speed < 1380.0))
        | (power < 3500.0)
        | (power > 9000.0)
        | (wear * torque > limit)
        | (random.random(num_rows) < RANDOM_FAILURE_RATE)
    )
    return pl.DataFrame(
        {
            "product_quality": quality.astype(str),
            "air_temperature": air.round(1),
            "process_temperature": process.round(1),
            "rotational_speed": speed.round(),
            "torque": torque.round(1),
            "tool_wear": wear,
            "machine_failure": failure.astype(np.int64),
        }
    )


def _walk(num_rows: int, random: np.random.Generator) -> Floats:
    """A random walk brought to mean 0 and standard deviation 1 over the rows."""
    walk = np.cumsum(random.standard_normal(num_rows))
    return np.asarray((walk - walk.mean()) / max(float(walk.std()), 1e-9))


def _tools(
    quality: NDArray[np.str_], change_minutes: tuple[float, float], random: np.random.Generator
) -> tuple[Floats, NDArray[np.bool_]]:
    """Wear before each workpiece (minutes), and whether the tool failed on it.

    Each tool would fail at a wear drawn from 200 to 240 minutes; the firm changes it at a wear of its own.
    """
    wear = np.zeros(len(quality))
    failed = np.zeros(len(quality), dtype=bool)
    worn = random.uniform(0.0, 200.0)
    fails_at, changed_at = random.uniform(200.0, 240.0), random.uniform(*change_minutes)
    for row, kind in enumerate(quality):
        wear[row] = round(worn)
        failed[row] = worn >= fails_at
        if failed[row] or worn >= changed_at:
            worn, fails_at, changed_at = 0.0, random.uniform(200.0, 240.0), random.uniform(*change_minutes)
        else:
            worn += WEAR_MINUTES[str(kind)]
    return wear, failed


def tables(num_firms: int, random: np.random.Generator) -> list[FirmTables]:
    """Each firm's training rows, and as its test a later stretch of its own production that nobody trains on."""
    return [
        FirmTables(
            shop.name,
            simulate(shop, shop.num_train_rows, random),
            simulate(shop, NUM_TEST_ROWS, random),
            f"simulated: {shop.note}",
        )
        for shop in workshops(num_firms)
    ]


def deal(directory: Path, random: np.random.Generator, num_firms: int = 3) -> Deal:
    """Simulate, deal and write; see `tables`. Raises DataSetError."""
    return write_deal(task(), tables(num_firms, random), directory)
