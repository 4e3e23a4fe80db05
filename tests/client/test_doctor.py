"""What the doctor says of a host: each line against a real sandbox, a real server on loopback, real files."""

import contextlib
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dure_client.cli import app
from dure_client.doctor import Finding, State, examine
from dure_client.doctor.network import network_findings
from dure_client.doctor.sandbox import sandbox_findings
from dure_client.home import AgentConfig, AgentHome, keep_or_make_private, write_file
from dure_client.link.standing import LinkStanding
from dure_client.trainer.sandbox import Limits, Sandbox, SandboxLevel
from dure_client.trainer.sandbox.limits import LimitsOnly
from dure_protocols.certificates import Authority, key_to_pem, new_serial, new_tls_key, signing_request
from dure_protocols.identity import Identity
from tests.end_to_end.wires import ConnectProxy

NOW = datetime.now(UTC)
NAME = "dure.example.org"
NO_PROXY: dict[str, str] = {}


def authority(name: str) -> Authority:
    return Authority.create(name, NOW, key=new_tls_key(), serial=new_serial())


CONSORTIUM, INSPECTION = authority("Mills"), authority("Corp Web Gateway CA")


@contextlib.contextmanager
def server(
    folder: Path, issuer: Authority, name: str = NAME, issued: datetime = NOW, only: ssl.TLSVersion | None = None
) -> Iterator[int]:
    """A TLS server on loopback that shows a certificate and says nothing: its port. only: the TLS that it speaks."""
    key = new_tls_key()
    pem = issuer.issue_server(key.public_key(), [name], issued, serial=new_serial(), days=30)
    (folder / "server.pem").write_bytes(pem + key_to_pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    if only is not None:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = only
    listener = socket.create_server(("127.0.0.1", 0))
    said: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as secured:
                said.append(secured.recv(1))

    threading.Thread(target=serve, daemon=True).start()
    with listener:
        yield listener.getsockname()[1]
    assert not any(said), "the doctor sent something"


@pytest.fixture
def home(tmp_path: Path) -> AgentHome:
    """A firm that has joined."""
    made = AgentHome(tmp_path / "agent")
    made.create()
    key = new_tls_key()
    keep_or_make_private(made.tls_key_file, key_to_pem(key))
    keep_or_make_private(made.identity_key_file, Identity.from_seed(bytes(32)).to_pem())
    certificate = CONSORTIUM.issue_client("mill", signing_request(key), NOW, serial=new_serial())
    write_file(made.tls_certificate_file, certificate)
    write_file(made.root_file, CONSORTIUM.certificate_pem)
    made.write_config(config(1))
    return made


def config(port: int, **changes: object) -> AgentConfig:
    fields = {
        "consortium": "Mills",
        "firm": "mill",
        "server_host": "127.0.0.1",
        "server_name": NAME,
        "enrolment_port": 1,
        "link_port": port,
        "root_fingerprint": "ab" * 32,
    }
    return AgentConfig.model_validate(fields | changes)


def look(home: AgentHome, port: int, **changes: object) -> dict[str, Finding]:
    found = network_findings(config(port, **changes), home.root_file, NO_PROXY)
    return {finding.name: finding for finding in found}


def test_in_the_full_sandbox_everything_that_is_tried_is_held(bubblewrap: Sandbox, home: AgentHome) -> None:
    before = sorted(home.path.rglob("*"))
    findings = list(sandbox_findings(bubblewrap, SandboxLevel.FULL, home.path))
    by_root = {"sandbox: threads"} if os.geteuid() == 0 else set()
    assert {finding.name for finding in findings if finding.state is not State.OK} == by_root
    assert len(findings) == 10
    assert sorted(home.path.rglob("*")) == before


@pytest.mark.parametrize(("wanted", "state"), [(SandboxLevel.FULL, State.FAIL), (SandboxLevel.LIMITS, State.WARN)])
def test_without_one_the_doctor_sees_what_is_open_and_weighs_it_by_the_policy(
    wanted: SandboxLevel, state: State, home: AgentHome
) -> None:
    findings = {f.name: f for f in sandbox_findings(LimitsOnly("apt-get it"), wanted, home.path)}
    assert (findings["sandbox"].state, findings["sandbox"].advice) == (state, "apt-get it")
    for name in ("network", "home", "system files", "writing", "processes"):
        assert (name, findings[f"sandbox: {name}"].state) == (name, state)
    assert findings["sandbox: memory"].state is State.OK
    assert findings["sandbox: network"].text == "a trainer can connect to this host and to others (tried)"


def test_a_probe_that_does_not_run_is_a_failure_and_not_a_silence(home: AgentHome) -> None:
    class Broken(LimitsOnly):
        def confine(self, command, grants, limits: Limits):  # type: ignore[no-untyped-def]
            return super().confine(["/bin/false"], grants, limits)

    findings = list(sandbox_findings(Broken(), SandboxLevel.OFF, home.path))
    assert {f.state for f in findings if ":" in f.name} == {State.FAIL}


def test_the_consortiums_own_server_is_recognised(tmp_path: Path, home: AgentHome) -> None:
    with server(tmp_path, CONSORTIUM) as port:
        assert {f.state for f in look(home, port).values()} == {State.OK}


def test_tls_inspection_is_told_with_its_issuers_name(tmp_path: Path, home: AgentHome) -> None:
    with server(tmp_path, INSPECTION) as port:
        found = look(home, port)
    assert found["link"].state is State.OK
    assert found["tls"].state is State.FAIL
    assert 'issued by "CN=Corp Web Gateway CA", not by the consortium' in found["tls"].text
    assert "TLS inspection" in found["tls"].advice


def test_what_speaks_tls_12_alone_is_taken_as_the_link_takes_it(tmp_path: Path, home: AgentHome) -> None:
    with server(tmp_path, CONSORTIUM, only=ssl.TLSVersion.TLSv1_2) as port:
        assert {f.state for f in look(home, port).values()} == {State.OK}
    with server(tmp_path, INSPECTION, only=ssl.TLSVersion.TLSv1_2) as port:
        found = look(home, port)
    assert found["link"].state is State.OK
    assert 'issued by "CN=Corp Web Gateway CA", not by the consortium' in found["tls"].text


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_of_what_speaks_older_tls_than_the_link_takes_the_issuer_is_told(tmp_path: Path, home: AgentHome) -> None:
    with server(tmp_path, INSPECTION, only=ssl.TLSVersion.TLSv1_1) as port:
        found = look(home, port)
    assert found["link"].state is State.FAIL
    assert "no TLS 1.2 or newer" in found["link"].text
    assert 'the certificate there was issued by "CN=Corp Web Gateway CA"' in found["link"].text
    assert "TLS inspection" in found["link"].advice


def test_what_speaks_no_tls_at_all_has_no_issuer(home: AgentHome) -> None:
    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        found = look(home, listener.getsockname()[1])
    assert found["link"].state is State.FAIL
    assert "issued" not in found["link"].text
    assert "another service" in found["link"].advice


@pytest.mark.parametrize(
    ("name", "issued", "text", "advice"),
    [
        ("other.example.org", NOW, f"does not name {NAME}", "--name NAME"),
        (NAME, NOW - timedelta(days=60), "not valid by this machine's clock", "clock"),
        (NAME, NOW + timedelta(days=60), "not valid by this machine's clock", "clock"),
    ],
)
def test_a_certificate_of_the_consortium_that_does_not_fit_is_not_called_inspection(
    name: str, issued: datetime, text: str, advice: str, tmp_path: Path, home: AgentHome
) -> None:
    with server(tmp_path, CONSORTIUM, name, issued) as port:
        found = look(home, port)["tls"]
    assert found.state is State.FAIL
    assert text in found.text
    assert advice in found.advice


def test_a_server_that_is_not_there_and_a_name_that_no_dns_knows(home: AgentHome) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    refused = look(home, port)["link"]
    assert refused.state is State.FAIL
    assert "ask the operator whether the server runs" in refused.advice
    unknown = look(home, port, server_host="nowhere.invalid")
    assert (unknown["dns"].state, list(unknown)) == (State.FAIL, ["proxy", "dns"])


def test_through_a_proxy_with_a_password_that_is_not_shown(tmp_path: Path, home: AgentHome) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text("kim:hunter2")
    credentials.chmod(0o600)
    with (
        server(tmp_path, CONSORTIUM) as port,
        ConnectProxy(names={NAME: "127.0.0.1"}, credentials="kim:hunter2") as proxy,
    ):
        settings = {"server_host": NAME, "proxy": proxy.url}
        found = look(home, port, **settings, proxy_credentials_file=credentials)
        assert {f.state for f in found.values()} == {State.OK}
        assert proxy.tunnels
        refused = look(home, port, **settings)["link"]
        assert refused.state is State.FAIL
        assert "hunter2" not in repr((found, refused))


def states(home: AgentHome, now: datetime = NOW) -> dict[str, State]:
    return {f.name: f.state for f in examine(home, LimitsOnly(), now, NO_PROXY)}


def test_open_keys_an_old_certificate_and_a_broken_policy_fail(home: AgentHome) -> None:
    assert {name: states(home)[name] for name in ("keys", "certificate", "policy", "disk")} == dict.fromkeys(
        ("keys", "certificate", "policy", "disk"), State.OK
    )
    home.identity_key_file.chmod(0o640)
    home.policy_file.write_text("require_sandbox = 'perhaps'")
    late = states(home, NOW + timedelta(days=900))
    assert {name for name, state in late.items() if state is State.FAIL} >= {"keys", "certificate", "policy", "link"}


def test_the_clock_is_compared_with_the_servers_last_word(home: AgentHome) -> None:
    (never,) = [f for f in examine(home, LimitsOnly(), NOW, NO_PROXY) if f.name == "clock"]
    assert (never.state, "`dure-agent status`" in never.advice) == (State.WARN, True)
    for ahead, state in ((2.0, State.OK), (7200.0, State.WARN)):
        LinkStanding(heard_at=NOW, server_version="1", protocol=1, clock_ahead_seconds=ahead).write(home.standing_file)
        assert states(home)["clock"] is state


def test_the_command_prints_every_line_and_its_exit_status_tells(home: AgentHome) -> None:
    home.policy_file.write_text('require_sandbox = "off"')
    told = CliRunner().invoke(app, ["doctor", "--home", str(home.path), "--json"])
    lines = json.loads(told.output)
    assert told.exit_code == 1  # nothing listens on the link's port
    assert {line["name"] for line in lines if line["state"] == "fail"} == {"link"}
    assert all(line["advice"] for line in lines if line["state"] != "ok")
    shown = CliRunner().invoke(app, ["doctor", "--home", str(home.path)])
    assert all(line["name"] in shown.output for line in lines)


def test_before_joining_the_host_alone_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text('require_sandbox = "off"')
    told = CliRunner().invoke(app, ["doctor", "--home", str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert "dure-agent join" in told.output
