"""Who may speak on the link: a consortium's certificate authority, short-lived certificates, and how they are renewed.

One root a consortium. It signs the server's certificate (names and addresses as SANs) and, for each firm, a client
certificate whose common name is the firm's name. A firm makes its key where it stays and sends a signing request; the
*name comes from the invitation*, and nothing in the request but its public key is taken over. Clock, keys and serial
numbers are arguments, so a test spells out a certificate to the byte.

Errors: everything here raises IdentityError.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dure_protocols.errors import IdentityError
from dure_protocols.identity import UNREADABLE, check_firm_name, fingerprint
from dure_protocols.wire import digest

ROOT_DAYS = 3650
SERVER_DAYS = 397
CLIENT_DAYS = 30
SERVER_NAME = "dure-server"
"""Common name of every server certificate; clients check the SANs."""
RENEW_AFTER_SHARE = 2 / 3
"""A certificate is due for renewal once this share of its life is over: ten days are left of thirty."""
CLOCK_SKEW = timedelta(days=1)
"""Certificates start this much before `now`: a site whose clock is hours behind must be able to check a fresh one."""
MAX_PEM_BYTES = 16 * 1024

_UNREADABLE = (*UNREADABLE, x509.InvalidVersion)
"""The same for certificates and requests. Much of it comes late, when a part is looked at."""


def new_tls_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key from the operating system's randomness."""
    return ec.generate_private_key(ec.SECP256R1())


def new_serial() -> int:
    """A fresh certificate serial number: 159 random bits, as RFC 5280 section 4.1.2.2 wants at most 20 octets."""
    return x509.random_serial_number()


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The private key as PKCS #8, for its file of mode 0600 and for nothing else."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_from_pem(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read a P-256 private key file. Raises IdentityError if it is something else."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except UNREADABLE as error:
        raise IdentityError("the TLS key file is not an unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError("the TLS key file holds a key of another kind; an EC P-256 key was expected")
    return key


@dataclass(frozen=True)
class CertificateFacts:
    """What the rest of Dure needs to know of a certificate, read once."""

    name: str
    """The common name: a firm's name in a client certificate."""
    serial: int
    fingerprint: str
    """SHA-256 of the DER, 64 hex digits."""
    not_before: datetime
    not_after: datetime
    public_key_der: bytes = field(repr=False)
    """SubjectPublicKeyInfo, to compare keys across requests and certificates."""

    def is_valid_at(self, now: datetime) -> bool:
        """Whether `now` lies in the certificate's life."""
        return self.not_before <= now <= self.not_after

    @property
    def renew_from(self) -> datetime:
        """From when on a new certificate should be asked for."""
        issued = min(self.not_before + CLOCK_SKEW, self.not_after)
        return issued + (self.not_after - issued) * RENEW_AFTER_SHARE

    def renewal_is_due(self, now: datetime) -> bool:
        """Whether so much of the life is over that a new certificate should be asked for."""
        return now >= self.renew_from


def read_certificate(pem: bytes) -> CertificateFacts:
    """Read one PEM certificate. Raises IdentityError if it is none, or has no single common name."""
    return _facts(_load_certificate(pem))


def server_names(pem: bytes) -> list[str]:
    """The host names and addresses that a server's certificate names. Raises IdentityError if it names none."""
    try:
        names = _load_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise IdentityError("the server's certificate names no host") from error
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def firm_of(pem: bytes) -> str:
    """The firm that a client certificate names. The caller MUST have verified the certificate's chain (TLS does)."""
    return check_firm_name(read_certificate(pem).name)


def certificate_der(pem: bytes) -> bytes:
    """The DER bytes of one PEM certificate; their SHA-256 is its fingerprint."""
    return _load_certificate(pem).public_bytes(serialization.Encoding.DER)


def signing_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A firm's signing request (PEM). Its subject is empty on purpose: the name is not the firm's to choose."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def request_public_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """Check a signing request and return the only thing taken from it.

    (1) It is one PEM request of at most MAX_PEM_BYTES. (2) Its key is EC P-256. (3) It is signed by that key, so the
    sender holds the private half. Subject and extensions are not read: whatever they ask for is not granted.
    """
    # (1)
    if len(csr_pem) > MAX_PEM_BYTES:
        raise IdentityError(f"the signing request has {len(csr_pem)} bytes; at most {MAX_PEM_BYTES} are allowed")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
    except _UNREADABLE as error:
        raise IdentityError("the signing request is not a PEM certificate signing request") from error
    # (2)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError("the signing request carries a key of another kind; an EC P-256 key was expected")
    # (3)
    try:
        is_signed = request.is_signature_valid
    except _UNREADABLE:
        is_signed = False
    if not is_signed:
        raise IdentityError("the signing request is not signed by the key it carries; make the request again")
    return key


def public_key_der(key: ec.EllipticCurvePublicKey) -> bytes:
    """SubjectPublicKeyInfo of a key, to compare with `CertificateFacts.public_key_der`."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


class Authority:
    """A consortium's root: its certificate and its key. The key leaves through `key_pem` only, never through repr."""

    def __init__(self, certificate_pem: bytes, key_pem: bytes) -> None:
        self._certificate = _load_certificate(certificate_pem)
        self._key = key_from_pem(key_pem)
        self.facts = _facts(self._certificate)
        if self.facts.public_key_der != public_key_der(self._key.public_key()):
            raise IdentityError("root certificate and root key do not belong together; restore both from one backup")
        self.certificate_pem = certificate_pem

    @classmethod
    def create(
        cls, consortium: str, now: datetime, *, key: ec.EllipticCurvePrivateKey, serial: int, days: float = ROOT_DAYS
    ) -> "Authority":
        """A new root for a consortium. Its certificate may sign end entities only, no further authorities."""
        name = _common_name(consortium)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _builder(name, name, key.public_key(), now, serial=serial, days=days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, digital_signature=False), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(_pem(certificate), key_to_pem(key))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the root's DER: what a person compares over another way before anything secret is sent."""
        return self.facts.fingerprint

    @property
    def consortium(self) -> str:
        """The consortium's name, from the certificate's subject."""
        return self.facts.name

    def key_pem(self) -> bytes:
        """The root's private key, for its file of mode 0600 and for nothing else."""
        return key_to_pem(self._key)

    def issue_server(
        self,
        key: ec.EllipticCurvePublicKey,
        hosts: Sequence[str],
        now: datetime,
        *,
        serial: int,
        days: float = SERVER_DAYS,
    ) -> bytes:
        """The server's certificate (PEM) for these host names and IP addresses."""
        if not hosts:
            raise IdentityError("a server certificate needs at least one host name or address")
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        builder = self._end_entity(SERVER_NAME, key, now, serial, days=days, usage=usage).add_extension(
            names, critical=False
        )
        return _pem(builder.sign(self._key, hashes.SHA256()))

    def issue_client(
        self, firm: str, csr_pem: bytes, now: datetime, *, serial: int, days: float = CLIENT_DAYS
    ) -> bytes:
        """A firm's client certificate (PEM). `firm` MUST come from the invitation or the old certificate."""
        key = request_public_key(csr_pem)
        builder = self._end_entity(
            check_firm_name(firm), key, now, serial, days=days, usage=ExtendedKeyUsageOID.CLIENT_AUTH
        )
        return _pem(builder.sign(self._key, hashes.SHA256()))

    def countersign(self, label: str, *parts: bytes) -> bytes:
        """The root's signature (DER) on the digest of a label and parts. 32 bytes are never a certificate's body."""
        return self._key.sign(digest(label, *parts), ec.ECDSA(hashes.SHA256()))

    def _end_entity(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        now: datetime,
        serial: int,
        *,
        days: float,
        usage: x509.ObjectIdentifier,
    ) -> x509.CertificateBuilder:
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            _builder(_common_name(name), self._certificate.subject, key, now, serial=serial, days=days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(key_cert_sign=False, digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(issuer, critical=False)
        )

    def __repr__(self) -> str:
        return f"Authority({self.consortium!r}, {self.fingerprint[:16]}…)"


def verify_root_signature(root_der: bytes, signature: bytes, label: str, *parts: bytes) -> None:
    """Check what `Authority.countersign` made. The caller MUST know the root by its fingerprint.

    Raises IdentityError.
    """
    try:
        key = x509.load_der_x509_certificate(root_der).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise IdentityError("the root's key is of another kind; an elliptic-curve key was expected")
        key.verify(signature, digest(label, *parts), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, *UNREADABLE) as error:
        raise IdentityError(f"a signature on {label!r} is not the consortium root's") from error


def check_issued(
    certificate_pem: bytes, root_pem: bytes, firm: str, key: ec.EllipticCurvePublicKey, now: datetime
) -> None:
    """What a firm checks of a certificate it was handed, before it keeps it.

    (1) The pinned root signed it. (2) It is for the firm's own key. (3) It names the firm. (4) It is valid now.
    """
    certificate, root = _load_certificate(certificate_pem), _load_certificate(root_pem)
    try:  # (1)
        certificate.verify_directly_issued_by(root)
    except (*_UNREADABLE, InvalidSignature) as error:
        raise IdentityError("the certificate was not signed by the consortium's root; nothing was kept") from error
    facts = _facts(certificate)
    if facts.public_key_der != public_key_der(key):  # (2)
        raise IdentityError("the certificate is for another key than this firm's; nothing was kept")
    if facts.name != firm:  # (3)
        raise IdentityError(f"the certificate names {facts.name!r}; {firm!r} was expected; nothing was kept")
    if not facts.is_valid_at(now):  # (4)
        raise IdentityError(
            f"the certificate is valid from {facts.not_before:%Y-%m-%d %H:%M} to {facts.not_after:%Y-%m-%d %H:%M} UTC "
            f"and this machine's clock says {now:%Y-%m-%d %H:%M} UTC; set the clock right and try again"
        )


def _load_certificate(pem: bytes) -> x509.Certificate:
    if len(pem) > MAX_PEM_BYTES:
        raise IdentityError(f"a certificate of {len(pem)} bytes came; at most {MAX_PEM_BYTES} are allowed")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except _UNREADABLE as error:
        raise IdentityError("a PEM certificate was expected; what came is none, or is damaged") from error
    if _pem(certificate) != pem:
        # The first certificate is read, and TLS would trust the second as well: a fingerprint says nothing of that one.
        raise IdentityError(
            "one PEM certificate was expected and nothing beside it; more came, or it is laid out oddly"
        )
    return certificate


def _facts(certificate: x509.Certificate) -> CertificateFacts:
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        public = certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except _UNREADABLE as error:
        raise IdentityError("the certificate is damaged, or carries a key of a kind that is not known here") from error
    if len(names) != 1:
        raise IdentityError(f"a certificate with one common name was expected; this one has {len(names)}")
    return CertificateFacts(
        name=str(names[0].value),
        serial=certificate.serial_number,
        fingerprint=fingerprint(certificate.public_bytes(serialization.Encoding.DER)),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        public_key_der=public,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, *, serial: int, days: float
) -> x509.CertificateBuilder:
    start = now.astimezone(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(start - CLOCK_SKEW)
        .not_valid_after(start + timedelta(days=days))
    )


def _common_name(text: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    except ValueError as error:
        raise IdentityError(f"{text!r} cannot be a certificate's name: 1 to 64 characters are allowed") from error


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise IdentityError(f"{host!r} is neither a host name nor an IP address") from error


def _key_usage(*, key_cert_sign: bool, digital_signature: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
