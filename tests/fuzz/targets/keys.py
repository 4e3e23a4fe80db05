"""Targets of identity: certificates, signing requests, key files, and invitations."""

import base64
import hashlib
import random
import re
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from dure_protocols.certificates import (
    Authority,
    CertificateFacts,
    certificate_der,
    check_issued,
    key_from_pem,
    key_to_pem,
    public_key_der,
    read_certificate,
    request_public_key,
)
from dure_protocols.errors import IdentityError, MessageError
from dure_protocols.identity import Identity
from dure_protocols.invitation import Invitation, InvitationError, read_invitation
from dure_protocols.wire import Reader, Writer
from dure_server.link.gate import Caller, _identify
from tests.fuzz.mutate import in_pem, inside
from tests.fuzz.target import Target
from tests.protocols.test_invitation import INVITATION

REFUSED = (IdentityError,)
NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
SEEDS = Path(__file__).parent.parent / "seeds"
_PER_BYTE = 24


def fixed_key(number: int) -> ec.EllipticCurvePrivateKey:
    """A P-256 key that is the same in every run. For seeds, and for nothing else."""
    return ec.derive_private_key(number, ec.SECP256R1())


ROOT_KEY, FIRM_KEY = fixed_key(2**200 + 1), fixed_key(2**200 + 2)


def pems(name: str) -> list[bytes]:
    """The texts of a seed file, one PEM each."""
    return re.findall(rb"-----BEGIN.*?-----END[^\n]*\n", (SEEDS / name).read_bytes(), re.DOTALL)


def key_targets() -> Iterator[Target]:
    """One for each decoder of PEM, and one for invitations."""
    certificates, damage = pems("certificates.pem"), (in_pem, in_pem, in_pem)
    root = certificates[0]
    more = [*certificates, root + certificates[1]]
    yield Target("certificate/any", _certificate, REFUSED, more, _PER_BYTE, _pem, mutators=damage)
    yield Target("certificate/client", _identify.__wrapped__, REFUSED, more, _PER_BYTE, check=_caller, mutators=damage)
    yield Target("certificate/issued", lambda pem: _issued(pem, root), REFUSED, more, _PER_BYTE, mutators=damage)
    yield Target("certificate/root", _authority, REFUSED, more, _PER_BYTE, mutators=damage)
    requests = pems("requests.pem")
    yield Target("signing-request", request_public_key, REFUSED, requests, _PER_BYTE, check=_usable, mutators=damage)
    keys = [key_to_pem(ROOT_KEY), Identity.from_seed(bytes(range(32))).to_pem()]
    yield Target("key/tls", key_from_pem, REFUSED, keys, _PER_BYTE, mutators=damage)
    yield Target("key/identity", Identity.from_pem, REFUSED, keys, _PER_BYTE, mutators=damage)
    token = inside(_opened, sealed)
    yield Target(
        "invitation",
        _invitation,
        (InvitationError,),
        [INVITATION.to_text().encode()],
        32,
        check=_check_invitation,
        mutators=(token, _other_fields),
    )


def _certificate(data: bytes) -> bytes:
    read_certificate(data)
    return certificate_der(data)


def _pem(der: bytes) -> bytes:
    text = base64.b64encode(der)
    lines = b"\n".join(text[at : at + 64] for at in range(0, len(text), 64))
    return b"-----BEGIN CERTIFICATE-----\n" + lines + b"\n-----END CERTIFICATE-----\n"


def _caller(caller: Caller) -> None:
    facts: CertificateFacts = caller.certificate
    facts.is_valid_at(NOW)
    facts.renewal_is_due(NOW)


def _issued(data: bytes, root: bytes) -> None:
    check_issued(data, root, "firm-a", FIRM_KEY.public_key(), NOW)


def _authority(data: bytes) -> Authority:
    return Authority(data, key_to_pem(ROOT_KEY))


def _usable(key: ec.EllipticCurvePublicKey) -> None:
    public_key_der(key)


def _invitation(data: bytes) -> Invitation:
    return read_invitation(data.decode(errors="replace"))


def _check_invitation(invitation: Invitation) -> None:
    """It is written as a text that reads the same, and nothing in it acts on a terminal."""
    assert read_invitation(invitation.to_text()) == invitation
    for shown in (invitation.consortium, invitation.firm, invitation.enrolment_url):
        acting = [char for char in shown if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"}]
        assert not acting, f"{shown!r} is shown to people"


def _opened(data: bytes) -> bytes:
    token = re.search(rb"dure1_([A-Za-z0-9_-]+)\.", data)
    if token is None:
        raise ValueError("no token")
    return base64.urlsafe_b64decode(token[1] + b"=" * (-len(token[1]) % 4))[:-8]


def sealed(body: bytes) -> bytes:
    """An invitation's text around these bytes, under a right checksum."""
    checksum = hashlib.sha256(b"dure1" + body).digest()[:8]
    return b"Dure invitation\ndure1_" + base64.urlsafe_b64encode(body + checksum).rstrip(b"=") + b".\n"


_TEXTS = (
    *("", "a", "Firm A", "../x", "a" * 64, "경남", "a\x9b2Jb", "a\u202eb", "a\u2028b", "a\x00b", "\ufeff", "\u200b"),
    *(
        "https://a.example:1",
        "https://[::1]:443",
        "https://[::1%25x]:1",
        "https://a\x9b2J:1",
        "https://a b:1",
        "https://:1",
    ),
    *("https://[v1.x]:1", "https://a:00443", "https://a:1/", "https://é.example:1", "https://[:1", "https://a:٣"),
)
_TIMES = (0, 1, 2**31, 253402300799, 253402300800, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


Numbers = tuple[bytes, bytes, int, bytes]
"""An invitation's id, its root's fingerprint, when it expires, its secret."""


def fields_of(data: bytes) -> tuple[list[str], Numbers]:
    """An invitation's texts (consortium, firm, address) and the rest. Raises ValueError or MessageError."""
    reader = Reader(_opened(data))
    head = reader.fixed(16)
    texts = [reader.text(1 << 12) for _ in range(3)]
    return texts, (head, reader.fixed(32), reader.u64(), reader.fixed(32))


def sealed_fields(texts: list[str], numbers: Numbers) -> bytes:
    """An invitation of these fields, whatever they say, under a right checksum."""
    head, root, expires, secret = numbers
    writer = Writer().fixed(head, 16)
    for text in texts:
        writer.text(text)
    return sealed(bytes(writer.fixed(root, 32).u64(expires).fixed(secret, 32)))


def _other_fields(data: bytes, chance: random.Random) -> bytes:
    """An invitation with other fields, under a right checksum."""
    try:
        texts, (head, root, expires, secret) = fields_of(data)
    except (ValueError, MessageError):
        return data
    if chance.random() < 0.2:
        expires = chance.choice(_TIMES)
    else:
        texts[chance.randrange(3)] = chance.choice(_TEXTS)
    return sealed_fields(texts, (head, root, expires, secret))
