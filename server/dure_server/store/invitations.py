"""Invitations: single use, short life, their secrets hashed."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from dure_server.store.tables import Invitation


class Invitations:
    """Rows of `invitations`."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._session, self._now = session, now

    def add(self, invitation_id: str, firm: str, secret_hash: bytes, expires_at: datetime) -> Invitation:
        """Keep a new invitation; earlier ones of the same firm that nobody has used are withdrawn."""
        self.withdraw(firm)
        row = Invitation(
            id=invitation_id, firm=firm, secret_hash=secret_hash, created_at=self._now, expires_at=expires_at
        )
        self._session.add(row)
        self._session.flush()
        return row

    def lock(self, invitation_id: str) -> Invitation | None:
        """An invitation, held until the transaction ends so that two cannot use it at once; None if there is none."""
        return self._session.scalars(select(Invitation).where(Invitation.id == invitation_id).with_for_update()).first()

    def latest(self, firm: str) -> Invitation | None:
        """The newest invitation of a firm."""
        newest = select(Invitation).where(Invitation.firm == firm).order_by(Invitation.created_at.desc()).limit(1)
        return self._session.scalars(newest).first()

    def use(self, row: Invitation, certificate_fingerprint: str) -> None:
        """Spend an invitation on the certificate that was issued on it."""
        row.used_at, row.certificate = self._now, certificate_fingerprint
        self._session.flush()

    def withdraw(self, firm: str) -> None:
        """Make every unused invitation of a firm worthless."""
        unused = select(Invitation).where(
            Invitation.firm == firm, Invitation.used_at.is_(None), Invitation.withdrawn_at.is_(None)
        )
        for row in self._session.scalars(unused):
            row.withdrawn_at = self._now
        self._session.flush()
