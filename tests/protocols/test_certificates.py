"""The consortium's certificate authority, with clock and serials given."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from dure_protocols.certificates import (
    Authority,
    certificate_der,
    check_issued,
    firm_of,
    key_from_pem,
    key_to_pem,
    new_serial,
    new_tls_key,
    read_certificate,
    request_public_key,
    server_names,
    signing_request,
)
from dure_protocols.errors import IdentityError
from dure_protocols.identity import fingerprint

NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
KEY = new_tls_key()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("Millers", NOW, key=new_tls_key(), serial=1)


def _other_csr(**changes: object) -> bytes:
    """A request as somebody else's program might make it."""
    key = changes.get("key", KEY)
    assert isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "firm-b")])
    names = x509.SubjectAlternativeName([x509.DNSName("dure-server")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def test_the_name_comes_from_the_caller_and_nothing_but_the_key_from_the_request(authority: Authority) -> None:
    pem = authority.issue_client("firm-a", _other_csr(), NOW, serial=7)
    certificate = x509.load_pem_x509_certificate(pem)
    assert firm_of(pem) == "firm-a"
    assert b"firm-b" not in certificate_der(pem)
    assert b"dure-server" not in certificate_der(pem)
    assert certificate.public_key() == KEY.public_key()
    assert certificate.serial_number == 7


def test_a_client_certificate_is_for_clients_and_can_sign_nothing(authority: Authority) -> None:
    certificate = x509.load_pem_x509_certificate(authority.issue_client("firm-a", signing_request(KEY), NOW, serial=7))
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [each.dotted_string for each in usage] == ["1.3.6.1.5.5.7.3.2"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_a_server_certificate_names_hosts_and_addresses(authority: Authority) -> None:
    pem = authority.issue_server(KEY.public_key(), ["dure.example.org", "192.0.2.7", "::1"], NOW, serial=8)
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["dure.example.org"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "::1"]


def test_the_roots_fingerprint_is_that_of_its_der(authority: Authority) -> None:
    assert authority.fingerprint == fingerprint(certificate_der(authority.certificate_pem))
    assert authority.consortium == "Millers"


@pytest.mark.parametrize(
    ("day", "valid", "due"),
    [
        (-1.1, False, False),
        (0, True, False),
        (19, True, False),
        (20.1, True, True),
        (29.9, True, True),
        (31, False, True),
    ],
)
def test_a_certificate_lives_thirty_days_and_is_renewed_after_twenty(
    authority: Authority, day: float, valid: bool, due: bool
) -> None:
    facts = read_certificate(authority.issue_client("firm-a", signing_request(KEY), NOW, serial=9))
    assert facts.not_after == NOW + timedelta(days=30)
    then = NOW + timedelta(days=day)
    assert (facts.is_valid_at(then), facts.renewal_is_due(then)) == (valid, due)


def test_a_site_whose_clock_is_hours_behind_can_check_certificates_made_today(authority: Authority) -> None:
    server = authority.issue_server(KEY.public_key(), ["dure.example.org"], NOW, serial=8)
    client = authority.issue_client("firm-a", signing_request(KEY), NOW, serial=9)
    for pem in (server, client, authority.certificate_pem):
        assert read_certificate(pem).is_valid_at(NOW - timedelta(hours=23))


def test_a_certificate_that_lives_seconds_is_renewed_after_two_thirds_of_them(authority: Authority) -> None:
    pem = authority.issue_client("firm-a", signing_request(KEY), NOW, serial=9, days=6 / 86_400)
    assert read_certificate(pem).renew_from == NOW + timedelta(seconds=4)


def test_the_names_of_a_server_are_read_as_they_were_given(authority: Authority) -> None:
    hosts = ["dure.example.org", "localhost", "192.0.2.7", "::1"]
    assert server_names(authority.issue_server(KEY.public_key(), hosts, NOW, serial=8)) == hosts
    with pytest.raises(IdentityError, match="names no host"):
        server_names(authority.certificate_pem)


def _broken_signature() -> bytes:
    der = bytearray(x509.load_pem_x509_csr(signing_request(KEY)).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("csr", "says"),
    [
        (b"", "not a PEM"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "not a PEM"),
        (b"x" * 20_000, "at most"),
        (signing_request(KEY)[:-60], "not a PEM"),
        (_other_csr(key=ec.generate_private_key(ec.SECP384R1())), "P-256"),
        (_other_csr(key=ed25519.Ed25519PrivateKey.generate()), "P-256"),
        (_broken_signature(), "not signed by the key"),
    ],
)
def test_a_bad_signing_request_is_refused(authority: Authority, csr: bytes, says: str) -> None:
    with pytest.raises(IdentityError, match=says):
        request_public_key(csr)
    with pytest.raises(IdentityError, match=says):
        authority.issue_client("firm-a", csr, NOW, serial=1)


@pytest.mark.parametrize("name", ["", "Firm A", "firm_a", "-firm", "../etc", "f" * 64])
def test_no_certificate_is_issued_on_an_impossible_name(authority: Authority, name: str) -> None:
    with pytest.raises(IdentityError, match="firm's name"):
        authority.issue_client(name, signing_request(KEY), NOW, serial=1)


def test_what_a_firm_was_handed_is_checked_before_it_is_kept(authority: Authority) -> None:
    good = authority.issue_client("firm-a", signing_request(KEY), NOW, serial=1)
    root, public = authority.certificate_pem, KEY.public_key()
    check_issued(good, root, "firm-a", public, NOW)
    impostor = Authority.create("Millers", NOW, key=new_tls_key(), serial=1)
    cases = [
        ("not signed by", impostor.issue_client("firm-a", signing_request(KEY), NOW, serial=1), NOW),
        ("another key", authority.issue_client("firm-a", signing_request(new_tls_key()), NOW, serial=1), NOW),
        ("names 'firm-b'", authority.issue_client("firm-b", signing_request(KEY), NOW, serial=1), NOW),
        ("set the clock right", good, NOW - timedelta(days=1.1)),
        ("PEM certificate was expected", b"nonsense", NOW),
    ]
    for says, pem, now in cases:
        with pytest.raises(IdentityError, match=says):
            check_issued(pem, root, "firm-a", public, now)


def test_an_authority_needs_its_own_key(authority: Authority) -> None:
    with pytest.raises(IdentityError, match="do not belong together"):
        Authority(authority.certificate_pem, key_to_pem(new_tls_key()))
    assert Authority(authority.certificate_pem, authority.key_pem()).fingerprint == authority.fingerprint


def test_a_key_file_must_be_an_unencrypted_p256_key() -> None:
    assert key_to_pem(key_from_pem(key_to_pem(KEY))) == key_to_pem(KEY)
    locked = KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"pw")
    )
    other = ec.generate_private_key(ec.SECP384R1())
    for pem in (b"", locked, key_to_pem(other)):
        with pytest.raises(IdentityError):
            key_from_pem(pem)


def test_repr_shows_no_key(authority: Authority) -> None:
    assert repr(authority) == f"Authority('Millers', {authority.fingerprint[:16]}…)"


def test_serials_are_long_and_differ() -> None:
    serials = {new_serial() for _ in range(50)}
    assert len(serials) == 50
    assert max(serials).bit_length() > 140
