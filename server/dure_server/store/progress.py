"""Where each job is right now: one row a job, written over."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from dure_server.store.tables import Progress


class ProgressBoard:
    """Rows of `progress`, written by the one coordinator of a job, read by the console."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._session, self._now = session, now

    def set(
        self,
        job: str,
        phase: str,
        sentence: str,
        *,
        round_number: int | None = None,
        attempt: int | None = None,
        members: Sequence[str] = (),
        waiting_for: Sequence[str] = (),
    ) -> Progress:
        """Say where a job is. `sentence` tells a person why we wait, or what is being done."""
        row = self._session.get(Progress, job)
        if row is None:
            row = Progress(job=job)
            self._session.add(row)
        row.phase, row.sentence, row.updated_at = phase, sentence, self._now
        row.round_number, row.attempt = round_number, attempt
        row.members, row.waiting_for = sorted(members), sorted(waiting_for)
        self._session.flush()
        return row

    def get(self, job: str) -> Progress | None:
        """Where a job is, or None before its coordinator said anything."""
        return self._session.get(Progress, job)
