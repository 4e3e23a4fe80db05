"""NASA's C-MAPSS turbofan fleets FD001–FD004 as published, as four firms of which one is young.

The young fleet is FD003: it keeps a tenth of its engines. It was chosen before any training and for its physics: two
fault modes at one operating point, each of which some other fleet knows, so a consortium has something to give it.
"""

import gzip
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dure_lab.datasets.deal import DataSetError, Deal, FirmTables, Task, write_deal
from dure_models.contract import Column, ColumnType, DataContract, Role
from dure_models.training import TrainingSettings

FLEETS = ("FD001", "FD002", "FD003", "FD004")
NUM_TRAIN_ROWS = {"FD001": 20631, "FD002": 53759, "FD003": 24720, "FD004": 61249}
YOUNG_FLEET = "FD003"
YOUNG_FRACTION = 0.1

_TITLE = "C-MAPSS turbofan engines, NASA's published simulated fleets FD001-FD004"
_LICENCE = (
    "NASA, US government work; Saxena, Goebel, Simon, Eklund, Damage Propagation Modeling for Aircraft Engine "
    "Run-to-Failure Simulation, PHM08, 2008"
)
_NOTES = {
    "FD001": "one operating point, one fault mode",
    "FD002": "six operating points, one fault mode",
    "FD003": "one operating point, two fault modes",
    "FD004": "six operating points, two fault modes",
}
_NUM_COLUMNS = 26
_SETTINGS = {"altitude": ("kft", (-1, 45)), "mach": ("", (-0.1, 1.0)), "throttle": ("deg", (50, 110))}
# Sensor number in the file -> (name, unit, range). The other seven never change within an operating point.
_SENSORS: dict[int, tuple[str, str, tuple[float, float]]] = {
    2: ("lpc_outlet_temperature", "degR", (500, 680)),
    3: ("hpc_outlet_temperature", "degR", (1150, 1700)),
    4: ("lpt_outlet_temperature", "degR", (950, 1500)),
    7: ("hpc_outlet_pressure", "psia", (100, 600)),
    8: ("fan_speed", "1/min", (1850, 2450)),
    9: ("core_speed", "1/min", (7800, 9400)),
    11: ("hpc_static_pressure", "psia", (30, 52)),
    12: ("fuel_to_pressure", "pps/psi", (100, 560)),
    13: ("corrected_fan_speed", "1/min", (1950, 2450)),
    14: ("corrected_core_speed", "1/min", (7700, 8450)),
    15: ("bypass_ratio", "", (7.5, 12)),
    17: ("bleed_enthalpy", "", (280, 420)),
    20: ("hpt_coolant_bleed", "lbm/s", (5, 45)),
    21: ("lpt_coolant_bleed", "lbm/s", (3, 28)),
}
_OPERATING_POINTS = [
    [0.0, 0.0, 100.0],
    [10.0, 0.25, 100.0],
    [20.0, 0.7, 100.0],
    [25.0, 0.62, 60.0],
    [35.0, 0.84, 100.0],
    [42.0, 0.84, 100.0],
]

# Chosen by the federation's validation loss on one deal (seed 0). The low cap lets fleets of unlike size count alike.
MODEL_OPTIONS: dict[str, object] = {"conditions": _OPERATING_POINTS, "window": 64, "train_stride": 4}
TRAINING = TrainingSettings(num_rounds=30, local_epochs=1, batch_size=128, learning_rate=1e-3, count_cap=1000)


def task() -> Task:
    """The task on C-MAPSS: for how many cycles will this engine still run, at most 125?"""
    columns = (
        Column(name="engine", type=ColumnType.INTEGER, role=Role.GROUP),
        Column(name="cycle", type=ColumnType.INTEGER, role=Role.TIME),
        *(
            Column(name=name, type=ColumnType.FLOAT, role=Role.CONDITION, unit=unit, range=bounds)
            for name, (unit, bounds) in _SETTINGS.items()
        ),
        *(
            Column(name=name, type=ColumnType.FLOAT, role=Role.FEATURE, unit=unit, range=bounds)
            for name, unit, bounds in _SENSORS.values()
        ),
        Column(name="remaining_cycles", type=ColumnType.INTEGER, role=Role.TARGET, unit="cycles", range=(0, 1000)),
    )
    contract = DataContract(name="cmapss", title=_TITLE, simulated=True, licence=_LICENCE, columns=columns)
    return Task(_TITLE, True, _LICENCE, contract, "rul", MODEL_OPTIONS, TRAINING)


def tables(source: Path, random: np.random.Generator) -> list[FirmTables]:
    """Four fleets with their published train and test engines; `random` picks the young fleet's engines.

    Test rows hold whole histories; the model `rul` tests at each engine's last cycle, as is usual. Raises DataSetError.
    """
    firms: list[FirmTables] = []
    for fleet in FLEETS:
        train = _with_remaining(_read(source, f"train_{fleet}.txt"), 0)
        if train.height != NUM_TRAIN_ROWS[fleet]:
            raise DataSetError(
                f"train_{fleet} has {train.height} rows; the published file has {NUM_TRAIN_ROWS[fleet]}; fetch it again"
            )
        note = _NOTES[fleet]
        if fleet == YOUNG_FLEET:
            engines = train["engine"].unique().sort().to_numpy()
            kept = random.permutation(engines)[: round(YOUNG_FRACTION * len(engines))]
            train = train.filter(pl.col("engine").is_in(kept.tolist()))
            note += f"; young: {len(kept)} of its {len(engines)} engines"
        remaining = _read_numbers(source, f"RUL_{fleet}.txt")[:, 0].astype(np.int64)
        test = _with_remaining(_read(source, f"test_{fleet}.txt"), remaining)
        firms.append(FirmTables(f"fleet-{fleet.lower()}", train, test, note))
    return firms


def deal(source: Path, directory: Path, random: np.random.Generator) -> Deal:
    """Read, deal and write; see `tables`. Raises DataSetError."""
    return write_deal(task(), tables(source, random), directory)


def _with_remaining(table: pl.DataFrame, after_last: int | NDArray[np.int64]) -> pl.DataFrame:
    """Adds `remaining_cycles`: cycles to the engine's last row, plus what the engine ran on after it."""
    engines = table["engine"].to_numpy()
    last = table.group_by("engine").agg(pl.col("cycle").max().alias("last")).sort("engine")
    if not isinstance(after_last, int) and len(after_last) != last.height:
        raise DataSetError(f"{last.height} test engines have {len(after_last)} remaining lives; fetch the files again")
    ends = last["last"].to_numpy() + after_last
    at = np.searchsorted(last["engine"].to_numpy(), engines)
    return table.with_columns(pl.Series("remaining_cycles", ends[at] - table["cycle"].to_numpy()))


def _read(source: Path, name: str) -> pl.DataFrame:
    numbers = _read_numbers(source, name)
    if numbers.shape[1] != _NUM_COLUMNS:
        raise DataSetError(f"{name} has {numbers.shape[1]} columns; the published file has {_NUM_COLUMNS}")
    columns = {"engine": numbers[:, 0].astype(np.int64), "cycle": numbers[:, 1].astype(np.int64)}
    settings = {setting: numbers[:, 2 + at] for at, setting in enumerate(_SETTINGS)}
    sensors = {sensor: numbers[:, 4 + number] for number, (sensor, _, _) in _SENSORS.items()}
    return pl.DataFrame({**columns, **settings, **sensors})


def _read_numbers(source: Path, name: str) -> NDArray[np.float64]:
    """The numbers of a blank-separated file, plain or `.gz`, (rows, columns)."""
    plain, packed = source / name, source / f"{name}.gz"
    if plain.is_file():
        text = plain.read_text(encoding="ascii")
    elif packed.is_file():
        text = gzip.decompress(packed.read_bytes()).decode("ascii")
    else:
        raise DataSetError(f"neither {plain} nor {packed} is there; give the folder of NASA's files as published")
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return np.array(lines, dtype=np.float64)
