"""What an operator does about firms: invite, approve, revoke. Each act is one transaction and one audit event."""

import secrets
from collections.abc import Callable
from datetime import timedelta

from dure_protocols.errors import IdentityError
from dure_protocols.identity import check_firm_name, grouped, same_fingerprint
from dure_protocols.invitation import INVITATION_ID_BYTES, SECRET_BYTES, Invitation, secret_hash
from dure_server.store import Store, StoreConflictError
from dure_server.store.tables import Firm

DEFAULT_INVITATION_LIFE = timedelta(days=7)
MAX_INVITATION_LIFE = timedelta(days=90)
RandomBytes = Callable[[int], bytes]


class Operator:
    """An operator's acts. `actor` goes into the audit log."""

    def __init__(
        self, store: Store, enrolment_url: str, actor: str, random_bytes: RandomBytes = secrets.token_bytes
    ) -> None:
        self._store = store
        self._enrolment_url = enrolment_url
        self._actor = actor
        self._random_bytes = random_bytes

    def invite(self, firm: str, life: timedelta = DEFAULT_INVITATION_LIFE) -> Invitation:
        """Invite a firm; earlier unused invitations of it are withdrawn. The result holds the only copy of the secret.

        Raises IdentityError for an impossible name, StoreConflictError for a firm that has joined already.
        """
        check_firm_name(firm)
        if not timedelta(minutes=1) <= life <= MAX_INVITATION_LIFE:
            raise StoreConflictError(f"an invitation lives between a minute and {MAX_INVITATION_LIFE.days} days")
        with self._store.transaction() as tx:
            consortium = tx.consortium.get()
            invitation = Invitation(
                invitation_id=self._random_bytes(INVITATION_ID_BYTES).hex(),
                consortium=consortium.name,
                firm=firm,
                enrolment_url=self._enrolment_url,
                root_fingerprint=consortium.root_fingerprint,
                expires_at=tx.now + life,
                secret=self._random_bytes(SECRET_BYTES),
            )
            tx.firms.invite(firm)
            kept = secret_hash(invitation.invitation_id, invitation.secret)
            tx.invitations.add(invitation.invitation_id, firm, kept, invitation.expires_at)
            detail = {"invitation": invitation.invitation_id, "expires_at": invitation.expires_at.isoformat()}
            tx.audit.append(self._actor, "firm.invite", firm, detail)
        return invitation

    def approve(self, firm: str, fingerprint: str) -> Firm:
        """Approve a firm whose identity key has this fingerprint, as compared with the firm's people over another way.

        The comparison is made in the transaction that approves: a firm that joined anew in between is not approved.
        Raises UnknownRowError, StoreConflictError (it has not joined), IdentityError (another fingerprint).
        """
        with self._store.transaction() as tx:
            row = tx.firms.lock(firm)
            if row.identity_fingerprint is not None and not same_fingerprint(row.identity_fingerprint, fingerprint):
                raise IdentityError(
                    f"{firm} joined with the key {grouped(row.identity_fingerprint)}, not the one given. "
                    "Compare all 64 digits with what `dure-agent status` prints at the firm; if they differ, somebody "
                    f"else used the invitation: run `dure-server revoke {firm}`"
                )
            row = tx.firms.approve(firm)
            tx.audit.append(self._actor, "firm.approve", firm, {"identity": row.identity_fingerprint})
        return row

    def revoke(self, firm: str) -> Firm:
        """Shut a firm out: its certificates and open invitations are worth nothing from its next request on."""
        with self._store.transaction() as tx:
            row = tx.firms.revoke(firm)
            tx.certificates.revoke_all(firm)
            tx.invitations.withdraw(firm)
            tx.audit.append(self._actor, "firm.revoke", firm, {"identity": row.identity_fingerprint})
        return row
