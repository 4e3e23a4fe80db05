"""What firms said to a job."""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from dure_server.store.errors import UnknownRowError
from dure_server.store.tables import Signoff, SignoffState


class Signoffs:
    """Rows of `signoffs`: one a firm of a job."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._session, self._now = session, now

    def ask(self, job: str, firms: Iterable[str]) -> None:
        """Put down the firms whose word is awaited; those that are there already keep theirs."""
        for firm in firms:
            if self._session.get(Signoff, (job, firm)) is None:
                self._session.add(Signoff(job=job, firm=firm, state=SignoffState.AWAITING, changed_at=self._now))
        self._session.flush()

    def set(
        self, job: str, firm: str, state: SignoffState, *, code: str | None = None, signature: bytes | None = None
    ) -> Signoff:
        """Keep a firm's word. Raises UnknownRowError for a firm that was not asked."""
        row = self._session.get(Signoff, (job, firm))
        if row is None:
            raise UnknownRowError(f"{firm} was not asked about job {job}")
        row.state, row.code, row.signature, row.changed_at = state, code, signature, self._now
        self._session.flush()
        return row

    def of(self, job: str) -> list[Signoff]:
        """Every firm's word on a job, by firm."""
        return list(self._session.scalars(select(Signoff).where(Signoff.job == job).order_by(Signoff.firm)))
