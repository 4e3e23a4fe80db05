"""Once it has joined: what a firm hears of clock and server, and how its certificate is renewed."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from dure_client.enrolment.join import ask_state, finish_renewal, join, renew, renewal_is_due
from dure_client.home import AgentHome
from dure_client.ledger import Ledger
from dure_client.link.standing import LinkStanding
from dure_client.status import read_status
from dure_protocols.certificates import (
    new_serial,
    public_key_der,
    read_certificate,
)
from dure_protocols.errors import IdentityError
from dure_protocols.invitation import Invitation
from tests.client.enrolment_site import Cut, Site

# A clock that is wrong


@pytest.mark.parametrize("hours", [-11, 11])
def test_a_firm_whose_clock_is_hours_off_joins_and_is_told(
    site: Site, invitation: Invitation, home: AgentHome, hours: int
) -> None:
    def clock() -> datetime:
        return datetime.now(UTC) + timedelta(hours=hours)

    joined = join(home, invitation, site.authority.fingerprint, clock=clock)
    assert joined.clock_ahead_seconds == pytest.approx(hours * 3600, abs=5)
    state = ask_state(home, clock=clock)
    assert state.answer.status == "joined"
    assert state.clock_ahead_seconds == pytest.approx(hours * 3600, abs=5)


def test_status_tells_what_the_running_agent_last_heard_of_server_and_clock(
    site: Site, invitation: Invitation, home: AgentHome
) -> None:
    join(home, invitation, site.authority.fingerprint)
    now = datetime.now(UTC)
    LinkStanding(heard_at=now, server_version="0.3.1", protocol=2, clock_ahead_seconds=5 * 3600.0).write(
        home.standing_file
    )
    with Ledger(home.ledger_file, home.identity()):
        status = read_status(home, now)
    assert (status.server_version, status.protocol) == ("0.3.1", 2)
    assert "5 h ahead of the server's: set it right" in status.clock_note
    asked = read_status(home, now)  # asks the server itself
    assert (asked.clock_note, asked.server_version) == ("in step with the server's", "0.3.1")
    assert read_status(home, now, ask=False).clock_note == "in step with the server's"


def test_status_does_not_speak_while_the_agent_does(site: Site, invitation: Invitation, home: AgentHome) -> None:
    join(home, invitation, site.authority.fingerprint)
    with Ledger(home.ledger_file, home.identity()):
        status = read_status(home, datetime.now(UTC))
    assert status.approval == "unknown"
    assert "the agent runs here" in status.approval_note


# Renewal


def _issue(site: Site, firm: str) -> Callable[[bytes], bytes]:
    return lambda csr: site.authority.issue_client(firm, csr, datetime.now(UTC), serial=new_serial())


def _pair_fits(home: AgentHome) -> bool:
    return public_key_der(home.tls_key().public_key()) == home.certificate().public_key_der


def test_a_certificate_is_renewed_with_a_new_key_when_two_thirds_are_over(
    site: Site, invitation: Invitation, home: AgentHome
) -> None:
    old = join(home, invitation, site.authority.fingerprint).certificate
    now = datetime.now(UTC)
    assert not renewal_is_due(home, now + timedelta(days=19))
    assert renewal_is_due(home, now + timedelta(days=21))
    new = renew(home, _issue(site, invitation.firm), now)
    assert new.public_key_der != old.public_key_der
    assert _pair_fits(home)
    assert not home.next_tls_key_file.exists()


@pytest.mark.parametrize(
    ("steps", "is_new"),
    [(["key"], False), (["key", "pem"], True), (["key", "pem", "move key"], True)],
    ids=["key made", "answer kept", "half moved"],
)
def test_a_renewal_that_was_cut_off_leaves_a_pair_that_fits(
    site: Site, invitation: Invitation, home: AgentHome, steps: list[str], is_new: bool
) -> None:
    old = join(home, invitation, site.authority.fingerprint).certificate
    sent: list[bytes] = []

    def cut(csr: bytes) -> bytes:
        sent.append(csr)
        raise Cut

    with pytest.raises(Cut):
        renew(home, cut, datetime.now(UTC))
    if "pem" in steps:
        home.next_tls_certificate_file.write_bytes(_issue(site, invitation.firm)(sent[0]))
    if "move key" in steps:
        home.next_tls_key_file.replace(home.tls_key_file)
    finish_renewal(home)
    assert _pair_fits(home)
    assert (home.certificate().fingerprint != old.fingerprint) is is_new
    renew(home, _issue(site, invitation.firm), datetime.now(UTC))
    assert _pair_fits(home)


def test_a_renewed_certificate_is_checked_before_it_is_kept(
    site: Site, invitation: Invitation, home: AgentHome
) -> None:
    old = join(home, invitation, site.authority.fingerprint).certificate
    for send in (_issue(site, "firm-other"), lambda _: b"nonsense", lambda _: site.authority.certificate_pem):
        with pytest.raises(IdentityError):
            renew(home, send, datetime.now(UTC))
    assert read_certificate(home.tls_certificate_file.read_bytes()).fingerprint == old.fingerprint
    assert _pair_fits(home)
