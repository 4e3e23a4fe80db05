"""Joining, over real TLS, against the real enrolment API; and what an impostor learns."""

import asyncio
import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvicorn

from dure_client.enrolment.api import EnrolmentError, FingerprintError, ServerRefusedError, ServerUnreachableError
from dure_client.enrolment.join import ByProxy, ask_state, finish_renewal, join, renew, renewal_is_due
from dure_client.home import AgentHome, HomeError
from dure_client.ledger import Ledger, read_records
from dure_client.link.standing import LinkStanding
from dure_client.status import read_status
from dure_protocols.certificates import (
    Authority,
    check_issued,
    key_to_pem,
    new_serial,
    new_tls_key,
    public_key_der,
    read_certificate,
)
from dure_protocols.errors import IdentityError
from dure_protocols.identity import grouped
from dure_protocols.invitation import Invitation
from dure_protocols.ledger import Entry, RecordKind
from dure_server.console.process import enrolment_server
from dure_server.enrolment.app import enrolment_app
from dure_server.enrolment.operator import Operator
from dure_server.enrolment.service import EnrolmentService
from dure_server.settings import ServerHome, ServerSettings
from dure_server.setup import make_home
from dure_server.store import Store
from tests.end_to_end.wires import ConnectProxy, is_tls


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Site:
    """A consortium's server with its enrolment API running."""

    home: ServerHome
    settings: ServerSettings
    authority: Authority
    store: Store
    operator: Operator


@contextmanager
def running(server: uvicorn.Server) -> Iterator[None]:
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = ServerHome(tmp_path_factory.mktemp("server") / "home")
    values = {"consortium": "Millers", "public_host": "127.0.0.1", "bind_host": "127.0.0.1"}
    settings = ServerSettings.checked({**values, "enrolment_port": free_port()})
    authority = make_home(home, settings, "test", datetime.now(UTC))
    store = Store.open(home.store_url(settings))
    app = enrolment_app(EnrolmentService(store, authority, settings.link_port))
    with running(enrolment_server(home, settings, app)):
        yield Site(home, settings, authority, store, Operator(store, settings.enrolment_url, "test"))
    store.close()


@pytest.fixture
def invitation(site: Site, request: pytest.FixtureRequest) -> Invitation:
    """An invitation for a firm that only this test knows."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    return site.operator.invite(f"firm-{name}")


@pytest.fixture
def home(tmp_path: Path) -> AgentHome:
    return AgentHome(tmp_path / "agent")


@dataclass
class Recorder:
    """Remembers what it was told; can be told to fail."""

    entries: list[Entry] = field(default_factory=list)
    fails: bool = False

    def record(self, entry: Entry) -> None:
        if self.fails:
            raise OSError("the disk is full")
        self.entries.append(entry)


class Impostor:
    """Listens with TLS where a server should be, answers with one thing, and keeps every byte it was sent."""

    def __init__(self, key_pem: bytes, certificate_pem: bytes, folder: Path, answers: list[bytes]) -> None:
        folder.mkdir()
        (folder / "key").write_bytes(key_pem)
        (folder / "pem").write_bytes(certificate_pem)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "pem", folder / "key")
        self._answers = answers
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.received: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            try:
                raw, _ = self._socket.accept()
                with raw, self._context.wrap_socket(raw, server_side=True) as connection:
                    connection.settimeout(5)
                    self.received.append(self._request(connection))
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\nConnection: close\r\n\r\n"
                    connection.sendall(head.encode() + answer)
            except OSError:
                continue

    @staticmethod
    def _request(connection: ssl.SSLSocket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        while len(body) < length:
            part = connection.recv(65536)
            data, body = data + part, body + part
        return data

    def close(self) -> None:
        self._socket.close()


ImpostorOf = Callable[[Authority, list[bytes]], Impostor]


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[ImpostorOf]:
    opened: list[Impostor] = []

    def make(authority: Authority, answers: list[bytes]) -> Impostor:
        key = new_tls_key()
        pem = authority.issue_server(key.public_key(), ["127.0.0.1"], datetime.now(UTC), serial=new_serial())
        opened.append(Impostor(key_to_pem(key), pem, tmp_path / f"impostor{len(opened)}", answers))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def another_authority() -> Authority:
    return Authority.create("Millers", datetime.now(UTC), key=new_tls_key(), serial=1)


def root_json(authority: Authority) -> bytes:
    pem = authority.certificate_pem.decode().replace("\n", "\\n")
    return f'{{"consortium": "Millers", "certificate": "{pem}"}}'.encode()


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


class _Cut(Exception):  # noqa: N818
    """The power goes."""


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_run_that_was_cut_off_is_simply_run_again(
    site: Site, invitation: Invitation, home: AgentHome, after: int
) -> None:
    """Cut before the root is asked for, before the request to join is sent, and after it was (the answer is lost)."""
    seen: list[Entry] = []

    class Cutting:
        def record(self, entry: Entry) -> None:
            if len(seen) == after:
                raise _Cut
            seen.append(entry)

    def clock() -> datetime:
        if len(seen) == 2:
            raise _Cut
        return datetime.now(UTC)

    with pytest.raises(_Cut):
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
        raise _Cut

    with pytest.raises(_Cut):
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
