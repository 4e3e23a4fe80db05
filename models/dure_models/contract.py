"""The data contract: which columns a consortium agreed on, in which units and ranges, and what each is for.

Agents, trainers and coordinators all read it, so this module needs neither polars nor torch; checking a table against
a contract is `dure_models.validation`. The contract's digest stands in the job file: firms that train together have
agreed on exactly the same columns, ranges and categories.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from dure_models.errors import ContractError
from dure_protocols.toml import parse_toml

VALIDATION_FRACTION: Final = 0.2
"""The part of a firm's rows that validates the models where a job's training settings name no other."""


class ColumnType(StrEnum):
    """How a column's values are read. `timestamp` is a date and time; `text` is for keys such as a serial number."""

    FLOAT = "float"
    INTEGER = "integer"
    CATEGORY = "category"
    TIMESTAMP = "timestamp"
    TEXT = "text"


class Role(StrEnum):
    """What a column is for.

    `group` names the unit that rows belong to (an engine, a machine), so that a split never parts it; `time` orders the
    rows of a group; `condition` tells the operating condition under which the features were measured.
    """

    FEATURE = "feature"
    TARGET = "target"
    GROUP = "group"
    TIME = "time"
    CONDITION = "condition"
    IGNORE = "ignore"


NUMERIC = frozenset({ColumnType.FLOAT, ColumnType.INTEGER})
MAX_COLUMNS = 4096
_RANGED_ROLES = frozenset({Role.FEATURE, Role.TARGET, Role.CONDITION})


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be one line without control characters")
    return text


Line = Annotated[str, AfterValidator(_printable)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Column(_Frozen):
    """One agreed column. `range` is inclusive and in `unit`; numbers that a model reads need one, categories a list."""

    name: Line = Field(min_length=1, max_length=128)
    type: ColumnType
    role: Role
    unit: Line = ""
    range: tuple[float, float] | None = None
    categories: Annotated[tuple[Line, ...], FailFast()] = ()
    description: Line = ""

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        if self.range is not None and (self.type not in NUMERIC or self.range[0] >= self.range[1]):
            raise ValueError(f"column {self.name!r}: a range needs a number column and minimum < maximum")
        if self.range is None and self.type in NUMERIC and self.role in _RANGED_ROLES:
            raise ValueError(f"column {self.name!r}: a number used as {self.role} needs range = [minimum, maximum]")
        if bool(self.categories) != (self.type is ColumnType.CATEGORY):
            raise ValueError(f"column {self.name!r}: type category and a list of categories need each other")
        if len(set(self.categories)) != len(self.categories):
            raise ValueError(f"column {self.name!r}: a category is listed twice")
        if self.role in _RANGED_ROLES and self.type in {ColumnType.TEXT, ColumnType.TIMESTAMP}:
            raise ValueError(f"column {self.name!r}: {self.type} cannot be used as {self.role}")
        return self


class DataContract(_Frozen):
    """What a consortium's tables look like. Frozen; equal contracts have equal digests."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    title: Line
    simulated: bool = False
    description: Line = ""
    licence: Line = ""
    columns: tuple[Column, ...] = Field(min_length=1)

    @field_validator("columns", mode="before")
    @classmethod
    def _are_not_too_many(cls, value: object) -> object:
        # Before each is looked at: a megabyte of wrong columns would make half a gigabyte of problems.
        if isinstance(value, list | tuple) and len(value) > MAX_COLUMNS:
            raise ValueError(f"a contract has at most {MAX_COLUMNS} columns")
        return value

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [column.name for column in self.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"columns are named twice: {', '.join(twice)}")
        for role in (Role.GROUP, Role.TIME):
            if len(self.by_role(role)) > 1:
                raise ValueError(f"at most one column may have the role {role}")
        if self.simulated and "simulated" not in self.title.lower():
            raise ValueError("the title of simulated data must contain the word 'simulated'")
        return self

    def by_role(self, role: Role) -> tuple[Column, ...]:
        """The columns of one role, in the contract's order."""
        return tuple(column for column in self.columns if column.role is role)

    def column(self, name: str) -> Column:
        """The column of that name. Raises ContractError when there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        known = ", ".join(column.name for column in self.columns)
        raise ContractError(f"the contract {self.name!r} has no column {name!r}; it has: {known}")

    def single(self, role: Role) -> Column:
        """The one column of a role. Raises ContractError when there is none or more than one."""
        found = self.by_role(role)
        if len(found) != 1:
            raise ContractError(
                f"the contract {self.name!r} needs exactly one column of role {role}, it has {len(found)}"
            )
        return found[0]

    def canonical_json(self) -> str:
        """The contract as JSON with sorted keys and no blanks: the text that `digest` is over."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def digest(self) -> str:
        """SHA-256 of `canonical_json`, lower-case hex. Stands in the job file."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    def to_toml(self) -> str:
        """The contract as TOML text; `from_toml` reads it back to an equal contract."""
        head = self.model_dump(mode="json", exclude={"columns"}, exclude_defaults=True)
        tables = [column.model_dump(mode="json", exclude_defaults=True) for column in self.columns]
        blocks = [_toml_lines(head), *("[[columns]]\n" + _toml_lines(table) for table in tables)]
        return "\n".join(blocks)

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Read a contract from TOML text. Raises ContractError naming every problem."""
        try:
            return cls.model_validate(parse_toml(text))
        except tomllib.TOMLDecodeError as error:
            raise ContractError(f"the data contract is not valid TOML: {error}; correct that line") from error
        except ValidationError as error:
            raise ContractError(f"this is no valid data contract:{_listed(error)}") from error

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Self:
        """The contract that a job file carries. Raises ContractError."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ContractError(f"the job carries no valid data contract:{_listed(error)}") from error

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a contract from JSON text. Raises ContractError."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ContractError(f"this is no valid data contract:{_listed(error)}") from error


def _listed(error: ValidationError) -> str:
    parts = ((".".join(map(str, item["loc"])), item["msg"]) for item in error.errors())
    return "".join(f"\n  - {place or 'contract'}: {message}" for place, message in parts)


def _toml_lines(table: dict[str, object]) -> str:
    # JSON's strings, numbers, booleans and flat lists are also TOML's, because `Line` admits no control characters.
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in table.items())
