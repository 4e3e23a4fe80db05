"""How a firm comes in: everything a person or a stranger can do wrong, over every store."""

import json
import logging
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.testclient import TestClient

from dure_protocols.certificates import Authority, firm_of, new_tls_key, read_certificate, signing_request
from dure_protocols.enrolment import API_PREFIX, JoinAnswer, JoinRequest, sign_request
from dure_protocols.errors import DureError, IdentityError
from dure_protocols.identity import Identity, grouped
from dure_protocols.invitation import Invitation, read_invitation
from dure_server.enrolment.app import enrolment_app
from dure_server.enrolment.errors import (
    BadRequestError,
    EnrolmentError,
    ExpiredInvitationError,
    RevokedError,
    SpentInvitationError,
    TakenIdentityError,
    UnknownInvitationError,
    WrongFirmError,
)
from dure_server.enrolment.limits import RateLimit
from dure_server.enrolment.operator import Operator
from dure_server.enrolment.service import EnrolmentService
from dure_server.store import FirmStatus, Store, StoreConflictError, UnknownRowError
from tests.server.conftest import Clock
from tests.server.samples import identity

TLS_KEY = new_tls_key()
URL = "https://dure.example.org:7444"


@pytest.fixture
def authority(clock: Clock) -> Authority:
    return Authority.create("Millers", clock.now, key=new_tls_key(), serial=1)


@pytest.fixture
def operator(store: Store) -> Operator:
    return Operator(store, URL, "park")


@pytest.fixture
def service(store: Store, authority: Authority) -> EnrolmentService:
    return EnrolmentService(store, authority, 7443)


@pytest.fixture
def client(service: EnrolmentService) -> TestClient:
    return TestClient(enrolment_app(service), raise_server_exceptions=False)


def request_of(
    invitation: Invitation,
    *,
    firm: str | None = None,
    tls_key: ec.EllipticCurvePrivateKey = TLS_KEY,
    who: Identity | None = None,
    **changes: Any,
) -> JoinRequest:
    """What a firm's agent would send; `changes` are made after it was signed."""
    who, firm = who or identity(invitation.firm), firm or invitation.firm
    csr = signing_request(tls_key).decode()
    request = JoinRequest(
        invitation_id=invitation.invitation_id,
        secret=invitation.secret.hex(),
        firm=firm,
        signing_request=csr,
        identity_key=who.public_bytes.hex(),
        proof=sign_request(who, invitation.invitation_id, firm, csr).hex(),
        agent_version="0.1.0",
    )
    return request.model_copy(update=changes)


# The way in


def test_a_firm_is_invited_joins_is_approved_and_only_then_admitted(
    store: Store, operator: Operator, service: EnrolmentService
) -> None:
    invitation = read_invitation(operator.invite("firm-a").to_text())
    answer = service.join(request_of(invitation))
    pem = answer.certificate.encode()
    assert (answer.consortium, answer.firm, answer.link_port, firm_of(pem)) == ("Millers", "firm-a", 7443, "firm-a")
    mark = read_certificate(pem).fingerprint
    assert service.state(mark).status == "joined"
    with store.reading() as tx, pytest.raises(IdentityError, match="joined, not approved"):
        tx.certificates.admit(mark)
    operator.approve("firm-a", grouped(identity("firm-a").fingerprint).upper())
    assert service.state(mark).status == "approved"
    with store.reading() as tx:
        assert tx.certificates.admit(mark).name == "firm-a"
        assert [(event.actor, event.action) for event in tx.audit.all()] == [
            ("park", "firm.invite"),
            ("firm:firm-a", "firm.join"),
            ("park", "firm.approve"),
        ]
        assert tx.audit.verify() == 3


def test_the_secret_is_nowhere_in_the_store(store: Store, operator: Operator, service: EnrolmentService) -> None:
    invitation = operator.invite("firm-a")
    service.join(request_of(invitation))
    with store.reading() as tx:
        row = tx.invitations.latest("firm-a")
        assert row is not None
        assert invitation.secret not in row.secret_hash
        assert all(invitation.secret.hex() not in event.detail for event in tx.audit.all())


def test_a_lost_answer_is_given_again_to_the_same_keys_only(operator: Operator, service: EnrolmentService) -> None:
    invitation = operator.invite("firm-a")
    first = service.join(request_of(invitation))
    assert service.join(request_of(invitation)) == first
    for other in (request_of(invitation, tls_key=new_tls_key()), request_of(invitation, who=identity("else"))):
        with pytest.raises(SpentInvitationError, match="used already"):
            service.join(other)


def test_an_answer_is_not_given_again_after_revocation(operator: Operator, service: EnrolmentService) -> None:
    invitation = operator.invite("firm-a")
    service.join(request_of(invitation))
    operator.revoke("firm-a")
    with pytest.raises(RevokedError, match="revoked"):
        service.join(request_of(invitation))


def test_a_revoked_firm_is_out_at_once_and_may_come_back_with_new_keys(
    store: Store, operator: Operator, service: EnrolmentService
) -> None:
    old = read_certificate(service.join(request_of(operator.invite("firm-a"))).certificate.encode()).fingerprint
    operator.approve("firm-a", identity("firm-a").fingerprint)
    operator.revoke("firm-a")
    with store.reading() as tx, pytest.raises(IdentityError, match="revoked"):
        tx.certificates.admit(old)
    assert service.state(old).certificate_revoked_at is not None
    new_key, new_identity = new_tls_key(), identity("firm-a-again")
    again = service.join(request_of(operator.invite("firm-a"), tls_key=new_key, who=new_identity))
    operator.approve("firm-a", new_identity.fingerprint)
    with store.reading() as tx:
        assert tx.certificates.admit(read_certificate(again.certificate.encode()).fingerprint).name == "firm-a"
        with pytest.raises(IdentityError, match="revoked"):
            tx.certificates.admit(old)


def test_an_expired_certificate_is_not_admitted(
    store: Store, operator: Operator, service: EnrolmentService, clock: Clock
) -> None:
    mark = read_certificate(service.join(request_of(operator.invite("firm-a"))).certificate.encode()).fingerprint
    operator.approve("firm-a", identity("firm-a").fingerprint)
    clock.forward(days=31)
    with store.reading() as tx, pytest.raises(IdentityError, match="expired"):
        tx.certificates.admit(mark)
    with store.reading() as tx, pytest.raises(IdentityError, match="unknown"):
        tx.certificates.admit("00" * 32)


# What is refused


def _foreign_csr() -> str:
    return signing_request(new_tls_key()).decode()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"secret": "00" * 32}, UnknownInvitationError, "does not know this invitation"),
        ({"invitation_id": "00" * 16}, BadRequestError, "not signed by the identity key"),
        ({"signing_request": _foreign_csr()}, BadRequestError, "not signed by the identity key"),
        ({"signing_request": "nonsense"}, BadRequestError, "not a PEM"),
        ({"identity_key": "00" * 32}, BadRequestError, "not signed by the identity key"),
        ({"proof": "00" * 64}, BadRequestError, "not signed by the identity key"),
    ],
)
def test_a_changed_request_is_refused_and_the_invitation_stays_good(
    operator: Operator,
    service: EnrolmentService,
    change: dict[str, Any],
    error: type[EnrolmentError],
    says: str,
) -> None:
    invitation = operator.invite("firm-a")
    with pytest.raises(error, match=says):
        service.join(request_of(invitation, **change))
    service.join(request_of(invitation))


def test_an_unknown_invitation_and_a_wrong_secret_are_answered_alike(
    operator: Operator, service: EnrolmentService
) -> None:
    invitation = operator.invite("firm-a")
    said = []
    for stranger in (replace(invitation, invitation_id="00" * 16), replace(invitation, secret=bytes(32))):
        with pytest.raises(UnknownInvitationError) as caught:
            service.join(request_of(stranger))
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_an_invitation_is_for_its_firm_only(operator: Operator, service: EnrolmentService) -> None:
    invitation = operator.invite("firm-a")
    with pytest.raises(WrongFirmError, match="not for firm-b"):
        service.join(request_of(invitation, firm="firm-b"))


def test_an_invitation_expires_to_the_second(operator: Operator, service: EnrolmentService, clock: Clock) -> None:
    invitation = operator.invite("firm-a", timedelta(hours=1))
    clock.forward(hours=1)
    with pytest.raises(ExpiredInvitationError, match="expired at 2026-03-01 10:30 UTC"):
        service.join(request_of(invitation))


def test_a_newer_invitation_makes_the_older_worthless(operator: Operator, service: EnrolmentService) -> None:
    older, newer = operator.invite("firm-a"), operator.invite("firm-a")
    with pytest.raises(SpentInvitationError, match="withdrawn"):
        service.join(request_of(older))
    service.join(request_of(newer))


def test_two_firms_cannot_share_an_identity_key(operator: Operator, service: EnrolmentService) -> None:
    service.join(request_of(operator.invite("firm-a")))
    with pytest.raises(TakenIdentityError, match="every firm makes its own"):
        service.join(request_of(operator.invite("firm-b"), who=identity("firm-a")))


@pytest.mark.parametrize("status", [FirmStatus.JOINED, FirmStatus.APPROVED])
def test_a_firm_that_has_joined_is_not_invited_over_its_head(
    operator: Operator, service: EnrolmentService, status: FirmStatus
) -> None:
    service.join(request_of(operator.invite("firm-a")))
    if status is FirmStatus.APPROVED:
        operator.approve("firm-a", identity("firm-a").fingerprint)
    with pytest.raises(StoreConflictError, match="dure-server revoke firm-a"):
        operator.invite("firm-a")


@pytest.mark.parametrize("life", [timedelta(0), timedelta(days=-1), timedelta(days=91)])
def test_an_invitation_lives_neither_no_time_nor_for_ever(operator: Operator, life: timedelta) -> None:
    with pytest.raises(StoreConflictError, match="between a minute and 90 days"):
        operator.invite("firm-a", life)


def test_approval_needs_the_right_firm_in_the_right_state_with_the_right_fingerprint(
    store: Store, operator: Operator, service: EnrolmentService
) -> None:
    right = identity("firm-a").fingerprint
    with pytest.raises(UnknownRowError, match="no firm is called 'firm-a'; known firms: none yet"):
        operator.approve("firm-a", right)
    invitation = operator.invite("firm-a")
    with pytest.raises(StoreConflictError, match="only a firm that has joined"):
        operator.approve("firm-a", right)
    service.join(request_of(invitation))
    for wrong in (identity("else").fingerprint, right[:16], ""):
        with pytest.raises(IdentityError, match="not the one given"):
            operator.approve("firm-a", wrong)
    with store.reading() as tx:
        assert tx.firms.get("firm-a").status is FirmStatus.JOINED


# The API


def test_the_api_answers_over_http(client: TestClient, operator: Operator, authority: Authority) -> None:
    root = client.get(f"{API_PREFIX}/root").json()
    assert root == {"consortium": "Millers", "certificate": authority.certificate_pem.decode()}
    request = request_of(operator.invite("firm-a"))
    response = client.post(f"{API_PREFIX}/join", json=request.model_dump())
    assert response.status_code == 201
    mark = read_certificate(JoinAnswer.model_validate(response.json()).certificate.encode()).fingerprint
    assert client.get(f"{API_PREFIX}/certificates/{mark}").json()["status"] == "joined"


def _without(name: str) -> Any:
    return lambda body: {key: value for key, value in body.items() if key != name}


@pytest.mark.parametrize(
    ("spoil", "status", "code"),
    [
        (lambda body: body | {"secret": "00" * 32}, 403, "unknown-invitation"),
        (lambda body: body | {"proof": "00" * 64}, 400, "bad-request"),
        (lambda body: body | {"more": 1}, 422, "malformed"),
        (lambda body: body | {"secret": "short"}, 422, "malformed"),
        (lambda body: body | {"agent_version": "\x1b[2J"}, 422, "malformed"),
        (_without("proof"), 422, "malformed"),
        (lambda _: "text", 422, "malformed"),
        (lambda body: body | {"signing_request": "x" * 40_000}, 413, "too-large"),
    ],
)
def test_every_error_is_a_problem_that_never_quotes_the_secret(
    client: TestClient, operator: Operator, spoil: Any, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    invitation = operator.invite("firm-a")
    body = spoil(json.loads(request_of(invitation).model_dump_json()))
    response = client.post(f"{API_PREFIX}/join", json=body)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == f"urn:dure:problem:{code}"
    for text in (response.text, caplog.text, repr(request_of(invitation))):
        assert invitation.secret.hex() not in text


def test_an_unexpected_error_is_named_to_nobody(operator: Operator, authority: Authority) -> None:
    class Broken(EnrolmentService):
        def root(self) -> Any:
            raise DureError("internal detail")

    broken = TestClient(enrolment_app(Broken(None, authority, 1)), raise_server_exceptions=False)  # type: ignore[arg-type]
    response = broken.get(f"{API_PREFIX}/root")
    assert response.status_code == 500
    assert "internal detail" not in response.text


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/", f"{API_PREFIX}/certificates/nonsense"])
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in {404, 422}


def test_an_unknown_certificate_is_not_found(client: TestClient) -> None:
    assert client.get(f"{API_PREFIX}/certificates/{'00' * 32}").status_code == 404


def test_an_address_that_asks_too_often_waits(service: EnrolmentService) -> None:
    now = [0.0]
    client = TestClient(enrolment_app(service, RateLimit(lambda: now[0], burst=3, each_second=0.5)))
    codes = [client.get(f"{API_PREFIX}/root").status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    assert client.get(f"{API_PREFIX}/root").headers["retry-after"] == "2"
    now[0] += 2
    assert client.get(f"{API_PREFIX}/root").status_code == 200


def test_the_memory_of_addresses_is_bounded() -> None:
    rate = RateLimit(lambda: 0.0, addresses=10)
    for number in range(100):
        rate.take(f"192.0.2.{number}")
    assert len(rate._buckets) == 10


def test_a_body_without_a_length_is_cut_off_at_the_limit(client: TestClient) -> None:
    def endless() -> Any:
        for _ in range(100):
            yield b"x" * 1000

    assert client.post(f"{API_PREFIX}/join", content=endless()).status_code == 413
