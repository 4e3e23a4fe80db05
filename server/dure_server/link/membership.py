"""What the link asks the store about firms: may this one speak, a new certificate, who is here."""

from dure_protocols.certificates import Authority, new_serial, read_certificate
from dure_protocols.errors import IdentityError
from dure_server.store.database import Store


class StoreMembership:
    """The link's questions, answered from the store. Every method may be called from any thread."""

    def __init__(self, store: Store, authority: Authority) -> None:
        self._store = store
        self._authority = authority

    def admit(self, firm: str, certificate_fingerprint: str) -> None:
        """Raise IdentityError, with a text for the firm's people, unless it may use the link now."""
        with self._store.reading() as transaction:
            owner = transaction.certificates.admit(certificate_fingerprint).name
        if owner != firm:
            raise IdentityError("this certificate was issued to another firm; talk to the consortium's operator")

    def admitted(self) -> frozenset[tuple[str, str]]:
        """(firm, fingerprint) of every certificate that may be used now."""
        with self._store.reading() as transaction:
            return transaction.certificates.admitted()

    def renew(self, firm: str, csr_pem: bytes) -> bytes:
        """A new certificate for the firm that the gate has admitted. Raises IdentityError on a bad request."""
        with self._store.transaction() as transaction:
            pem = self._authority.issue_client(firm, csr_pem, transaction.now, serial=new_serial())
            transaction.certificates.add(read_certificate(pem), pem)
            transaction.audit.append(actor=f"firm:{firm}", action="certificate.renew", subject=firm)
        return pem

    def presence(self, firm: str, connected: bool, agent_version: str) -> None:
        """Note that a firm's agent was here just now."""
        with self._store.transaction() as transaction:
            transaction.firms.seen(firm, agent_version if connected else None)

    def refused(self, firm: str, agent_version: str, why: str) -> None:
        """Note that a firm's agent was refused for its version, for the operator to see until it connects."""
        with self._store.transaction() as transaction:
            transaction.firms.refused(firm, agent_version, why)
