"""How a firm joins a consortium (design, section 5), renews its certificate, and asks how it stands.

Keys are made here and stay here. Nothing secret is sent to a server before its root has the fingerprint that a person
was told over another way. A run that was cut off at any point is simply run again: keys that exist are kept, and the
server gives the same keys the same answer. Errors: `enrolment.api`, HomeError, InvitationError.
"""

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from dure_client.enrolment.api import EnrolmentApi, EnrolmentError, FingerprintError
from dure_client.home import AgentConfig, AgentHome, HomeError, keep_or_make_private, write_file
from dure_client.keystore import KeyStoreSettings
from dure_client.ledger import Ledger
from dure_client.link.client import EgressRecorder
from dure_client.link.clock import ServerClock
from dure_client.link.proxy import proxy_for
from dure_protocols.certificates import (
    CertificateFacts,
    certificate_der,
    check_issued,
    key_from_pem,
    key_to_pem,
    new_tls_key,
    public_key_der,
    read_certificate,
)
from dure_protocols.certificates import signing_request as make_signing_request
from dure_protocols.enrolment import JoinAnswer, JoinRequest, RootAnswer, StateAnswer, sign_request
from dure_protocols.errors import IdentityError
from dure_protocols.identity import fingerprint, grouped, same_fingerprint
from dure_protocols.invitation import Invitation

Clock = Callable[[], datetime]
RandomBytes = Callable[[int], bytes]


def system_clock() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Joined:
    """What joining came to."""

    config: AgentConfig
    identity_fingerprint: str
    certificate: CertificateFacts
    clock_ahead_seconds: float | None
    """By how much this machine's clock is ahead of the server's; None if the server did not tell its time."""


@dataclass(frozen=True)
class ByProxy:
    """The proxy that the firm's people named for joining; it is kept in agent.toml. See `link.proxy`."""

    proxy: str | None = None
    proxy_credentials_file: Path | None = None


@dataclass(frozen=True)
class State:
    """How the firm stands, and by how much this machine's clock is ahead of the server's (None: not told)."""

    answer: StateAnswer
    clock_ahead_seconds: float | None


def join(
    home: AgentHome,
    invitation: Invitation,
    told_fingerprint: str,
    *,
    clock: Clock = system_clock,
    random_bytes: RandomBytes = secrets.token_bytes,
    recorder: EgressRecorder | None = None,
    by_proxy: ByProxy = ByProxy(),
    environment: Mapping[str, str] = os.environ,
) -> Joined:
    """Join the consortium that an invitation names. `recorder`: the firm's ledger unless a test gives another.

    (1) The invitation names the root that the person was told of, has not expired, and fits what the home holds.
    (2) The keys are made in the home, unless they are there.
    (3) The server's root is fetched over a connection that is not trusted yet; it must have the same fingerprint.
    (4) Over TLS that trusts this root only, the request to join is sent; it is the first message with a secret.
    (5) The certificate in the answer is signed by the root, for the own key, on the firm's name, and valid now: by the
        server's time, for it is the server who will look at it.
    (6) It is kept; agent.toml comes last, so a home that has one is complete.
    """
    # (1)
    if not same_fingerprint(told_fingerprint, invitation.root_fingerprint):
        raise FingerprintError(_differs("the invitation names", invitation.root_fingerprint, told_fingerprint))
    if clock() >= invitation.expires_at:
        raise EnrolmentError(
            f"this invitation expired at {invitation.expires_at:%Y-%m-%d %H:%M} UTC, and this machine's clock says "
            f"{clock():%Y-%m-%d %H:%M} UTC; set the clock if it is wrong, else ask the operator for a new one"
        )
    _check_home_is_free(home, invitation)
    with ExitStack() as stack:
        # (2)
        home.create()
        identity = home.key_store(environment).identity_or_new(random_bytes)
        tls_key = key_from_pem(keep_or_make_private(home.tls_key_file, key_to_pem(new_tls_key())))
        recorder = recorder or stack.enter_context(Ledger(home.ledger_file, identity, clock))
        proxy = proxy_for(invitation.server_host, by_proxy, environment)
        server_clock = ServerClock(lambda: clock().timestamp())
        # (3)
        with EnrolmentApi(invitation.enrolment_url, recorder, None, proxy=proxy, clock=server_clock) as api:
            root_pem = _fetch_root(api, invitation, told_fingerprint)
        # (4)
        request_pem = make_signing_request(tls_key).decode("ascii")
        proof = sign_request(identity, invitation.invitation_id, invitation.firm, request_pem)
        request = JoinRequest(
            invitation_id=invitation.invitation_id,
            secret=invitation.secret.hex(),
            firm=invitation.firm,
            signing_request=request_pem,
            identity_key=identity.public_bytes.hex(),
            proof=proof.hex(),
            agent_version=version("dure"),
        )
        with EnrolmentApi(invitation.enrolment_url, recorder, root_pem, proxy=proxy, clock=server_clock) as api:
            answer = api.post("/join", request, JoinAnswer)
        # (5)
        certificate = answer.certificate.encode()
        check_issued(certificate, root_pem, invitation.firm, tls_key.public_key(), server_clock.now_utc())
    # (6)
    write_file(home.root_file, root_pem)
    write_file(home.tls_certificate_file, certificate)
    config = AgentConfig(
        consortium=invitation.consortium,
        firm=invitation.firm,
        server_host=invitation.server_host,
        enrolment_port=invitation.enrolment_port,
        link_port=answer.link_port,
        root_fingerprint=invitation.root_fingerprint,
        metrics_port=home.written_config().metrics_port if home.config_file.exists() else None,
        proxy=by_proxy.proxy,
        proxy_credentials_file=by_proxy.proxy_credentials_file,
        **home.key_settings(environment).model_dump(include=set(KeyStoreSettings.model_fields)),
    )
    home.write_config(config)
    return Joined(config, identity.fingerprint, read_certificate(certificate), server_clock.ahead_seconds)


def ask_state(
    home: AgentHome,
    *,
    clock: Clock = system_clock,
    recorder: EgressRecorder | None = None,
    environment: Mapping[str, str] = os.environ,
) -> State:
    """Ask the server how this firm stands.

    Raises an EnrolmentError, HomeError, ProxyError, or LedgerError while the agent runs.
    """
    config = home.config(environment)
    route, server_clock = config.route(environment), ServerClock(lambda: clock().timestamp())
    with ExitStack() as stack:
        recorder = recorder or stack.enter_context(Ledger(home.ledger_file, home.identity(), clock))
        api = stack.enter_context(
            EnrolmentApi(
                config.enrolment_url,
                recorder,
                home.root_file.read_bytes(),
                proxy=route.proxy,
                server_name=route.server_name,
                clock=server_clock,
            )
        )
        answer = api.get(f"/certificates/{home.certificate().fingerprint}", StateAnswer)
        return State(answer, server_clock.ahead_seconds)


def renewal_is_due(home: AgentHome, now: datetime) -> bool:
    """Whether the agent should renew its certificate now. Raises HomeError."""
    finish_renewal(home)
    return home.certificate().renewal_is_due(now)


def renew(home: AgentHome, send: Callable[[bytes], bytes], now: datetime) -> CertificateFacts:
    """Replace TLS key and certificate by new ones. `send` is `LinkClient.renew`; call `LinkClient.reload` afterwards.

    The new pair is laid beside the old one, whole, before either file of the old is replaced; a crash at any point
    leaves the old pair or is finished by `finish_renewal`. Raises IdentityError if the answer is not what it must be.
    """
    finish_renewal(home)
    key = key_from_pem(keep_or_make_private(home.next_tls_key_file, key_to_pem(new_tls_key())))
    certificate = send(make_signing_request(key))
    check_issued(certificate, home.root_file.read_bytes(), home.config().firm, key.public_key(), now)
    write_file(home.next_tls_certificate_file, certificate)
    finish_renewal(home)
    return home.certificate()


def finish_renewal(home: AgentHome) -> None:
    """Move a new key and certificate into place, if a crash came between. The agent calls this before it connects."""
    if not home.next_tls_certificate_file.exists():
        return
    if home.next_tls_key_file.exists():
        home.next_tls_key_file.replace(home.tls_key_file)
    home.next_tls_certificate_file.replace(home.tls_certificate_file)
    if public_key_der(home.tls_key().public_key()) != home.certificate().public_key_der:
        raise HomeError(f"TLS key and certificate in {home.keys} do not belong together: restore them from one backup")


def _check_home_is_free(home: AgentHome, invitation: Invitation) -> None:
    if not home.config_file.exists():
        return
    config = home.written_config()
    if (config.firm, config.root_fingerprint) != (invitation.firm, invitation.root_fingerprint):
        raise HomeError(
            f"{home.path} belongs to {config.firm} of the consortium {config.consortium} already, and keys are never "
            "overwritten: name another folder with --home"
        )


def _fetch_root(api: EnrolmentApi, invitation: Invitation, told_fingerprint: str) -> bytes:
    pem = api.get("/root", RootAnswer).certificate.encode()
    try:
        shown = fingerprint(certificate_der(pem))
    except IdentityError as error:
        raise EnrolmentError(f"{invitation.enrolment_url} did not show a root certificate: {error}") from error
    if not same_fingerprint(shown, told_fingerprint):
        raise FingerprintError(_differs(f"the server at {invitation.enrolment_url} shows", shown, told_fingerprint))
    return pem


def _differs(who: str, shown: str, told: str) -> str:
    return (
        f"{who} the consortium root {grouped(shown)}, and you were told {told.strip() or 'nothing'}. "
        "Nothing secret was sent. Compare both with the operator over the phone: either digits were mistyped, or "
        "somebody is in between"
    )
