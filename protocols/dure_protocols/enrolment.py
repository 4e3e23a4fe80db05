"""What passes while a firm joins: the request, the answer, and the statement that binds a request's parts together.

JSON over HTTPS (the enrolment API of the console process), because a firm's first step should be readable with everyday
tools. Everything later goes over the link.
"""

from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from dure_protocols.errors import IdentityError
from dure_protocols.identity import Identity, verify

API_PREFIX = "/api/v1/enrolment"
MAX_REQUEST_BYTES = 32 * 1024
MAX_ANSWER_BYTES = 64 * 1024
_LABEL = "dure/enrolment/1"

Hex16 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
Pem = Annotated[str, StringConstraints(max_length=16 * 1024)]
FirmName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class JoinRequest(_Frozen):
    """A firm joins: POST /api/v1/enrolment/join. `repr` hides the secret."""

    invitation_id: Hex16
    secret: Hex32 = Field(repr=False)
    firm: FirmName
    signing_request: Pem
    identity_key: Hex32
    """Raw Ed25519 public key."""
    proof: Hex64
    """Signature by the identity key over `statement`: the sender holds the key, and meant it for this request."""
    agent_version: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z.+-]{1,64}$")]


class JoinAnswer(_Frozen):
    """The certificate, worth nothing until the operator has approved the firm, and where the link is."""

    consortium: str
    firm: FirmName
    certificate: Pem
    link_port: int = Field(ge=1, le=65535)


class RootAnswer(_Frozen):
    """GET /api/v1/enrolment/root. To be trusted only if its fingerprint is the one that a person was told."""

    consortium: str
    certificate: Pem


class StateAnswer(_Frozen):
    """GET /api/v1/enrolment/certificates/{fingerprint}: how the firm of a certificate stands."""

    consortium: str
    firm: FirmName
    status: Annotated[str, StringConstraints(pattern=r"^(invited|joined|approved|revoked)$")]
    identity_fingerprint: Hex32 | None
    not_after: AwareDatetime
    certificate_revoked_at: datetime | None = None


class Problem(BaseModel):
    """An error of the API (RFC 9457, application/problem+json). `detail` is written for a person."""

    model_config = ConfigDict(frozen=True)

    type: str
    """urn:dure:problem:CODE; the code is for programs."""
    title: str
    status: int
    detail: str


def sign_request(identity: Identity, invitation_id: str, firm: str, signing_request: str) -> bytes:
    """The proof that goes into a JoinRequest. 64 bytes."""
    return identity.sign(_LABEL, *_statement(invitation_id, firm, signing_request))


def verify_request(request: JoinRequest) -> None:
    """Check that the identity key of a request made its proof. Raises IdentityError."""
    parts = _statement(request.invitation_id, request.firm, request.signing_request)
    try:
        verify(bytes.fromhex(request.identity_key), bytes.fromhex(request.proof), _LABEL, *parts)
    except IdentityError as error:
        raise IdentityError("the request is not signed by the identity key that it carries") from error


def _statement(invitation_id: str, firm: str, signing_request: str) -> tuple[bytes, bytes, bytes]:
    return bytes.fromhex(invitation_id), firm.encode(), signing_request.encode()
