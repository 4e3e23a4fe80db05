"""What a job was worth to this firm: its own model against the federated one, on its own held-out rows.

Stays in the home (jobs/<job>/result.json). Which of the two the firm keeps is decided on validation rows; the test rows
are only reported, so that their numbers stay honest.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dure_client.home import write_file
from dure_protocols.errors import DureError


class ResultError(DureError):
    """A stored result is missing or damaged."""


class Keeps(StrEnum):
    """Which model the firm goes on with."""

    FEDERATED = "federated"
    ALONE = "alone"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelReport(_Frozen):
    """One model's metrics on the firm's validation and test rows; None where the rows do not define a metric."""

    validation: Mapping[str, float | None]
    test: Mapping[str, float | None]


class JobResult(_Frozen):
    """A finished job, as the firm sees it. The counts are rows."""

    job: str
    num_train: int
    num_validation: int
    num_test: int
    primary_metric: str
    higher_is_better: bool
    alone: ModelReport
    federated: ModelReport

    @property
    def keeps(self) -> Keeps:
        """The better of the two on validation rows by the primary metric; the federated one where nothing decides."""
        own = self.alone.validation.get(self.primary_metric)
        federated = self.federated.validation.get(self.primary_metric)
        if own is None or federated is None:
            return Keeps.FEDERATED
        is_own_better = own > federated if self.higher_is_better else own < federated
        return Keeps.ALONE if is_own_better else Keeps.FEDERATED

    @property
    def is_other_way_round_on_test(self) -> bool:
        """Whether the model that is not kept is the better one on the test rows, which decide nothing."""
        own, federated = (each.test.get(self.primary_metric) for each in (self.alone, self.federated))
        if own is None or federated is None or own == federated:
            return False
        is_own_better = (own > federated) is self.higher_is_better
        return is_own_better is not (self.keeps is Keeps.ALONE)

    def write(self, path: Path) -> None:
        """Store the result, whole or not at all."""
        write_file(path, self.model_dump_json(indent=2).encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> "JobResult":
        """Read a stored result. Raises ResultError."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise ResultError(f"{path} is not there: the job has not finished here") from error
        except ValidationError as error:
            raise ResultError(f"{path} is damaged; the agent writes it again when it takes up the job") from error
