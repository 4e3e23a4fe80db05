"""data.toml: where a firm's data is and which of its columns are the contract's. Needs no polars."""

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from dure_client.data.errors import DataMappingError
from dure_models.contract import DataContract
from dure_protocols.toml import field_problems, parse_toml

DEFAULT_TEXT = """\
# Where this firm's data is and what its columns are called. The files are read here and never leave the firm.
# After each change run `dure-agent data check`.

# Rows to train on; the validation rows are taken from them. Paths are relative to this file; * and ? stand for any
# characters, and all files that match are put one behind the other.
[train]
paths = ["data/train*.csv"]

# Rows that no training sees, to judge the models on. Leave this table out if there are none.
# [test]
# paths = ["data/test*.csv"]

# How the files are written. Left out: told by the ending, .parquet or .csv (.csv.gz), with a header line and commas.
# [format]
# kind = "csv"                        # "csv", "blanks" (columns separated by any number of blanks) or "parquet"
# separator = ";"                     # csv only; "\\t" for a tab
# decimal_comma = true                # numbers are written 2,5 and not 2.5; csv then needs another separator
# header = false                      # then give the names of all columns in their order:
# names = ["unit", "cycle", "sensor_1"]
# missing = ["", "NA", "NaN"]         # texts that mean "no value"

# The contract's name = your name, for columns whose names differ. Columns that are not in the contract are not read.
# [columns]
# torque = "Torque [Nm]"
# air_temperature = { source = "T_air", unit = "K" }   # a unit is checked against the contract's; none is converted yet
"""


class FileKind(StrEnum):
    """How a file's columns are written."""

    CSV = "csv"
    BLANKS = "blanks"
    PARQUET = "parquet"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileFormat(_Frozen):
    """How the files are written. `kind` None: told by each file's ending."""

    kind: FileKind | None = None
    separator: str = Field(default=",", min_length=1, max_length=1)
    decimal_comma: bool = False
    header: bool = True
    names: tuple[str, ...] = ()
    missing: tuple[str, ...] = ("",)

    @model_validator(mode="after")
    def _names_without_header(self) -> Self:
        if self.header == bool(self.names):
            raise ValueError("`names` lists the columns of files without a header: give both header = false and names")
        return self

    @model_validator(mode="after")
    def _comma_has_one_meaning(self) -> Self:
        if self.decimal_comma and self.separator == "," and self.kind in {None, FileKind.CSV}:
            raise ValueError("with decimal_comma = true the columns must be parted by something else: give `separator`")
        return self


class Files(_Frozen):
    """One part of the data: its files, as paths or patterns."""

    paths: tuple[str, ...] = Field(min_length=1)


class SourceColumn(_Frozen):
    """The firm's column that holds one of the contract's. `unit` "" means the contract's."""

    source: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    unit: str = ""


def _bare_name(value: object) -> object:
    return {"source": value} if isinstance(value, str) else value


class DataMapping(_Frozen):
    """data.toml, checked. `folder` is where the file lies, which its paths are relative to."""

    folder: Path
    train: Files
    test: Files | None = None
    format: FileFormat = FileFormat()
    columns: dict[str, Annotated[SourceColumn, BeforeValidator(_bare_name)]] = {}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a mapping file. Raises DataMappingError naming every problem."""
        try:
            fields = parse_toml(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataMappingError(
                f"{path} is missing: write it with `dure-agent data init` and name your data files there"
            ) from error
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise DataMappingError(f"{path} is not valid TOML: {error}; correct that line") from error
        try:
            return cls.model_validate({**fields, "folder": path.parent})
        except ValidationError as error:
            lines = "".join(f"\n  - {problem}" for problem in field_problems(error, cls))
            raise DataMappingError(f"{path} is not a valid data mapping:{lines}") from error

    def check_against(self, contract: DataContract) -> None:
        """Refuse columns that the contract does not have, and units that are not its own. Raises DataMappingError."""
        known = {column.name: column for column in contract.columns}
        for name, column in self.columns.items():
            if name not in known:
                raise DataMappingError(
                    f"data.toml maps a column {name!r} that the contract {contract.name!r} does not have; "
                    f"in [columns] the contract's name stands left of the sign, and it has: {', '.join(known)}"
                )
            if column.unit and column.unit != known[name].unit:
                raise DataMappingError(
                    f"data.toml gives {name!r} in {column.unit!r}, the contract {contract.name!r} wants "
                    f"{known[name].unit or 'no unit'!r}; units are not converted yet: convert the column in the file"
                )

    def source_of(self, name: str) -> str:
        """The firm's name of a contract's column."""
        return self.columns[name].source if name in self.columns else name

    def files(self, part: Files) -> list[Path]:
        """The files of one part, patterns resolved, sorted within each. Raises DataMappingError when one has none."""
        found: list[Path] = []
        for pattern in part.paths:
            # `glob` takes relative patterns only; an absolute path is taken apart at its root.
            base = Path(Path(pattern).anchor) if Path(pattern).is_absolute() else self.folder
            relative = str(Path(pattern).relative_to(base)) if Path(pattern).is_absolute() else pattern
            here = [base / relative] if (base / relative).is_file() else sorted(base.glob(relative))
            if not here:
                raise DataMappingError(
                    f"data.toml names {pattern!r}, but there is no such file under {base}; correct `paths`"
                )
            found += [path for path in here if path not in found]
        return found
