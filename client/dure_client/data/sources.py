"""Reads one data file into a table, whatever it is written in. One function a kind of file."""

import gzip
import io
import re
import zlib
from collections.abc import Callable, Collection
from pathlib import Path

import polars as pl

from dure_client.data.errors import DataSourceError
from dure_client.data.mapping import FileFormat, FileKind

_ENDINGS = {
    ".csv": FileKind.CSV,
    ".csv.gz": FileKind.CSV,
    ".parquet": FileKind.PARQUET,
    ".txt": FileKind.BLANKS,
    ".txt.gz": FileKind.BLANKS,
}
_SEPARATORS = (",", ";", "\t", "|")
_QUOTED = re.compile(r'"[^"]*"')
_HEAD_BYTES = 1 << 16


def read_table(path: Path, form: FileFormat, as_text: Collection[str]) -> pl.DataFrame:
    """All columns of a file under the firm's own names. `as_text` are those whose values must not be taken for numbers.

    Raises DataSourceError.
    """
    kind = form.kind or _kind_of(path)
    try:
        table = _READERS[kind](path, form, as_text)
    except FileNotFoundError as error:
        raise DataSourceError(f"the data file {path} does not exist; correct `paths` in data.toml") from error
    except PermissionError as error:
        raise DataSourceError(f"the data file {path} may not be read by this user; change its permissions") from error
    except (OSError, EOFError, pl.exceptions.PolarsError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        advice = separator_advice(path, form) or "correct the file, or [format] in data.toml"
        raise DataSourceError(f"the data file {path} cannot be read as {kind}: {first}; {advice}") from error
    stripped = [name.strip() for name in table.columns]
    if len(set(stripped)) != len(stripped):
        raise DataSourceError(f"the data file {path} has two columns of one name; rename one in its header")
    return table.rename(dict(zip(table.columns, stripped, strict=True)))


def separator_advice(path: Path, form: FileFormat) -> str:
    """What to set if the first line of a CSV file speaks for another separator than the one in force; else empty."""
    if (form.kind or _kind_of(path)) is not FileKind.CSV:
        return ""
    try:
        with path.open("rb") as file:
            opened = gzip.GzipFile(fileobj=file) if path.name.lower().endswith(".gz") else file
            line = opened.readline(_HEAD_BYTES).decode("utf-8", "replace")
    except (OSError, EOFError, zlib.error):
        return ""
    counts = {separator: _QUOTED.sub("", line).count(separator) for separator in (form.separator, *_SEPARATORS)}
    likely = max(counts, key=lambda separator: counts[separator])
    if counts[likely] <= counts[form.separator]:
        return ""
    shown = likely.replace("\t", "\\t")
    return (
        f"the file looks as if its columns were parted by '{shown}': set separator = \"{shown}\" under [format] in "
        "data.toml"
    )


def _kind_of(path: Path) -> FileKind:
    for ending, kind in _ENDINGS.items():
        if path.name.lower().endswith(ending):
            return kind
    raise DataSourceError(
        f"the data file {path} has an ending that tells nothing; give `kind` under [format] in data.toml"
    )


def _read_csv(path: Path, form: FileFormat, as_text: Collection[str]) -> pl.DataFrame:
    return _parsed(path.read_bytes(), form, form.separator, as_text)


def _read_blanks(path: Path, form: FileFormat, as_text: Collection[str]) -> pl.DataFrame:
    # One column of whole lines first (no line holds the separator 0x1f), then runs of blanks become one tab.
    lines = pl.read_csv(path, has_header=False, separator="\x1f", infer_schema=False, quote_char=None).to_series()
    tabbed = lines.str.strip_chars().str.replace_all(r"\s+", "\t").str.join("\n").item()
    return _parsed((tabbed or "").encode(), form, "\t", as_text)


def _read_parquet(path: Path, form: FileFormat, as_text: Collection[str]) -> pl.DataFrame:
    del form
    table = pl.read_parquet(path)
    return table.with_columns(pl.col(name).cast(pl.String) for name in as_text if name in table.columns)


def _parsed(content: bytes, form: FileFormat, separator: str, as_text: Collection[str]) -> pl.DataFrame:
    table = pl.read_csv(
        io.BytesIO(content),
        separator=separator,
        has_header=form.header,
        infer_schema_length=None,  # all rows: a sensor that is 0 for a day and 0.5 afterwards is no integer
        try_parse_dates=True,
        null_values=list(form.missing),
        decimal_comma=form.decimal_comma,
        schema_overrides=_overrides(content, form, separator, as_text),
    )
    if form.header:
        return table
    if len(form.names) != table.width:
        raise DataSourceError(
            f"the file has {table.width} columns, `names` under [format] in data.toml lists {len(form.names)}"
        )
    table.columns = list(form.names)
    return table


def _overrides(
    content: bytes, form: FileFormat, separator: str, as_text: Collection[str]
) -> dict[str, type[pl.String]]:
    """Read the columns of `as_text` as text. Files without a header number their columns."""
    head = pl.read_csv(io.BytesIO(content), separator=separator, has_header=form.header, n_rows=1, infer_schema=False)
    own_names = form.names if not form.header and len(form.names) == head.width else tuple(head.columns)
    pairs = zip(head.columns, own_names, strict=True)
    return {column: pl.String for column, name in pairs if name.strip() in as_text}


_READERS: dict[FileKind, Callable[[Path, FileFormat, Collection[str]], pl.DataFrame]] = {
    FileKind.CSV: _read_csv,
    FileKind.BLANKS: _read_blanks,
    FileKind.PARQUET: _read_parquet,
}
