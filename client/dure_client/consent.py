"""What is new about a job, compared with those that this firm's people approved before; and the agreements they read.

Pure. policy.toml says which novelties a person is asked about (`ask_person`).
"""

from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from dure_protocols.job import Agreement, JobFile


class Asks(StrEnum):
    """What a person may be asked about each time."""

    NEW_MODEL = "new-model"
    NEW_FIRM = "new-firm"
    NEW_AGREEMENT = "new-agreement"
    WEAKER_COHORT = "weaker-cohort"


class Agreed(BaseModel):
    """An agreement that this firm's people have read and accepted: one version of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    version: str = Field(min_length=1, max_length=200)
    sha256: Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, pattern=r"^[0-9a-fA-F]{64}$")]

    def covers(self, agreement: Agreement | None) -> bool:
        """Whether a job's agreement is this one: name, version and text."""
        named = (self.name, self.version, self.sha256)
        return agreement is not None and named == (agreement.name, agreement.version, agreement.sha256)

    def __str__(self) -> str:
        return f"{self.name}, version {self.version} ({self.sha256[:16]}…)"


def novelties(job: JobFile, before: Sequence[JobFile], own: str = "") -> dict[Asks, str]:
    """What of a job was in none that a person approved before, each in words. own: this firm, which is not told of."""
    found = {}
    if (job.model.name, job.model.digest) not in {(old.model.name, old.model.digest) for old in before}:
        found[Asks.NEW_MODEL] = f"the model {job.model.name!r} is new in this version ({job.model.digest[:16]}…)"
    known = {firm for old in before for firm in old.firms.items()}
    if new := sorted(name for name, key in job.firms.items() if (name, key) not in known and name != own):
        found[Asks.NEW_FIRM] = f"new in the roster, or with another key: {', '.join(new)}"
    if job.agreement not in {old.agreement for old in before}:
        found[Asks.NEW_AGREEMENT] = (
            f"the agreement is new: {job.agreement}" if job.agreement else "no agreement is named"
        )
    smallest = min((old.minimum_cohort for old in before), default=job.minimum_cohort)
    if job.minimum_cohort < smallest:
        found[Asks.WEAKER_COHORT] = f"sums of {job.minimum_cohort} firms, of at least {smallest} before"
    return found


def why_person(asks: Collection[Asks], job: JobFile, before: Sequence[JobFile]) -> list[str]:
    """The novelties of a job that a person is asked about, in words."""
    return [words for kind, words in novelties(job, before).items() if kind in asks]
