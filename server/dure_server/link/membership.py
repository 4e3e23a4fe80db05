"""What the link asks the store about firms: may this one speak, a new certificate, who is here, who leaves."""

from collections.abc import Iterator

from dure_protocols.certificates import Authority, new_serial, read_certificate
from dure_protocols.errors import IdentityError
from dure_protocols.identity import fingerprint
from dure_protocols.job import JobFile
from dure_protocols.leaving import Leave, LeaveReceipt, Part, runs_of
from dure_server.store.database import Store, Transaction
from dure_server.store.tables import FirmStatus, RoundState


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

    def admit_leaver(self, firm: str, certificate_fingerprint: str) -> None:
        """As `admit`, but for a firm that has left, too: it may ask for its receipt again."""
        with self._store.reading() as transaction:
            certificate = transaction.certificates.find(certificate_fingerprint)
            owner = transaction.firms.find(firm)
            if certificate is not None and certificate.firm == firm and owner is not None:
                is_its_own = certificate.issued_at >= (owner.joined_at or certificate.issued_at)
                if owner.status is FirmStatus.LEFT and is_its_own:
                    return
        self.admit(firm, certificate_fingerprint)

    def leave(self, firm: str, statement: bytes) -> bytes:
        """Record that a firm leaves, and give it a receipt; the same again gets the first one again.

        (1) The statement is about this consortium and this firm. (2) The firm's identity key signed it. (3) A job that
        it names is one, by digest, and the firm is in it. Who leaves the consortium is out of it, certificates and all.
        Raises MessageError, IdentityError.
        """
        leave = Leave.decode(statement)
        with self._store.transaction() as at:
            if (leave.consortium, leave.firm) != (at.consortium.get().name, firm):  # (1)
                raise IdentityError("this statement of leaving is another firm's, or about another consortium")
            key = at.firms.get(firm).identity_key or b""
            leave.check(key)  # (2)
            known = at.departures.find(firm, leave.job, fingerprint(key))
            if known is not None:
                return known.receipt
            parts = tuple(_parts(at, leave, key))  # (3)
            receipt = LeaveReceipt.make(leave, int(at.now.timestamp()), parts, self._authority).encode()
            at.departures.add(firm, leave.job, fingerprint(key), statement, receipt)
            if leave.is_about_consortium:
                at.firms.leave(firm)
                at.certificates.revoke_all(firm)
                at.invitations.withdraw(firm)
            detail: dict[str, str | int | None] = {
                "identity": fingerprint(key),
                "sums": sum(part.num_sums for part in parts),
            }
            at.audit.append(f"firm:{firm}", "firm.leave", leave.job or firm, detail)
        return receipt

    def presence(self, firm: str, connected: bool, agent_version: str) -> None:
        """Note that a firm's agent was here just now."""
        with self._store.transaction() as transaction:
            transaction.firms.seen(firm, agent_version if connected else None)

    def refused(self, firm: str, agent_version: str, why: str) -> None:
        """Note that a firm's agent was refused for its version, for the operator to see until it connects."""
        with self._store.transaction() as transaction:
            transaction.firms.refused(firm, agent_version, why)


def _parts(at: Transaction, leave: Leave, key: bytes) -> Iterator[Part]:
    """In which published sums the firm stands, for each job that it leaves. Raises IdentityError."""
    wanted = [row for row in at.jobs.all() if leave.is_about_consortium or row.id == leave.job]
    for row in sorted(wanted, key=lambda row: row.id):
        job = JobFile.from_bytes(row.body)
        if job.identities().get(leave.firm) != key or (leave.job and row.digest != leave.job_digest.hex()):
            continue
        rounds = at.rounds.of(row.id)
        summed = (each.number for each in rounds if each.state is RoundState.FINISHED and leave.firm in each.summed)
        yield Part(row.id, bytes.fromhex(row.digest), runs_of(summed))
        if leave.job:
            return
    if leave.job:
        raise IdentityError(f"there is no job {leave.job!r} of this digest with this firm in it")
