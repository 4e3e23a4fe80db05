"""Joining, over real TLS, against the real enrolment API; and what an impostor learns."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dure_client.enrolment.api import EnrolmentError, FingerprintError, ServerRefusedError, ServerUnreachableError
from dure_client.enrolment.join import ByProxy, ask_state, join
from dure_client.home import AgentHome, HomeError
from dure_client.ledger import read_records
from dure_client.link.standing import LinkStanding
from dure_client.status import read_status
from dure_protocols.certificates import (
    check_issued,
)
from dure_protocols.identity import grouped
from dure_protocols.invitation import Invitation
from dure_protocols.ledger import Entry, RecordKind
from tests.client.enrolment_site import (
    Cut,
    Impostor,
    ImpostorOf,
    Recorder,
    Site,
    another_authority,
    free_port,
    root_json,
)
from tests.end_to_end.wires import ConnectProxy, is_tls

# The way in


def test_a_firm_joins_and_finds_out_that_it_waits_and_then_is_approved(
    site: Site, invitation: Invitation, home: AgentHome
) -> None:
    joined = join(home, invitation, grouped(site.authority.fingerprint).upper())
    assert joined.config.firm == invitation.firm
    assert joined.config.link_port == site.settings.link_port
    now = datetime.now(UTC)
    check_issued(
        home.tls_certificate_file.read_bytes(),
        site.authority.certificate_pem,
        invitation.firm,
        home.tls_key().public_key(),
        now,
    )
    assert home.root_file.read_bytes() == site.authority.certificate_pem
    assert ask_state(home).answer.status == "joined"
    assert LinkStanding.read(home.standing_file) is None
    assert read_status(home, now).approval_note == "waiting for the operator's approval"
    heard = LinkStanding.read(home.standing_file)  # the doctor reads it there
    assert heard is not None
    assert (heard.heard_at, heard.server_version) == (now, None)
    site.operator.approve(invitation.firm, joined.identity_fingerprint)
    assert read_status(home, now).approval == "approved"
    site.operator.revoke(invitation.firm)
    assert "revoked" in read_status(home, now).approval_note


def test_every_private_file_is_of_mode_0600_and_holds_no_secret_of_the_invitation(
    site: Site, invitation: Invitation, home: AgentHome
) -> None:
    join(home, invitation, site.authority.fingerprint)
    for path in (each for each in home.path.rglob("*") if each.is_file()):
        assert invitation.secret.hex().encode() not in path.read_bytes()
        assert invitation.secret not in path.read_bytes()
    for path in home.keys.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_joining_again_keeps_keys_and_certificate(site: Site, invitation: Invitation, home: AgentHome) -> None:
    join(home, invitation, site.authority.fingerprint)
    before = {path.name: path.read_bytes() for path in home.keys.iterdir()}
    join(home, invitation, site.authority.fingerprint)
    assert {path.name: path.read_bytes() for path in home.keys.iterdir()} == before


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_run_that_was_cut_off_is_simply_run_again(
    site: Site, invitation: Invitation, home: AgentHome, after: int
) -> None:
    """Cut before the root is asked for, before the request to join is sent, and after it was (the answer is lost)."""
    seen: list[Entry] = []

    class Cutting:
        def record(self, entry: Entry) -> None:
            if len(seen) == after:
                raise Cut
            seen.append(entry)

    def clock() -> datetime:
        if len(seen) == 2:
            raise Cut
        return datetime.now(UTC)

    with pytest.raises(Cut):
        join(home, invitation, site.authority.fingerprint, recorder=Cutting(), clock=clock)
    assert not home.has_joined
    keys = (home.identity_key_file.read_bytes(), home.tls_key_file.read_bytes())
    join(home, invitation, site.authority.fingerprint)
    assert (home.identity_key_file.read_bytes(), home.tls_key_file.read_bytes()) == keys


# What stops before anything secret is sent


def test_a_wrong_fingerprint_stops_before_anything_is_sent_or_made(
    site: Site, invitation: Invitation, home: AgentHome
) -> None:
    for told in ("cd" * 32, site.authority.fingerprint[:40], "", "nonsense"):
        with pytest.raises(FingerprintError, match="Nothing secret was sent"):
            join(home, invitation, told)
    assert not home.path.exists()


def test_a_server_with_another_root_learns_nothing(
    site: Site, invitation: Invitation, home: AgentHome, impostor: ImpostorOf
) -> None:
    evil = another_authority()
    liar = impostor(evil, [root_json(evil)])
    lured = replace(invitation, enrolment_url=f"https://127.0.0.1:{liar.port}")
    with pytest.raises(FingerprintError, match=grouped(evil.fingerprint)):
        join(home, lured, site.authority.fingerprint)
    assert len(liar.received) == 1
    assert liar.received[0].startswith(b"GET /api/v1/enrolment/root HTTP/1.1\r\n")
    assert_knows_nothing(liar, invitation, home)


def test_a_server_that_shows_the_right_root_but_is_not_of_it_learns_nothing(
    site: Site, invitation: Invitation, home: AgentHome, impostor: ImpostorOf
) -> None:
    liar = impostor(another_authority(), [root_json(site.authority), b"{}"])
    lured = replace(invitation, enrolment_url=f"https://127.0.0.1:{liar.port}")
    with pytest.raises(ServerUnreachableError, match="root did not sign"):
        join(home, lured, site.authority.fingerprint)
    assert_knows_nothing(liar, invitation, home)
    assert not home.has_joined


def assert_knows_nothing(liar: Impostor, invitation: Invitation, home: AgentHome) -> None:
    everything = b"".join(liar.received)
    assert invitation.secret.hex().encode() not in everything
    assert invitation.invitation_id.encode() not in everything
    assert home.identity().public_bytes.hex().encode() not in everything


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"<html>a router</html>", "did not answer like a Dure server"),
        (b'{"consortium": "Millers", "certificate": "nonsense"}', "did not show a root certificate"),
        (b"x" * 100_000, "more than 65536 bytes"),
    ],
)
def test_what_is_no_dure_server_is_told_so(
    site: Site, invitation: Invitation, home: AgentHome, impostor: ImpostorOf, answer: bytes, says: str
) -> None:
    other = impostor(another_authority(), [answer])
    lured = replace(invitation, enrolment_url=f"https://127.0.0.1:{other.port}")
    with pytest.raises(EnrolmentError, match=says):
        join(home, lured, site.authority.fingerprint)


def test_an_invitation_that_expired_is_not_even_sent(site: Site, invitation: Invitation, home: AgentHome) -> None:
    recorder = Recorder()
    late = invitation.expires_at + timedelta(seconds=1)
    with pytest.raises(EnrolmentError, match="expired at"):
        join(home, invitation, site.authority.fingerprint, clock=lambda: late, recorder=recorder)
    assert recorder.entries == []


def test_the_servers_refusal_is_told_in_its_words(
    site: Site, invitation: Invitation, home: AgentHome, tmp_path: Path
) -> None:
    join(home, invitation, site.authority.fingerprint)
    with pytest.raises(ServerRefusedError, match="used already, with other keys") as caught:
        join(AgentHome(tmp_path / "thief"), invitation, site.authority.fingerprint)
    assert caught.value.code == "spent-invitation"
    assert invitation.secret.hex() not in str(caught.value)


def test_a_home_of_another_firm_is_left_alone(site: Site, invitation: Invitation, home: AgentHome) -> None:
    join(home, invitation, site.authority.fingerprint)
    before = {path: path.read_bytes() for path in home.keys.iterdir()}
    with pytest.raises(HomeError, match="keys are never overwritten"):
        join(home, site.operator.invite("firm-elsewhere"), site.authority.fingerprint)
    assert {path: path.read_bytes() for path in home.keys.iterdir()} == before


# What left


def test_the_recorder_sees_every_byte_before_it_leaves(
    site: Site, invitation: Invitation, home: AgentHome, impostor: ImpostorOf
) -> None:
    """A listener of the right root keeps the bytes; they are the recorded ones, in order, to the last."""
    listener = impostor(site.authority, [root_json(site.authority), b"{}"])
    recorder = Recorder()
    lured = replace(invitation, enrolment_url=f"https://127.0.0.1:{listener.port}")
    with pytest.raises(EnrolmentError, match="did not answer like"):
        join(home, lured, site.authority.fingerprint, recorder=recorder)
    sent = [(len(each), hashlib.sha256(each).digest()) for each in listener.received]
    assert len(sent) == 2
    assert [(entry.size_bytes, entry.sha256) for entry in recorder.entries] == sent
    assert {entry.kind for entry in recorder.entries} == {RecordKind.ENROLMENT}


def test_if_it_cannot_be_recorded_nothing_leaves(
    site: Site, invitation: Invitation, home: AgentHome, impostor: ImpostorOf
) -> None:
    listener = impostor(site.authority, [root_json(site.authority)])
    lured = replace(invitation, enrolment_url=f"https://127.0.0.1:{listener.port}")
    with pytest.raises(OSError, match="disk is full"):
        join(home, lured, site.authority.fingerprint, recorder=Recorder(fails=True))
    assert listener.received == []


def test_what_never_left_is_taken_back(site: Site, invitation: Invitation, home: AgentHome) -> None:
    recorder = Recorder()
    lured = replace(invitation, enrolment_url=f"https://127.0.0.1:{free_port()}")
    with pytest.raises(ServerUnreachableError, match="cannot be reached"):
        join(home, lured, site.authority.fingerprint, recorder=recorder)
    assert [entry.kind for entry in recorder.entries] == [RecordKind.ENROLMENT, RecordKind.NOT_SENT]
    assert len({(entry.size_bytes, entry.sha256) for entry in recorder.entries}) == 1


def test_the_environment_adds_nothing(
    site: Site, invitation: Invitation, home: AgentHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No .netrc of the user's changes what is sent, and no proxy stands between programs of one machine."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login kim password hunter2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("SSL_CERT_FILE", str(netrc))
    join(home, invitation, site.authority.fingerprint)
    assert [record.entry.kind for record in read_records(home.ledger_file)] == [RecordKind.ENROLMENT] * 2


# Through the firm's proxy


@pytest.fixture
def proxy() -> Iterator[ConnectProxy]:
    with ConnectProxy(credentials="kim:hunter2") as made:
        yield made


def credentials_file(folder: Path, text: str = "kim:hunter2\n") -> Path:
    file = folder / "proxy-credentials"
    file.write_text(text)
    file.chmod(0o600)
    return file


def test_a_firm_joins_and_asks_through_its_proxy_which_sees_tls_only(
    site: Site, invitation: Invitation, home: AgentHome, proxy: ConnectProxy, tmp_path: Path
) -> None:
    joined = join(home, invitation, site.authority.fingerprint, by_proxy=ByProxy(proxy.url, credentials_file(tmp_path)))
    assert ask_state(home).answer.status == "joined"
    assert len(proxy.tunnels) == 3  # the root, the request to join, the question
    for tunnel in proxy.tunnels:
        assert tunnel.head.startswith(f"CONNECT 127.0.0.1:{site.settings.enrolment_port} HTTP/1.1\r\n".encode())
        assert is_tls(bytes(tunnel.up))
        assert is_tls(bytes(tunnel.down))
        assert invitation.firm.encode() not in tunnel.head + tunnel.up + tunnel.down
    assert joined.config.proxy == proxy.url
    assert str(read_status(home, datetime.now(UTC)).proxy) == f"127.0.0.1:{proxy.port}"
    for file in (each for each in home.path.rglob("*") if each.is_file()):
        assert b"hunter2" not in file.read_bytes()


@pytest.mark.parametrize(
    ("refuses", "text", "says"),
    [
        pytest.param(
            0, "kim:wrong", r"refuses the user name and password .*\(407\).*--credentials FILE", id="password"
        ),
        pytest.param(403, "kim:hunter2", r"does not allow a tunnel .*\(403\).*allow CONNECT", id="not allowed"),
        pytest.param(502, "kim:hunter2", r"could not connect to the server \(502\)", id="server not reached"),
    ],
)
def test_a_proxy_that_refuses_is_told_with_what_to_do_and_nothing_has_left(
    site: Site,
    invitation: Invitation,
    home: AgentHome,
    proxy: ConnectProxy,
    tmp_path: Path,
    refuses: int,
    text: str,
    says: str,
) -> None:
    proxy.refuses, recorder = refuses, Recorder()
    by_proxy = ByProxy(proxy.url, credentials_file(tmp_path, text))
    with pytest.raises(ServerUnreachableError, match=says) as caught:
        join(home, invitation, site.authority.fingerprint, by_proxy=by_proxy, recorder=recorder)
    assert [entry.kind for entry in recorder.entries] == [RecordKind.ENROLMENT, RecordKind.NOT_SENT]
    assert "hunter2" not in str(caught.value)
    assert "wrong" not in str(caught.value)
