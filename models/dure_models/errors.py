"""The errors of the models package.

    dure_protocols.errors.DureError
    └── ModelsError               everything below
        ├── ContractError         a text that is no data contract, or a contract that contradicts itself
        ├── DataContractError     a firm's table does not fit the contract; carries every problem at once
        ├── UnknownModelError     no installed package offers a model of that name
        └── ModelOptionsError     options, or a contract, that the named model cannot work with

A `DataContractError` may describe the firm's data: it is for the firm's own log and screen and never leaves the firm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dure_protocols.errors import DureError


class ModelsError(DureError):
    """Base of the errors that `dure_models` raises on purpose."""


class ContractError(ModelsError):
    """A text is no data contract, or the contract contradicts itself."""


class UnknownModelError(ModelsError):
    """No installed package offers a model of that name."""


class ModelOptionsError(ModelsError):
    """Options, or a data contract, that the named model cannot work with."""


class ProblemKind(StrEnum):
    """What may be wrong between a table and its contract."""

    NO_ROWS = "no-rows"
    MISSING_COLUMN = "missing-column"
    WRONG_TYPE = "wrong-type"
    MISSING_VALUES = "missing-values"
    OUT_OF_RANGE = "out-of-range"
    UNKNOWN_CATEGORY = "unknown-category"


@dataclass(frozen=True)
class DataProblem:
    """One thing that is wrong with a table: which column, and in `text` what was expected, what came, what to do."""

    kind: ProblemKind
    column: str
    text: str


class DataContractError(ModelsError):
    """A firm's table does not fit the contract. `problems` holds all of them, in the contract's column order."""

    def __init__(self, contract: str, problems: Sequence[DataProblem]) -> None:
        lines = "".join(f"\n  - {problem.text}" for problem in problems)
        super().__init__(f"the data do not fit the data contract {contract!r}:{lines}")
        self.problems = tuple(problems)
