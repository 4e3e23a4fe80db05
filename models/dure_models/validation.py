"""Holds a firm's table against the data contract, at the firm and before the first round; only pass or fail leaves."""

from collections.abc import Iterator

import polars as pl

from dure_models.contract import NUMERIC, Column, ColumnType, DataContract, Role
from dure_models.errors import DataContractError, DataProblem, ProblemKind

_MAX_NAMED = 5  # how many unknown categories a message lists
_DECIMAL_COMMA = r"^[+-]?\d+,\d+([eE][+-]?\d+)?$"


def conform(contract: DataContract, table: pl.DataFrame) -> pl.DataFrame:
    """The contract's columns of a table, in the contract's order and types; what the models read.

    Other columns and those of role `ignore` are dropped. Raises DataContractError with *all* problems at once: no rows,
    columns missing or of the wrong type, missing values, values outside the range, unknown categories.
    """
    columns = [column for column in contract.columns if column.role is not Role.IGNORE]
    problems: list[DataProblem] = []
    if table.height == 0 and table.width:  # a table without columns has no rows either; those are told below
        problems.append(
            DataProblem(ProblemKind.NO_ROWS, "", "the table has no rows; check the files named in data.toml")
        )
    kept: list[pl.Series] = []
    for column in columns:
        if column.name not in table.columns:
            problems.append(_missing(column))
            continue
        values = _cast(column, table[column.name])
        if values is None:
            problems.append(_wrong_type(column, table[column.name]))
            continue
        problems.extend(_value_problems(column, values))
        kept.append(values)
    if problems:
        raise DataContractError(contract.name, problems)
    return pl.DataFrame(kept)


def _missing(column: Column) -> DataProblem:
    return DataProblem(
        ProblemKind.MISSING_COLUMN,
        column.name,
        f"the column {column.name!r} ({column.type}{', ' + column.unit if column.unit else ''}) is missing; "
        "name the column that holds it under [columns] in data.toml",
    )


def _wrong_type(column: Column, values: pl.Series) -> DataProblem:
    return DataProblem(
        ProblemKind.WRONG_TYPE,
        column.name,
        f"the column {column.name!r} must be of type {column.type}, {_why_not_readable(column, values)}",
    )


def _why_not_readable(column: Column, values: pl.Series) -> str:
    if values.dtype != pl.String:
        return f"the data have {values.dtype} that cannot be read as it; correct the file, or map another column"
    if column.type in NUMERIC:
        written = values.drop_nulls().str.strip_chars()
        with_comma = written.filter(written.str.contains(_DECIMAL_COMMA))
        if len(with_comma):
            return (
                f"the data have decimal commas, such as {with_comma[0]!r}: set decimal_comma = true under [format] in "
                "data.toml"
            )
    return "the data have text that cannot be read as it; correct the file, or map another column"


def _cast(column: Column, values: pl.Series) -> pl.Series | None:
    """The values in the contract's type, or None where some value cannot be read as that type."""
    if column.type is ColumnType.FLOAT:
        wanted: type[pl.DataType] = pl.Float64
    elif column.type is ColumnType.INTEGER:
        wanted = pl.Int64
        if values.dtype.is_float() and not values.is_null().all():
            finite = values.drop_nulls()
            if not (finite == finite.floor()).all():
                return None
    elif column.type is ColumnType.TIMESTAMP:
        return values if values.dtype.is_temporal() else None
    else:
        wanted = pl.String
    try:
        return values.cast(wanted, strict=True)
    except pl.exceptions.PolarsError:
        return None


def _value_problems(column: Column, values: pl.Series) -> Iterator[DataProblem]:
    name = column.name
    num_missing = values.null_count()
    if column.type is ColumnType.FLOAT:
        num_missing += int(values.is_nan().sum() or 0)
    if num_missing:
        yield DataProblem(
            ProblemKind.MISSING_VALUES,
            name,
            f"the column {name!r} lacks {num_missing} of {len(values)} values; fill them or drop those rows",
        )
    if column.type in NUMERIC and column.range is not None:
        low, high = column.range
        num_outside = int(((values < low) | (values > high)).sum() or 0)
        if num_outside:
            yield DataProblem(
                ProblemKind.OUT_OF_RANGE,
                name,
                f"the column {name!r} has {num_outside} of {len(values)} values outside [{low:g}, {high:g}] "
                f"{column.unit or '(no unit)'}; check its unit in data.toml, drop faulty rows, or agree on "
                "a wider range in the contract",
            )
    if column.categories:
        unknown = sorted(set(values.drop_nulls().unique().to_list()) - set(column.categories))
        if unknown:
            more = f" and {len(unknown) - _MAX_NAMED} more" if len(unknown) > _MAX_NAMED else ""
            yield DataProblem(
                ProblemKind.UNKNOWN_CATEGORY,
                name,
                f"the column {name!r} has values {', '.join(map(repr, unknown[:_MAX_NAMED]))}{more} that are "
                f"none of the agreed {', '.join(map(repr, column.categories))}; correct them in the file",
            )
