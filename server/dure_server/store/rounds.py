"""Attempts at rounds. A round is finished at most once, and what is finished never changes."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dure_server.store.errors import StoreConflictError, UnknownRowError
from dure_server.store.tables import Round, RoundState


class Rounds:
    """Rows of `rounds`, written by the one coordinator of a job."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._session, self._now = session, now

    def reserve(self, job: str, number: int) -> int:
        """Take an attempt's number, before any firm is invited to it, that no attempt at this round has had.

        One reserved attempt stands at a time: one that too few firms joined makes place for the next.
        """
        attempt = self.last_attempt(job, number) + 1
        for row in self.of(job, number):
            if row.state is RoundState.RUNNING and not row.members:
                self._session.delete(row)
        self._session.flush()
        self.begin(job, number, attempt, [])
        return attempt

    def begin(self, job: str, number: int, attempt: int, members: Sequence[str], epoch: int = 0) -> Round:
        """Start an attempt with the keys of an epoch, or go on with it after a crash.

        Raises StoreConflictError if the round is over.
        """
        finished = self.finished(job, number)
        if finished is not None:
            raise StoreConflictError(f"round {number} of job {job} was finished at attempt {finished.attempt}")
        row = self._session.get(Round, (job, number, attempt))
        if row is not None and row.state is not RoundState.RUNNING:
            raise StoreConflictError(
                f"attempt {attempt} at round {number} of job {job} is {row.state.value}; take the next one"
            )
        if row is None:
            row = Round(
                job=job, number=number, attempt=attempt, state=RoundState.RUNNING, reason="", metrics={}, seconds={}
            )
            row.bytes_up, row.bytes_down, row.started_at = 0, 0, self._now
            self._session.add(row)
        row.members, row.epoch = sorted(members), epoch
        self._session.flush()
        return row

    def settle(self, job: str, number: int, attempt: int, survivors: Sequence[str]) -> Round:
        """Fix whose sum an attempt opens, before anybody is asked to agree. Another set raises StoreConflictError."""
        row = self._attempt(job, number, attempt)
        if row.survivors is not None and row.survivors != sorted(survivors):
            raise StoreConflictError(
                f"attempt {attempt} at round {number} of job {job} is to open {', '.join(row.survivors)} and no others"
            )
        row.survivors = sorted(survivors)
        self._session.flush()
        return row

    def finish(
        self,
        job: str,
        number: int,
        attempt: int,
        *,
        count: float,
        metrics: Mapping[str, float],
        model_digest: str,
        sum_digest: str,
        seconds: Mapping[str, float] | None = None,
        bytes_up: int = 0,
        bytes_down: int = 0,
        note: str = "",
    ) -> Round:
        """Keep a round's outcome. Telling it again after a crash is fine; telling another raises StoreConflictError."""
        row = self._attempt(job, number, attempt)
        if row.state is RoundState.FINISHED:
            if (row.model_digest, row.sum_digest) != (model_digest, sum_digest):
                raise StoreConflictError(
                    f"round {number} of job {job} was finished with another sum; nothing was changed"
                )
            return row
        if row.state is RoundState.ABANDONED or self.finished(job, number) is not None:
            raise StoreConflictError(f"attempt {attempt} at round {number} of job {job} is over; it cannot be finished")
        row.state, row.finished_at = RoundState.FINISHED, self._now
        row.count, row.metrics = count, dict(metrics)
        row.model_digest, row.sum_digest = model_digest, sum_digest
        row.bytes_up, row.bytes_down, row.seconds = bytes_up, bytes_down, dict(seconds or {})
        row.reason = note
        self._session.flush()
        return row

    def abandon(self, job: str, number: int, attempt: int, reason: str) -> Round:
        """Give an attempt up. A finished attempt stays finished: StoreConflictError."""
        row = self._attempt(job, number, attempt)
        if row.state is RoundState.FINISHED:
            raise StoreConflictError(f"round {number} of job {job} is finished; it cannot be abandoned")
        row.state, row.reason, row.finished_at = RoundState.ABANDONED, reason, self._now
        self._session.flush()
        return row

    def finished(self, job: str, number: int) -> Round | None:
        """The finished attempt at a round, or None."""
        one = select(Round).where(Round.job == job, Round.number == number, Round.state == RoundState.FINISHED)
        return self._session.scalars(one).first()

    def last_finished(self, job: str) -> Round | None:
        """The finished attempt of the highest round: where a restarted coordinator goes on. None before the first."""
        done = select(Round).where(Round.job == job, Round.state == RoundState.FINISHED)
        return self._session.scalars(done.order_by(Round.number.desc()).limit(1)).first()

    def last_attempt(self, job: str, number: int) -> int:
        """The highest attempt at a round that was ever begun; 0 if none was. Attempts count from 1."""
        highest = select(func.max(Round.attempt)).where(Round.job == job, Round.number == number)
        return self._session.scalar(highest) or 0

    def of(self, job: str, number: int | None = None) -> list[Round]:
        """Every attempt, in order; those at one round, if it is named."""
        mine = select(Round).where(Round.job == job).order_by(Round.number, Round.attempt)
        return list(self._session.scalars(mine if number is None else mine.where(Round.number == number)))

    def _attempt(self, job: str, number: int, attempt: int) -> Round:
        row = self._session.get(Round, (job, number, attempt))
        if row is None:
            raise UnknownRowError(f"attempt {attempt} at round {number} of job {job} was never begun")
        return row
