"""Jobs and the states they may pass through."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from dure_protocols.job import JobFile
from dure_server.store.errors import StoreConflictError, UnknownRowError
from dure_server.store.tables import EventKind, Job, JobState
from dure_server.store.timeline import Happening, Timeline

_NEXT = {
    JobState.PROPOSED: {JobState.RUNNING, JobState.STOPPED, JobState.FAILED},
    JobState.RUNNING: {JobState.PAUSED, JobState.FINISHED, JobState.STOPPED, JobState.FAILED},
    JobState.PAUSED: {JobState.RUNNING, JobState.STOPPED, JobState.FAILED},
    # A failed job may be started again once the cause is gone: it goes on from its last finished round.
    JobState.FAILED: {JobState.RUNNING, JobState.STOPPED},
    JobState.FINISHED: set[JobState](),
    JobState.STOPPED: set[JobState](),
}
_ENDED = {JobState.FINISHED, JobState.STOPPED, JobState.FAILED}


class Jobs:
    """Rows of `jobs`."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._session, self._now = session, now

    def propose(self, job_file: JobFile) -> Job:
        """Keep a new job. Proposing the same bytes again returns what is there; other bytes under its id conflict."""
        digest = job_file.digest().hex()
        row = self._session.get(Job, job_file.id)
        if row is not None:
            if row.digest == digest:
                return row
            raise StoreConflictError(
                f"job {job_file.id} exists with another digest: a proposed job never changes, choose a new id"
            )
        row = Job(id=job_file.id, title=job_file.title, digest=digest, body=job_file.to_bytes(), reason="")
        row.num_rounds, row.epoch, row.state, row.operation = job_file.rounds, 0, JobState.PROPOSED, {}
        row.sums_from = 0
        row.created_at = row.changed_at = self._now
        self._session.add(row)
        self._session.flush()
        return row

    def get(self, job: str) -> Job:
        """A job. Raises UnknownRowError naming those that are known."""
        row = self._session.get(Job, job)
        if row is None:
            known = ", ".join(other.id for other in self.all()) or "none yet"
            raise UnknownRowError(f"no job is called {job!r}; known jobs: {known}")
        return row

    def all(self) -> list[Job]:
        """Every job, newest first."""
        return list(self._session.scalars(select(Job).order_by(Job.created_at.desc(), Job.id)))

    def in_state(self, state: JobState) -> list[Job]:
        """The jobs in one state, by name."""
        return list(self._session.scalars(select(Job).where(Job.state == state).order_by(Job.id)))

    def set_state(self, job: str, state: JobState, reason: str = "") -> Job:
        """Move a job on. Setting the state it has keeps it (and takes the new reason). Raises StoreConflictError."""
        row = self._locked(job)
        if state is not row.state and state not in _NEXT[row.state]:
            allowed = ", ".join(sorted(_NEXT[row.state])) or "nothing else"
            raise StoreConflictError(
                f"job {job} is {row.state.value} and cannot become {state.value}; it can become: {allowed}"
            )
        if state is JobState.RUNNING and row.started_at is None:
            row.started_at = self._now
        if state is not row.state:
            Timeline(self._session, self._now).add(job, [Happening(EventKind.STATE, code=state.value)])
        row.ended_at = (row.ended_at if state is row.state else self._now) if state in _ENDED else None
        row.state, row.reason, row.changed_at = state, reason, self._now
        self._session.flush()
        return row

    def set_operation(self, job: str, operation: Mapping[str, float | int | None]) -> Job:
        """Keep how the operator runs a job. Raises StoreConflictError once it is over."""
        row = self._locked(job)
        if row.state in {JobState.FINISHED, JobState.STOPPED}:
            raise StoreConflictError(f"job {job} is {row.state.value}; there is nothing to be run any more")
        row.operation, row.changed_at = dict(operation), self._now
        self._session.flush()
        return row

    def keep_sums_from(self, job: str, number: int) -> None:
        """Note, before it happens, that the sums of rounds before this one are deleted. Never goes back."""
        row = self._locked(job)
        row.sums_from = max(row.sums_from, number)
        self._session.flush()

    def begin_epoch(self, job: str) -> int:
        """Take the number of a new epoch: one that no firm was ever asked for."""
        row = self._locked(job)
        row.epoch += 1
        self._session.flush()
        return row.epoch

    def _locked(self, job: str) -> Job:
        self.get(job)
        return self._session.scalars(
            select(Job).where(Job.id == job).with_for_update().execution_options(populate_existing=True)
        ).one()
