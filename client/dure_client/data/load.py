"""From data.toml to the tables of a job: every part read, renamed and held against the contract."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from dure_client.data.errors import DataSourceError, TooFewRowsError
from dure_client.data.mapping import DataMapping, Files
from dure_client.data.sources import read_table, separator_advice
from dure_models.contract import ColumnType, DataContract, Role
from dure_models.errors import DataContractError, DataProblem, ProblemKind
from dure_models.split import validation_split
from dure_models.validation import conform


@dataclass(frozen=True)
class FirmTables:
    """A firm's conforming tables: the contract's columns, names, order and types. `test` may have no rows.

    `rows_by_file` says how many rows each file gave, by part ("train", "test").
    """

    train: pl.DataFrame
    test: pl.DataFrame
    rows_by_file: Mapping[str, Mapping[Path, int]]

    def check_enough(self, contract: DataContract, fraction: float, seed: int, minimum_rows: int) -> None:
        """Hold the rows that are left to train on against the policy, parted as a job's trainer parts them.

        fraction, seed: the job's. Models that train on windows of rows may count fewer. Raises TooFewRowsError.
        """
        train, validation = (rows.height for rows in validation_split(contract, self.train, fraction, seed))
        if train < minimum_rows:
            raise TooFewRowsError(
                f"{train} of {self.train.height} rows are left to train on ({validation} validate the models): fewer "
                f"than the minimum_rows = {minimum_rows} of policy.toml, so that the job would be refused with `data`. "
                "Name more rows under [train] in data.toml; or, if an update made from so few may be given, lower "
                "minimum_rows"
            )
        if not validation:
            raise TooFewRowsError(
                f"of {train} rows none is left to validate the models on, so that the job would be refused with `data`."
                " Name more rows under [train] in data.toml"
            )


def load(mapping: DataMapping, contract: DataContract) -> FirmTables:
    """Read and check a firm's data for a job.

    Raises DataMappingError, DataSourceError, or DataContractError with all problems of the first part that has some.
    """
    mapping.check_against(contract)
    train, train_rows = _part("train", mapping, mapping.train, contract)
    if mapping.test is None:
        return FirmTables(train, train.clear(), {"train": train_rows})
    test, test_rows = _part("test", mapping, mapping.test, contract)
    return FirmTables(train, test, {"train": train_rows, "test": test_rows})


def _part(name: str, mapping: DataMapping, part: Files, contract: DataContract) -> tuple[pl.DataFrame, dict[Path, int]]:
    """The files of one part as one conforming table, and the rows of each file."""
    tables: dict[Path, pl.DataFrame] = {}
    there: dict[str, None] = {}  # the files' own columns, in order
    for path in mapping.files(part):
        tables[path], columns = _renamed(mapping, contract, path)
        there.update(dict.fromkeys(columns))
    try:
        table = pl.concat(tables.values(), how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        raise DataSourceError(
            f"the files of [{name}] do not fit behind one another: {error}; give all of them the same columns"
        ) from error
    try:
        return conform(contract, table), {path: table.height for path, table in tables.items()}
    except DataContractError as error:
        problems = list(error.problems)
        if any(problem.kind is ProblemKind.MISSING_COLUMN for problem in problems):
            problems.append(_what_is_there(next(iter(tables)), mapping, list(there)))
        raise DataContractError(f"{contract.name}, [{name}] of data.toml", problems) from error


def _what_is_there(path: Path, mapping: DataMapping, columns: list[str]) -> DataProblem:
    advice = separator_advice(path, mapping.format)
    text = f"the columns of the files are: {', '.join(map(repr, columns))}" + (f"; {advice}" if advice else "")
    return DataProblem(ProblemKind.MISSING_COLUMN, "", text)


def _renamed(mapping: DataMapping, contract: DataContract, path: Path) -> tuple[pl.DataFrame, list[str]]:
    """The contract's columns of one file, as far as they are there, and the names of all that the file has."""
    wanted = [column for column in contract.columns if column.role is not Role.IGNORE]
    textual = {ColumnType.TEXT, ColumnType.CATEGORY}
    as_text = {mapping.source_of(column.name) for column in wanted if column.type in textual}
    table = read_table(path, mapping.format, as_text)
    for name, column in mapping.columns.items():
        if column.source not in table.columns:
            raise DataSourceError(
                f"data.toml says that {name!r} is called {column.source!r}, but {path} has no such column; "
                f"it has: {', '.join(table.columns)}. "
                + (separator_advice(path, mapping.format) or f"Correct `{name}` under [columns]")
            )
    # What is missing without having been named is reported by the contract's own check, all at once.
    sources = {column.name: mapping.source_of(column.name) for column in wanted}
    kept = table.select(pl.col(source).alias(name) for name, source in sources.items() if source in table.columns)
    return kept, table.columns
