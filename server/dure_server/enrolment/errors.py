"""What may go wrong while a firm joins. Each text says what the firm's people should do.

ProblemError
└── EnrolmentError
    ├── UnknownInvitationError   no such invitation, or another secret: on purpose the same answer
    ├── SpentInvitationError     used with other keys, or withdrawn
    ├── ExpiredInvitationError
    ├── WrongFirmError           the request names another firm than the invitation
    ├── TakenIdentityError       another firm joined with this identity key
    ├── BadRequestError          the signing request or the proof is not what it must be
    ├── RevokedError             the firm was shut out
    ├── UnknownCertificateError
    ├── NotApprovedError         the operator has not approved the firm
    ├── UnknownModelPackageError the registry offers no such package
    └── TooManyRequestsError
"""

from dure_server.problems import ProblemError


class EnrolmentError(ProblemError):
    """The firm cannot join like this."""

    title = "The firm cannot join"


class UnknownInvitationError(EnrolmentError):
    """No such invitation, or the secret is another's. One answer for both, so that ids cannot be tried out."""

    status, code = 403, "unknown-invitation"


class SpentInvitationError(EnrolmentError):
    """The invitation was used with other keys, or a newer one took its place."""

    status, code = 409, "spent-invitation"


class ExpiredInvitationError(EnrolmentError):
    """The invitation's time is over."""

    status, code = 410, "expired-invitation"


class WrongFirmError(EnrolmentError):
    """The request names another firm than the invitation."""

    status, code = 403, "wrong-firm"


class TakenIdentityError(EnrolmentError):
    """Another firm has this identity key."""

    status, code = 409, "taken-identity"


class BadRequestError(EnrolmentError):
    """The signing request or the proof of possession is not what it must be."""

    status, code = 400, "bad-request"


class RevokedError(EnrolmentError):
    """The firm was shut out after it joined."""

    status, code = 403, "revoked"


class UnknownCertificateError(EnrolmentError):
    """No certificate of this fingerprint was issued."""

    status, code, title = 404, "unknown-certificate", "The certificate is unknown"


class NotApprovedError(EnrolmentError):
    """The operator has not approved the firm (yet)."""

    status, code = 403, "not-approved"


class UnknownModelPackageError(EnrolmentError):
    """The consortium's registry offers no package of that digest."""

    status, code = 404, "unknown-model-package"


class TooManyRequestsError(EnrolmentError):
    """One address asks too often."""

    status, code, title = 429, "too-many-requests", "Too many requests"
