"""How the operator runs a job: what the firms need not agree on, because nothing of it touches what they protect.

    [operation]                       # in the draft; later: dure-server job set JOB …
    quorum = 4                        # fewest firms to begin an attempt with; the minimum cohort unless given
    update_seconds = 900.0            # longest wait in one phase, where it is not the job's phase_seconds
    diverged_factor = 10.0            # stop when the selection metric is this many times its best …
    diverged_rounds = 3               # … for so many rounds on end; 0 never stops
    keep_sums = false                 # true: published sums stay on the server, for whoever wants to compute them again

Kept in the store beside the job file and read before each attempt, so that a change counts from the next one on.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dure_protocols.errors import DureError
from dure_protocols.job import JobFile
from dure_protocols.secagg.terms import Terms

_ZERO_COUNTS = {"diverged_rounds", "keep_sums"}
TimedPhase = Literal["join", "update", "vote", "release"]


class OperationError(DureError):
    """Settings that do not fit the job."""


class Operation(BaseModel):
    """The settings; each has its words in the module's head. Checked when built; against the job by `check`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    quorum: int | None = Field(default=None, ge=2)
    join_seconds: float | None = Field(default=None, gt=0)
    update_seconds: float | None = Field(default=None, gt=0)
    vote_seconds: float | None = Field(default=None, gt=0)
    release_seconds: float | None = Field(default=None, gt=0)
    diverged_factor: float = Field(default=10.0, gt=1)
    diverged_rounds: int = Field(default=3, ge=0)
    keep_sums: bool = False

    def check(self, job: JobFile) -> None:
        """Raises OperationError where the job can never have that quorum, or sums fewer than it needs anyway."""
        least = Terms.of(job).least_survivors
        if self.quorum is not None and not least <= self.quorum <= len(job.firms):
            raise OperationError(
                f"a quorum of {self.quorum} does not fit job {job.id}: its sums take {least} (what the firms agreed on)"
                f" to {len(job.firms)} firms"
            )

    def seconds(self, phase: TimedPhase, job: JobFile) -> float:
        """The longest wait for an answer in a phase."""
        own: float | None = getattr(self, f"{phase}_seconds")
        return job.phase_seconds if own is None else own

    def why_diverged(self, values: Sequence[float]) -> str:
        """Why a job should stop, from its selection metric by round (lower is better); empty if it need not. Pure.

        Not finite once, or `diverged_rounds` rounds on end worse than `diverged_factor` times the best before them. A
        metric whose best is not above zero has no such multiple, and is only held to be finite.
        """
        if values and not math.isfinite(values[-1]):
            return f"the selection metric is {values[-1]}"
        last, before = values[-self.diverged_rounds :], values[: -self.diverged_rounds]
        if not self.diverged_rounds or not before or min(before) <= 0:
            return ""
        best = min(before)
        if min(last) <= self.diverged_factor * best:
            return ""
        return (
            f"the selection metric has been above {self.diverged_factor:g} times its best ({best:.4g}) for"
            f" {len(last)} rounds, last {last[-1]:.4g}"
        )


def changed_operation(
    job: JobFile, kept: Mapping[str, float | int | None], changes: Mapping[str, float | int]
) -> Operation:
    """The settings with some of them changed; 0 takes a quorum or a deadline back. Raises OperationError."""
    usual = {name: None for name, value in changes.items() if not value and name not in _ZERO_COUNTS}
    try:
        operation = Operation.model_validate({**kept, **changes, **usual})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise OperationError(f"job {job.id} cannot be run like that: {problems}") from error
    operation.check(job)
    return operation
