"""Which data set a folder holds, for the commands that take `--data DIR`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dure_lab.datasets import ai4i, cmapss, milling
from dure_lab.datasets.deal import DataSetError, FirmTables, Task


@dataclass(frozen=True)
class DataSet:
    """A task, and its rows dealt to firms by a generator."""

    task: Task
    tables: Callable[[np.random.Generator], list[FirmTables]]


def find(source: Path | None, num_firms: int | None = None) -> DataSet:
    """The data set in a folder of published files, or simulated milling for None.

    num_firms: for simulated data, 3 unless given; published sets have their own number. Raises DataSetError.
    """
    if source is None:
        return DataSet(milling.task(), lambda random: milling.tables(num_firms or 3, random))
    if num_firms is not None:
        raise DataSetError("published data sets are dealt to firms of their own; leave --firms out")
    if any(source.glob("ai4i2020.csv*")):
        return DataSet(ai4i.task(), lambda random: ai4i.tables(source, random))
    if any(source.glob("train_FD001.txt*")):
        return DataSet(cmapss.task(), lambda random: cmapss.tables(source, random))
    raise DataSetError(
        f"{source} holds neither AI4I 2020 (ai4i2020.csv) nor C-MAPSS (train_FD001.txt, …) as published; "
        "name the folder with those files, or leave --data out for simulated data"
    )
