"""An invitation as a text that people hand over: a line to read, and one token.

    Dure invitation for firm-a to the consortium Millers, valid until 2026-03-08 09:30 UTC. It works once; …
    dure1_AAAAIGY5…Rk.

The token is URL-safe base64 of the canonical fields and a checksum over them; the dot ends it. Mail programs may
wrap it and put text around it; a token cut short or changed says so. The checksum guards against accidents only: what
makes an invitation genuine is that its secret is known to the server whose root has the fingerprint that the person
was told.
"""

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

from dure_protocols.errors import IdentityError, MessageError
from dure_protocols.identity import check_firm_name, is_plain
from dure_protocols.wire import Reader, Writer, digest

SECRET_BYTES = 32
INVITATION_ID_BYTES = 16
MAX_INVITATION_CHARACTERS = 8192
_MARK = "dure1_"
_TOKEN = re.compile(rf"{_MARK}([A-Za-z0-9_\-\s]*)(\.?)")
_CHECKSUM_BYTES = 8
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_SERVER_HOST = re.compile(r"[a-z0-9._:-]+")


class InvitationError(IdentityError):
    """An invitation is damaged or malformed; the text says what to do."""


@dataclass(frozen=True)
class Invitation:
    """What a firm needs in order to join. `repr` never shows the secret."""

    invitation_id: str
    """Public name of the invitation, 32 hex digits; the server finds it by this and never by its secret."""
    consortium: str
    firm: str
    enrolment_url: str
    """https://host:port of the server, without a path."""
    root_fingerprint: str
    """SHA-256 of the consortium root's DER, 64 hex digits."""
    expires_at: datetime
    secret: bytes = field(repr=False)
    """32 random bytes. Whoever holds them may join as the firm, once."""

    def __post_init__(self) -> None:
        check_firm_name(self.firm)
        if not re.fullmatch(r"[0-9a-f]{32}", self.invitation_id):
            raise InvitationError("the invitation's id is malformed")
        if not _FINGERPRINT.fullmatch(self.root_fingerprint):
            raise InvitationError("the invitation's root fingerprint is malformed")
        if len(self.secret) != SECRET_BYTES:
            raise InvitationError("the invitation's secret is malformed")
        if self.expires_at.tzinfo is None:
            raise InvitationError("the invitation's expiry has no time zone")
        if not 1 <= len(self.consortium) <= 64 or not is_plain(self.consortium):
            raise InvitationError("the invitation's consortium name is malformed")
        server_of(self.enrolment_url)

    @property
    def server_host(self) -> str:
        """Host name or address of the server."""
        return server_of(self.enrolment_url)[0]

    @property
    def enrolment_port(self) -> int:
        """Port of the enrolment API."""
        return server_of(self.enrolment_url)[1]

    def to_text(self) -> str:
        """The text to hand over. It holds the secret."""
        fields = (
            Writer()
            .fixed(bytes.fromhex(self.invitation_id), INVITATION_ID_BYTES)
            .text(self.consortium)
            .text(self.firm)
            .text(self.enrolment_url)
            .fixed(bytes.fromhex(self.root_fingerprint), 32)
            .u64(int(self.expires_at.timestamp()))
            .fixed(self.secret, SECRET_BYTES)
        )
        body = bytes(fields)
        token = base64.urlsafe_b64encode(body + _checksum(body)).rstrip(b"=").decode()
        until = self.expires_at.astimezone(UTC)
        return (
            f"Dure invitation for {self.firm} to the consortium {self.consortium}, "
            f"valid until {until:%Y-%m-%d %H:%M} UTC. It works once; keep it secret.\n{_MARK}{token}.\n"
        )


def read_invitation(text: str) -> Invitation:
    """Read an invitation out of a text. Raises InvitationError, which never quotes the text.

    (1) One token is there. (2) It is whole. (3) Its checksum is right. (4) Its fields are what they must be.
    """
    if len(text) > MAX_INVITATION_CHARACTERS:
        raise InvitationError(
            f"the invitation has over {MAX_INVITATION_CHARACTERS} characters; name the invitation file"
        )
    # (1)
    found = _TOKEN.findall(text)
    if len(found) != 1:
        what = "holds no invitation" if not found else f"holds {len(found)} invitations, one was expected"
        raise InvitationError(f"the text {what}: look for the line that starts with {_MARK}")
    characters, end = found[0]
    # (2)
    if not end:
        raise InvitationError("the invitation is cut short: its token must end with a dot; copy the whole file again")
    packed = re.sub(r"\s", "", characters)
    try:
        content = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
    except (binascii.Error, ValueError) as error:
        raise _altered() from error
    # (3)
    body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if not hmac.compare_digest(checksum, _checksum(body)):
        raise _altered()
    # (4)
    try:
        return _fields(body)
    except InvitationError:
        raise
    except (IdentityError, MessageError, ValueError, OverflowError, OSError) as error:
        raise InvitationError(
            "the invitation was written by another version of Dure; ask the operator for one"
        ) from error


def secret_hash(invitation_id: str, secret: bytes) -> bytes:
    """What the server stores instead of the secret. 32 bytes."""
    return digest("dure/invitation-secret/1", bytes.fromhex(invitation_id), secret)


def server_of(enrolment_url: str) -> tuple[str, int]:
    """Host and port of an enrolment URL. Raises InvitationError unless it is https://host:port and nothing more."""
    try:
        parts = urlsplit(enrolment_url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvitationError("the invitation's server address is malformed") from error
    bracketed = f"[{host}]" if host and ":" in host else host
    if not host or not _SERVER_HOST.fullmatch(host) or not port or enrolment_url != f"https://{bracketed}:{port}":
        raise InvitationError("the invitation's server address is malformed: https://host:port was expected")
    return host, port


def _fields(body: bytes) -> Invitation:
    reader = Reader(body)
    invitation = Invitation(
        invitation_id=reader.fixed(INVITATION_ID_BYTES).hex(),
        consortium=reader.text(256),
        firm=reader.text(63),
        enrolment_url=reader.text(512),
        root_fingerprint=reader.fixed(32).hex(),
        expires_at=datetime.fromtimestamp(reader.u64(), UTC),
        secret=reader.fixed(SECRET_BYTES),
    )
    reader.end()
    return invitation


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"dure1" + body).digest()[:_CHECKSUM_BYTES]


def _altered() -> InvitationError:
    return InvitationError("the invitation was altered or mistyped (its checksum is wrong); copy the whole file again")
