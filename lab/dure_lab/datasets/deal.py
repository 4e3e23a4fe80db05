"""What every data set is dealt into: a folder a firm with its own files, one contract, and a frozen description.

<directory>/contract.toml
<directory>/<firm>/train.parquet    rows the firm trains and validates on
<directory>/<firm>/test.parquet     rows held out from all training and tuning
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from dure_models.contract import DataContract
from dure_models.training import TrainingSettings
from dure_protocols.errors import DureError
from dure_protocols.identity import check_firm_name


class DataSetError(DureError):
    """A data set's files are not there, or not what was published. The text says which file and what to do."""


@dataclass(frozen=True)
class FirmTables:
    """One firm's rows in memory: `train` and `test` have the contract's columns."""

    name: str
    train: pl.DataFrame
    test: pl.DataFrame
    note: str = ""


@dataclass(frozen=True)
class FirmFiles:
    """One firm's files on disk. `note` says in what this firm differs from the others."""

    name: str
    train: Path
    test: Path
    num_train_rows: int
    num_test_rows: int
    note: str = ""


@dataclass(frozen=True)
class Task:
    """What is trained on a data set: data contract, model, its options, and training settings tuned on validation."""

    title: str
    simulated: bool
    licence: str
    contract: DataContract
    model: str
    model_options: Mapping[str, object]
    training: TrainingSettings


@dataclass(frozen=True)
class Deal:
    """A data set dealt to firms and written to disk."""

    task: Task
    directory: Path
    firms: tuple[FirmFiles, ...]


def write_deal(task: Task, firms: list[FirmTables], directory: Path) -> Deal:
    """Write every firm's folder and the contract under `directory`, which is made when needed. Overwrites."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "contract.toml").write_text(task.contract.to_toml(), encoding="utf-8")
    written: list[FirmFiles] = []
    for firm in firms:
        folder = directory / check_firm_name(firm.name)
        folder.mkdir(exist_ok=True)
        train, test = folder / "train.parquet", folder / "test.parquet"
        firm.train.write_parquet(train)
        firm.test.write_parquet(test)
        written.append(FirmFiles(firm.name, train, test, firm.train.height, firm.test.height, firm.note))
    return Deal(task, directory, tuple(written))


def read_tables(deal: Deal) -> list[FirmTables]:
    """The firms' rows back from the files."""
    return [
        FirmTables(firm.name, pl.read_parquet(firm.train), pl.read_parquet(firm.test), firm.note) for firm in deal.firms
    ]
