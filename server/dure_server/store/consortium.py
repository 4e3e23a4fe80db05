"""Whose store this is: one row."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from dure_server.store.errors import StoreConflictError, UnknownRowError
from dure_server.store.tables import Consortium


class Consortia:
    """The one consortium of this store."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._session, self._now = session, now

    def create(self, name: str, root_fingerprint: str) -> Consortium:
        """Write the row, once. Raises StoreConflictError if the store has an owner already."""
        if self._session.get(Consortium, 1) is not None:
            raise StoreConflictError("this store belongs to a consortium already: name another store, or another home")
        row = Consortium(id=1, name=name, root_fingerprint=root_fingerprint, created_at=self._now)
        self._session.add(row)
        self._session.flush()
        return row

    def get(self) -> Consortium:
        """The consortium. Raises UnknownRowError before `dure-server init`."""
        row = self._session.scalars(select(Consortium)).first()
        if row is None:
            raise UnknownRowError("the store names no consortium: run `dure-server init` first")
        return row
