"""Client certificates that the root issued, and the one question the link asks of them."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from dure_protocols.certificates import CertificateFacts
from dure_protocols.errors import IdentityError
from dure_server.store.tables import Certificate, Firm, FirmStatus


class Certificates:
    """Rows of `certificates`."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._session, self._now = session, now

    def add(self, facts: CertificateFacts, pem: bytes) -> Certificate:
        """Keep a certificate that was issued for firm `facts.name`."""
        row = Certificate(
            fingerprint=facts.fingerprint,
            serial=f"{facts.serial:x}",
            firm=facts.name,
            pem=pem,
            issued_at=self._now,
            not_after=facts.not_after,
        )
        self._session.add(row)
        self._session.flush()
        return row

    def find(self, fingerprint: str) -> Certificate | None:
        """A certificate by the SHA-256 of its DER, or None."""
        return self._session.get(Certificate, fingerprint)

    def of(self, firm: str) -> list[Certificate]:
        """A firm's certificates, newest first."""
        mine = select(Certificate).where(Certificate.firm == firm).order_by(Certificate.issued_at.desc())
        return list(self._session.scalars(mine))

    def admit(self, fingerprint: str) -> Firm:
        """The firm that may use the link with this certificate *now*. Asked at every request: revocation is immediate.

        (1) The root issued the certificate and it is in this store. (2) It has not expired. (3) It was not revoked.
        (4) The firm is approved. Raises IdentityError with a reason that the firm's own people may read.
        """
        found = self._session.execute(
            select(Certificate.not_after, Certificate.revoked_at, Firm)
            .join(Firm, Firm.name == Certificate.firm)
            .where(Certificate.fingerprint == fingerprint)
        ).one_or_none()
        if found is None:  # (1)
            raise IdentityError("this certificate is unknown to the consortium; ask the operator for an invitation")
        not_after, revoked_at, firm = found
        if self._now > not_after:  # (2)
            raise IdentityError(f"the certificate expired at {not_after:%Y-%m-%d %H:%M} UTC; ask for an invitation")
        if revoked_at is not None:  # (3)
            raise IdentityError("this certificate was revoked; talk to the consortium's operator")
        if firm.status is not FirmStatus.APPROVED:  # (4)
            raise IdentityError(f"{firm.name} is {firm.status.value}, not approved; talk to the consortium's operator")
        return firm

    def admitted(self) -> frozenset[tuple[str, str]]:
        """(firm, fingerprint) of every certificate that `admit` lets pass now; one question, however many."""
        usable = (
            select(Certificate.firm, Certificate.fingerprint)
            .join(Firm, Firm.name == Certificate.firm)
            .where(
                Certificate.revoked_at.is_(None),
                Certificate.not_after >= self._now,
                Firm.status == FirmStatus.APPROVED,
            )
        )
        return frozenset((row.firm, row.fingerprint) for row in self._session.execute(usable))

    def revoke_all(self, firm: str) -> None:
        """Revoke every certificate of a firm."""
        for row in self.of(firm):
            row.revoked_at = row.revoked_at or self._now
        self._session.flush()
