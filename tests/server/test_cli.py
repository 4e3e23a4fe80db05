"""`dure-server` as an operator meets it: real commands, real processes, and everything that can be got wrong."""

import io
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import httpx
import pytest

from dure_client.enrolment.join import join
from dure_client.home import AgentHome
from dure_protocols.invitation import read_invitation
from dure_server.cli import main
from dure_server.settings import HOME_VARIABLE, STORE_VARIABLE, ServerHome
from dure_server.store import JobState, Store
from tests.server.samples import identity, job_file

PROGRAM = [sys.executable, "-m", "dure_server.cli"]


def free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@contextmanager
def monkeyed(environment: dict[str, str], folder: Path, arguments: tuple[str, ...]) -> Iterator[None]:
    """The process as a shell would start it, without the second that starting Python takes."""
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(environment):
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["dure-server", *arguments])
        patch.setattr(sys, "stdin", io.StringIO())
        yield


class Command:
    """Runs `dure-server` in a folder, on one home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        hidden = {HOME_VARIABLE, STORE_VARIABLE}
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        self.environment = {**kept, "COLUMNS": "80", "NO_COLOR": "1", HOME_VARIABLE: str(self.home)}

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What the command printed: results, or with `code` 1 its error."""
        out, err = io.StringIO(), io.StringIO()
        with monkeyed(self.environment, self.folder, arguments), redirect_stdout(out), redirect_stderr(err):
            try:
                main()
                returned: object = 0
            except SystemExit as exit_:
                returned = exit_.code or 0
        assert returned == code, out.getvalue() + err.getvalue()
        return err.getvalue() if code else out.getvalue()

    def init(self, *more: str, code: int = 0) -> str:
        link, enrolment, console = free_ports(3)
        ports = ["--link-port", str(link), "--enrolment-port", str(enrolment), "--console-port", str(console)]
        names = ["--consortium", "Millers", "--host", "127.0.0.1", "--bind", "127.0.0.1"]
        return self("init", *names, *ports, *more, code=code)

    @property
    def store(self) -> Store:
        home = ServerHome(self.home)
        return Store.open(home.store_url(home.settings()))


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture
def made(command: Command) -> Command:
    command.init()
    return command


def test_init_makes_a_home_with_private_keys_and_prints_the_fingerprint(command: Command) -> None:
    said = command.init()
    home = ServerHome(command.home)
    assert home.authority().fingerprint in "".join(said.split())
    for path in (home.root_key_file, home.server_key_file, home.settings_file):
        assert path.stat().st_mode & 0o777 == 0o600
    assert command.home.stat().st_mode & 0o777 == 0o700
    assert json.loads(command("status", "--json"))["root_fingerprint"] == home.authority().fingerprint


def test_init_overwrites_nothing(made: Command) -> None:
    key = ServerHome(made.home).root_key_file.read_bytes()
    assert "nothing is ever overwritten" in made.init(code=1)
    assert ServerHome(made.home).root_key_file.read_bytes() == key


def test_init_leaves_a_folder_with_other_things_alone(command: Command) -> None:
    command.home.mkdir()
    (command.home / "thesis.txt").write_text("years of work")
    assert "is not empty" in command.init(code=1)
    assert [path.name for path in command.home.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "https://example.org"], "without a scheme or a port"),
        (["--link-port", "99999"], "link_port"),
        (["--consortium", ""], "consortium"),
    ],
)
def test_init_names_a_wrong_setting_and_makes_nothing(command: Command, arguments: list[str], says: str) -> None:
    assert says in command.init(*arguments, code=1)
    assert not command.home.exists()


@pytest.mark.parametrize("arguments", [["status"], ["firms"], ["invite", "firm-a"], ["run"], ["approve", "firm-a"]])
def test_without_a_home_every_command_says_to_run_init(command: Command, arguments: list[str]) -> None:
    assert "dure-server init" in command(*arguments, code=1)


def test_an_invitation_is_a_private_file_and_is_not_printed(made: Command) -> None:
    said = made("invite", "firm-a", "--expires", "12h")
    path = made.folder / "firm-a.invitation"
    assert path.stat().st_mode & 0o777 == 0o600
    invitation = read_invitation(path.read_text())
    assert invitation.firm == "firm-a"
    assert "dure1_" not in said
    assert invitation.secret.hex() not in said
    assert ServerHome(made.home).authority().fingerprint in "".join(said.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["invite", "Firm A"], "cannot be a firm's name"),
        (["invite", "firm-a", "--expires", "soon"], "write 7d, 12h or 30m"),
        (["invite", "firm-a", "--expires", "999d"], "between a minute and 90 days"),
        (["invite", "firm-a", "--output", "/no/such/folder/file"], "invite firm-a again"),
        (["approve", "firm-x"], "no firm is called 'firm-x'; known firms: none yet"),
        (["revoke", "firm-x"], "no firm is called 'firm-x'"),
    ],
)
def test_what_an_operator_gets_wrong_is_told(made: Command, arguments: list[str], says: str) -> None:
    assert says in made(*arguments, code=1)


def test_an_invitation_file_is_not_overwritten(made: Command) -> None:
    made("invite", "firm-a")
    assert "firm-a.invitation exists" in made("invite", "firm-a", code=1)


def test_a_firm_that_has_not_joined_cannot_be_approved(made: Command) -> None:
    made("invite", "firm-a")
    assert "has not joined yet" in made("approve", "firm-a", "--fingerprint", "ab" * 32, code=1)


def test_an_older_or_newer_store_is_named(made: Command) -> None:
    with made.store.transaction() as tx:
        tx.session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    assert "newer than this dure-server" in made("status", code=1)
    assert "newer than this dure-server" in made("upgrade", code=1)


@pytest.mark.parametrize("setting", ["link_port", "enrolment_port", "console_port"])
def test_a_busy_port_is_named_with_its_setting_before_anything_starts(made: Command, setting: str) -> None:
    port = getattr(ServerHome(made.home).settings(), setting)
    with socket.create_server(("127.0.0.1", port)):
        said = made("run", code=1)
    assert f"port {port} on 127.0.0.1 is used by another program" in said
    assert f"another {setting} in server.toml" in said
    assert f"--{setting.replace('_', '-')}" in said
    assert list((made.home / "logs").iterdir()) == []


# The running server


class Running:
    """`dure-server run --json` as a process."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.process = subprocess.Popen(
            [*PROGRAM, "run", "--json"],
            env=command.environment,
            stdout=subprocess.PIPE,
            stderr=(command.folder / "run.err").open("wb"),
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (command.folder / "run.err").read_text()
        self.ready: dict[str, Any] = json.loads(line)

    def children(self) -> dict[int, str]:
        """Process id to command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1] if entry.name.isdigit() else ""
                if parent == str(self.process.pid):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def child(self, module: str) -> int | None:
        return next((pid for pid, line in self.children().items() if f"dure_server.{module} " in line), None)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def running(made: Command) -> Iterator[Running]:
    server = Running(made)
    yield server
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait()


def until(fact: Any, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if fact():
            return True
        time.sleep(0.05)
    return bool(fact())


def test_the_server_runs_lets_a_firm_in_restarts_what_was_killed_and_stops_whole(running: Running) -> None:
    command, settings = running.command, ServerHome(running.command.home).settings()
    assert running.ready == {
        "event": "ready",
        "console": settings.console_url,
        "enrolment": settings.enrolment_url,
        "link": f"127.0.0.1:{settings.link_port}",
    }
    # a second one on the same home is refused
    assert "another `dure-server run` works on" in command("run", code=1)

    # a firm joins over the real API, is compared and approved
    command("invite", "firm-a")
    invitation = read_invitation((command.folder / "firm-a.invitation").read_text())
    joined = join(AgentHome(command.folder / "agent"), invitation, invitation.root_fingerprint)
    assert "firm-a  joined  not connected" in command("firms")
    assert joined.identity_fingerprint in "".join(command("firms").split())
    assert "with --fingerprint" in command("approve", "firm-a", code=1)
    assert "not the one given" in command("approve", "firm-a", "--fingerprint", "ab" * 32, code=1)
    assert "is approved" in command("approve", "firm-a", "--fingerprint", joined.identity_fingerprint)
    assert json.loads(command("firms", "--json"))[0]["status"] == "approved"

    # the console shows it, and an event stream is open from here on
    with httpx.stream("GET", f"{settings.console_url}/events", timeout=10) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("retry:")
        assert "firm-a" in httpx.get(settings.console_url).text

        # a killed console comes back
        old = running.child("console")
        assert old is not None
        os.kill(old, signal.SIGKILL)
    assert until(lambda: running.child("console") not in {None, old} and _answers(settings.console_url))

    # everything stops within seconds although a stream is open again
    with httpx.stream("GET", f"{settings.console_url}/events", timeout=10) as stream:
        assert next(stream.iter_lines()).startswith("retry:")
        children, before = running.children(), time.monotonic()
        assert running.stop() == 0
    assert time.monotonic() - before < 10
    assert children
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_a_coordinator_runs_while_its_job_does(running: Running) -> None:
    with running.command.store.transaction() as tx:
        for firm in ("firm-a", "firm-b"):
            tx.firms.invite(firm)
            tx.firms.join(firm, identity(firm).public_bytes, "0.1.0")
        tx.jobs.propose(job_file("wear"))
    assert running.child("coordinator") is None
    with running.command.store.transaction() as tx:
        tx.jobs.set_state("wear", JobState.RUNNING)
    log = running.command.home / "logs" / "coordinator-wear.log"
    assert until(log.exists)
    with running.command.store.transaction() as tx:
        tx.jobs.set_state("wear", JobState.STOPPED)
    assert until(lambda: running.child("coordinator") is None)
    assert running.stop(signal.SIGINT) == 0


def test_the_public_port_speaks_tls_13_only(running: Running) -> None:
    settings = ServerHome(running.command.home).settings()
    old = ssl.create_default_context()
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        pytest.raises(ssl.SSLError),
        socket.create_connection(("127.0.0.1", settings.enrolment_port), timeout=5) as raw,
        old.wrap_socket(raw),
    ):
        pass
    assert running.stop() == 0


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
