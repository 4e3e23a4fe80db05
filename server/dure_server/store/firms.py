"""Firms and where they stand: invited → joined → approved, or revoked."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from dure_protocols.identity import check_firm_name, fingerprint
from dure_server.store.errors import StoreConflictError, UnknownRowError
from dure_server.store.tables import Firm, FirmStatus


class Firms:
    """Rows of `firms`. Rules about who may change what live in `enrolment.service`."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._session, self._now = session, now

    def all(self) -> list[Firm]:
        """Every firm, by name."""
        return list(self._session.scalars(select(Firm).order_by(Firm.name)))

    def find(self, name: str) -> Firm | None:
        """A firm, or None."""
        return self._session.get(Firm, name)

    def with_identity(self, identity_fingerprint: str) -> Firm | None:
        """The firm that joined with this identity key, or None."""
        return self._session.scalars(select(Firm).where(Firm.identity_fingerprint == identity_fingerprint)).first()

    def get(self, name: str) -> Firm:
        """A firm. Raises UnknownRowError naming those that are known."""
        row = self.find(name)
        if row is None:
            known = ", ".join(firm.name for firm in self.all()) or "none yet"
            raise UnknownRowError(f"no firm is called {name!r}; known firms: {known}")
        return row

    def lock(self, name: str) -> Firm:
        """A firm, held until the transaction ends (on SQLite the whole store is). Raises UnknownRowError."""
        self.get(name)
        return self._session.scalars(select(Firm).where(Firm.name == name).with_for_update()).one()

    def invite(self, name: str) -> Firm:
        """A new firm, or one that was revoked or has not joined yet; it has to join (again).

        Raises StoreConflictError for a firm that has joined: its keys would be thrown away without anyone's word.
        """
        row = self.find(check_firm_name(name))
        if row is None:
            row = Firm(name=name, status=FirmStatus.INVITED, invited_at=self._now)
            self._session.add(row)
        elif row.status in {FirmStatus.JOINED, FirmStatus.APPROVED}:
            raise StoreConflictError(
                f"{name} has joined already. If it lost its keys, run `dure-server revoke {name}` first, "
                "then invite it again"
            )
        else:
            row.status, row.invited_at = FirmStatus.INVITED, self._now
        self._session.flush()
        return row

    def join(self, name: str, identity_key: bytes, agent_version: str) -> Firm:
        """Keep the keys that a firm joined with; it waits for approval now."""
        row = self.lock(name)
        row.status = FirmStatus.JOINED
        row.identity_key, row.identity_fingerprint = identity_key, fingerprint(identity_key)
        row.agent_version, row.joined_at = agent_version, self._now
        row.approved_at = row.revoked_at = None
        self._session.flush()
        return row

    def approve(self, name: str) -> Firm:
        """Let a firm that has joined use the link. Approving it twice changes nothing."""
        row = self.lock(name)
        if row.status is FirmStatus.APPROVED:
            return row
        if row.status is not FirmStatus.JOINED:
            raise StoreConflictError(
                f"{name} is {row.status.value}; only a firm that has joined can be approved. "
                "Ask the firm to run `dure-agent join` with its invitation"
            )
        row.status, row.approved_at = FirmStatus.APPROVED, self._now
        self._session.flush()
        return row

    def revoke(self, name: str) -> Firm:
        """Shut a firm out. Takes effect at its next request."""
        row = self.lock(name)
        row.status, row.revoked_at, row.connected_since = FirmStatus.REVOKED, self._now, None
        self._session.flush()
        return row

    def leave(self, name: str) -> Firm:
        """A firm is out by its own word. Takes effect at its next request."""
        row = self.lock(name)
        row.status, row.revoked_at, row.connected_since = FirmStatus.LEFT, self._now, None
        self._session.flush()
        return row

    def seen(self, name: str, agent_version: str | None) -> None:
        """The link tells that a firm's agent of this version has connected, or (None) that its connection ended."""
        row = self.get(name)
        row.last_seen_at = self._now
        if agent_version is None:
            row.connected_since = None
        else:
            row.agent_version, row.connected_since, row.link_refusal = agent_version, self._now, None
        self._session.flush()

    def refused(self, name: str, agent_version: str, why: str) -> None:
        """The link tells that it refused a firm's agent of this version, in a sentence for the operator."""
        row = self.get(name)
        row.last_seen_at, row.agent_version, row.link_refusal = self._now, agent_version, why
        self._session.flush()

    def forget_connections(self) -> None:
        """No link is running, so no firm is connected."""
        for row in self.all():
            row.connected_since = None
        self._session.flush()
