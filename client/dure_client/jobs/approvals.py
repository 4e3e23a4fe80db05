"""What this firm decided on a job, and which jobs it knows: files in jobs/<job>/ of its home.

A decision is for one job file, byte for byte: it names the digest, and says nothing about a job file of another digest
that goes by the same name.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dure_client.home import AgentHome, write_file
from dure_client.jobs.folder import stored_progress
from dure_protocols.errors import DureError
from dure_protocols.job import JobFile, JobFileError

APPROVAL_FILE = "approval.json"
JOB_FILE = "job.json"
LEAVE_FILE = "leave.bin"
"""There once the firm has left the job for good (`dure_client.leaving`)."""


class ApprovalError(DureError):
    """A job is not known here, it was left for good, or its stored job file is damaged."""


class Verdict(StrEnum):
    """What the firm said."""

    APPROVED = "approved"
    REJECTED = "rejected"
    LEFT = "left"
    """It took part, or might have, and left for good."""
    DAMAGED = "damaged"
    """It said something that cannot be read any more: no yes of any kind, until somebody decides again. Not stored."""


class By(StrEnum):
    """Who said it."""

    PERSON = "person"
    POLICY = "policy"


class Decision(BaseModel):
    """One firm's word on one job file. `digest` is the job file's SHA-256 (hex); `time` UTC, ISO 8601.

    package: digest of the model package that was read and approved with it, None for a model that comes with Dure.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    verdict: Verdict
    time: str
    by: By = By.PERSON  # a file from before the policy's own yes was told apart has none
    package: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


def decide(
    home: AgentHome, job: JobFile, verdict: Verdict, now: datetime, by: By = By.PERSON, *, package: str | None = None
) -> Decision:
    """Store the firm's word on a job, and on the `package` that it would run, by digest.

    A later word replaces it, also one that is damaged, but for the last: who left a job is out of it. Raises
    ApprovalError for a job that this firm left: its keys are erased.
    """
    before = decision_on(home, job)
    if before is not None and before.verdict is Verdict.LEFT and verdict is not Verdict.LEFT:
        raise ApprovalError(
            f"this firm left job {job.id!r} on {before.time} and erased its keys; the operator has to propose another"
        )
    decision = Decision(
        job=job.id,
        digest=job.digest().hex(),
        verdict=verdict,
        time=now.astimezone(UTC).isoformat(timespec="seconds"),
        by=by,
        package=package,
    )
    folder = home.job_folder(job.id)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(folder / APPROVAL_FILE, decision.model_dump_json(indent=2).encode() + b"\n")
    return decision


def decision_on(home: AgentHome, job: JobFile) -> Decision | None:
    """The firm's word on exactly this job file, or None; one that says DAMAGED, or LEFT, where it cannot be read."""
    file = home.job_folder(job.id) / APPROVAL_FILE
    try:
        decision = Decision.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        return Decision(
            job=job.id,
            digest=job.digest().hex(),
            verdict=Verdict.LEFT if file.with_name(LEAVE_FILE).exists() else Verdict.DAMAGED,
            time=datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds"),
        )
    return decision if decision.digest == job.digest().hex() else None


@dataclass(frozen=True)
class KnownJob:
    """A job that the operator proposed to this firm, and where it stands here."""

    job: JobFile
    decision: Decision | None
    next_round: int | None
    is_finished: bool

    @property
    def state(self) -> str:
        """In one word: proposed, approved, rejected, running, finished or left. Proposed, too, if its decision is
        damaged: it waits for this firm's word."""
        if self.decision is not None and self.decision.verdict is Verdict.LEFT:
            return "left"
        if self.is_finished:
            return "finished"
        if self.decision is None or self.decision.verdict is Verdict.DAMAGED:
            return "proposed"
        is_running = self.next_round is not None and self.decision.verdict is Verdict.APPROVED
        return "running" if is_running else self.decision.verdict.value


def known_job(home: AgentHome, name: str) -> KnownJob:
    """One job by its id. Raises ApprovalError with the jobs there are if it is unknown, or its file damaged."""
    # Only names that are there are taken, so no text of a command line becomes a path.
    if name not in home.job_names() or not (home.job_folder(name) / JOB_FILE).exists():
        known = ", ".join(job.job.id for job in known_jobs(home)) or "none"
        raise ApprovalError(
            f"no job {name!r} has been proposed to this firm (known: {known}); "
            "the agent learns of jobs while `dure-agent run` is connected"
        )
    folder = home.job_folder(name)
    try:
        job = JobFile.from_bytes((folder / JOB_FILE).read_bytes())
    except JobFileError as error:
        raise ApprovalError(f"the stored job file of {name!r} is damaged: {error}; ask the operator for it") from error
    progress = stored_progress(folder)
    next_round = None if progress is None else progress.round
    return KnownJob(job, decision_on(home, job), next_round, (folder / "final.f32").exists())


def known_jobs(home: AgentHome) -> list[KnownJob]:
    """All jobs proposed to this firm, by id."""
    return [known_job(home, name) for name in home.job_names() if (home.job_folder(name) / JOB_FILE).exists()]


def approved_by_people(home: AgentHome, *, but: str = "") -> list[JobFile]:
    """The jobs that a person here approved, or took part in until they left; without the one of this id."""
    return [
        known.job
        for known in _readable(home)
        if known.job.id != but
        and known.decision is not None
        and known.decision.by is By.PERSON
        and known.decision.verdict in {Verdict.APPROVED, Verdict.LEFT}
    ]


def _readable(home: AgentHome) -> Iterator[KnownJob]:
    for name in home.job_names():
        with contextlib.suppress(ApprovalError):  # a damaged job was told of elsewhere, and vouches for nothing
            yield known_job(home, name)
