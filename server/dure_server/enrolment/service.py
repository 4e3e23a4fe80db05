"""What a firm may ask before it is on the link: the root, to join, and how it stands."""

import hmac
import logging

from dure_protocols.certificates import Authority, new_serial, public_key_der, read_certificate, request_public_key
from dure_protocols.enrolment import JoinAnswer, JoinRequest, RootAnswer, StateAnswer, verify_request
from dure_protocols.errors import IdentityError
from dure_protocols.identity import fingerprint
from dure_protocols.invitation import secret_hash
from dure_protocols.model_package import PublishedModels
from dure_server.enrolment.errors import (
    BadRequestError,
    ExpiredInvitationError,
    NotApprovedError,
    RevokedError,
    SpentInvitationError,
    TakenIdentityError,
    UnknownCertificateError,
    UnknownInvitationError,
    UnknownModelPackageError,
    WrongFirmError,
)
from dure_server.models import ModelRegistry, RegistryError
from dure_server.store import FirmStatus, Store, Transaction
from dure_server.store.tables import Invitation

logger = logging.getLogger(__name__)


class EnrolmentService:
    """Joins firms. Methods may be called from any thread."""

    def __init__(self, store: Store, authority: Authority, link_port: int, models: ModelRegistry | None = None) -> None:
        """`models`: the consortium's model packages; None: this server offers none."""
        self._models = models
        self._store = store
        self._authority = authority
        self._link_port = link_port

    def root(self) -> RootAnswer:
        """The consortium's root certificate, for anybody: its fingerprint makes it worth something, not its sender."""
        return RootAnswer(
            consortium=self._authority.consortium, certificate=self._authority.certificate_pem.decode("ascii")
        )

    def join(self, request: JoinRequest) -> JoinAnswer:
        """Let a firm in, up to the operator's approval. Raises an EnrolmentError.

        (1) The signing request is signed by its own key, and the whole request by the identity key it carries.
        (2) The invitation exists and the secret is its secret; found out in constant time, answered alike.
        (3) The request names the invitation's firm.
        (4) If the invitation was used: the same two keys get the same certificate again (the first answer was lost),
            any others nothing.
        (5) It was not withdrawn and has not expired.
        (6) No other firm has this identity key.
        Then the certificate is issued *on the invitation's firm*, and the invitation is spent, in one transaction.
        """
        # (1)
        try:
            tls_key = public_key_der(request_public_key(request.signing_request.encode()))
            verify_request(request)
        except IdentityError as error:
            raise BadRequestError(str(error)) from error
        with self._store.transaction() as tx:
            invitation = self._invitation(tx, request)  # (2)
            if invitation.firm != request.firm:  # (3)
                raise WrongFirmError(f"this invitation is not for {request.firm}; ask the operator for one that is")
            if invitation.used_at is not None:  # (4)
                return self._same_answer(tx, invitation, request, tls_key)
            if invitation.withdrawn_at is not None:  # (5)
                raise SpentInvitationError(
                    "this invitation was withdrawn; use the newest one, or ask the operator for it"
                )
            if tx.now >= invitation.expires_at:
                raise ExpiredInvitationError(
                    f"this invitation expired at {invitation.expires_at:%Y-%m-%d %H:%M} UTC; "
                    "ask the operator for a new one"
                )
            self._check_identity_is_free(tx, request)  # (6)
            return self._let_in(tx, invitation, request)

    def state(self, certificate_fingerprint: str) -> StateAnswer:
        """How the firm of a certificate stands. Raises UnknownCertificateError.

        Whoever knows the fingerprint may ask: it is known to the firm and the server only (TLS 1.3 encrypts client
        certificates), and the answer tells nothing that the certificate does not, but for the status.
        """
        with self._store.reading() as tx:
            certificate = tx.certificates.find(certificate_fingerprint)
            if certificate is None:
                raise UnknownCertificateError("this consortium issued no such certificate: run `dure-agent join` again")
            firm = tx.firms.get(certificate.firm)
            return StateAnswer(
                consortium=self._authority.consortium,
                firm=firm.name,
                status=firm.status.value,
                identity_fingerprint=firm.identity_fingerprint,
                not_after=certificate.not_after,
                certificate_revoked_at=certificate.revoked_at,
            )

    def models(self, certificate_fingerprint: str) -> PublishedModels:
        """What the registry offers. Raises as `model_package`."""
        self._check_member(certificate_fingerprint)
        return PublishedModels(models=()) if self._models is None else self._models.offer()

    def model_package(self, certificate_fingerprint: str, digest: str) -> bytes:
        """One package's file, for an approved firm, which proves itself as in `state`.

        Raises UnknownCertificateError, RevokedError, NotApprovedError, UnknownModelPackageError.
        """
        self._check_member(certificate_fingerprint)
        try:
            if self._models is not None:
                return self._models.read(digest)
        except RegistryError as error:
            raise UnknownModelPackageError(str(error)) from error
        raise UnknownModelPackageError("this server offers no model packages")

    def _check_member(self, certificate_fingerprint: str) -> None:
        state = self.state(certificate_fingerprint)
        if state.certificate_revoked_at is not None:
            raise RevokedError("this firm's certificate was revoked; ask the operator for a new invitation")
        if state.status != FirmStatus.APPROVED.value:
            raise NotApprovedError("only firms that the operator has approved may fetch model packages")

    @staticmethod
    def _invitation(tx: Transaction, request: JoinRequest) -> Invitation:
        invitation = tx.invitations.lock(request.invitation_id)
        given = secret_hash(request.invitation_id, bytes.fromhex(request.secret))
        kept = invitation.secret_hash if invitation is not None else bytes(len(given))
        if not hmac.compare_digest(given, kept) or invitation is None:
            logger.warning("a request to join as %s came with an unknown invitation or a wrong secret", request.firm)
            raise UnknownInvitationError("the server does not know this invitation; ask the operator for a new one")
        return invitation

    def _same_answer(self, tx: Transaction, invitation: Invitation, request: JoinRequest, tls_key: bytes) -> JoinAnswer:
        certificate = tx.certificates.find(invitation.certificate or "")
        firm = tx.firms.get(invitation.firm)
        same_keys = (
            certificate is not None
            and read_certificate(certificate.pem).public_key_der == tls_key
            and firm.identity_key == bytes.fromhex(request.identity_key)
        )
        if certificate is None or not same_keys:
            raise SpentInvitationError(
                "this invitation was used already, with other keys. If that was not you, tell the operator at once: "
                f"`dure-server revoke {invitation.firm}`, then a new invitation"
            )
        if certificate.revoked_at is not None:
            raise RevokedError("this firm's certificate was revoked; ask the operator for a new invitation")
        return self._answer(invitation.firm, certificate.pem)

    @staticmethod
    def _check_identity_is_free(tx: Transaction, request: JoinRequest) -> None:
        other = tx.firms.with_identity(fingerprint(bytes.fromhex(request.identity_key)))
        if other is not None and other.name != request.firm:
            raise TakenIdentityError(
                "another firm joined with this identity key: every firm makes its own, in its own home"
            )

    def _let_in(self, tx: Transaction, invitation: Invitation, request: JoinRequest) -> JoinAnswer:
        pem = self._authority.issue_client(
            invitation.firm, request.signing_request.encode(), tx.now, serial=new_serial()
        )
        facts = read_certificate(pem)
        firm = tx.firms.join(invitation.firm, bytes.fromhex(request.identity_key), request.agent_version)
        tx.certificates.add(facts, pem)
        tx.invitations.use(invitation, facts.fingerprint)
        detail = {"identity": firm.identity_fingerprint, "certificate": facts.fingerprint, "invitation": invitation.id}
        tx.audit.append(f"firm:{firm.name}", "firm.join", firm.name, detail)
        return self._answer(firm.name, pem)

    def _answer(self, firm: str, pem: bytes) -> JoinAnswer:
        return JoinAnswer(
            consortium=self._authority.consortium, firm=firm, certificate=pem.decode("ascii"), link_port=self._link_port
        )
