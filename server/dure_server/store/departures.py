"""Firms that left a job or the consortium, with what they signed and what they got for it."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from dure_server.store.tables import Departure


class Departures:
    """Rows of `departures`. An empty job is the consortium."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._session, self._now = session, now

    def find(self, firm: str, job: str, identity: str) -> Departure | None:
        """What a firm said with this identity key (fingerprint), or None."""
        return self._session.get(Departure, (firm, job, identity))

    def add(self, firm: str, job: str, identity: str, statement: bytes, receipt: bytes) -> Departure:
        """Keep a statement and its receipt."""
        row = Departure(firm=firm, job=job, identity=identity, at=self._now, statement=statement, receipt=receipt)
        self._session.add(row)
        self._session.flush()
        return row

    def all(self) -> list[Departure]:
        """Every departure, in order of time."""
        return list(self._session.scalars(select(Departure).order_by(Departure.at, Departure.firm, Departure.job)))

    def from_job(self, job: str, identities: dict[str, str]) -> set[str]:
        """Which firms of a job left it, or the consortium. identities: firm to the fingerprint of its key there."""
        about = select(Departure.firm, Departure.identity).where(Departure.job.in_((job, "")))
        return {row.firm for row in self._session.execute(about) if identities.get(row.firm) == row.identity}
