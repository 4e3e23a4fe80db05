"""A whole consortium on this machine, for demo, benchmarks and end-to-end tests: real processes on loopback, real TLS.

Enrolment, approvals and pins are made by the same functions that the commands call, in the order in which people would:
the operator invites, the firm joins and reads its fingerprint out, the operator approves, the firms pin each other.
Only what a phone call would carry is read from a folder here.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import SecretStr

from dure_client.enrolment.join import join
from dure_client.home import AgentHome, write_file
from dure_client.jobs.approvals import Verdict, decide, known_jobs
from dure_client.policy import read_text
from dure_lab.homes import introduce
from dure_protocols.errors import DureError
from dure_protocols.invitation import read_invitation
from dure_protocols.job import JobFile
from dure_server.enrolment.operator import Operator
from dure_server.jobs import propose
from dure_server.settings import ServerHome, ServerSettings
from dure_server.setup import make_home
from dure_server.store import JobState, Store

START_SECONDS = 60.0
STOP_SECONDS = 12.0
ACTOR = "demo"


class LocalConsortiumError(DureError):
    """A process of the consortium did not start, or ended; the text names its log."""


@dataclass
class LocalProcess:
    """One process that was started here."""

    name: str
    popen: "subprocess.Popen[bytes]"
    log: Path

    def check(self) -> None:
        """Raise LocalConsortiumError if the process has ended."""
        if self.popen.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
            raise LocalConsortiumError(
                f"{self.name} ended with status {self.popen.returncode}; its log {self.log} ends:\n{tail}"
            )


@dataclass
class LocalConsortium:
    """Server and agents under one folder. Everything started is stopped by `close`, by process id.

    host: the server's address; server_prefix: a command that the server's is an argument of, for benchmarks; store_url:
    of an empty PostgreSQL database, SQLite in the server's home if None.
    """

    folder: Path
    name: str = "Dure demo"
    host: str = "127.0.0.1"
    server_prefix: tuple[str, ...] = ()
    store_url: str | None = field(default=None, repr=False)
    settings: ServerSettings = field(init=False)
    processes: dict[str, LocalProcess] = field(init=False, default_factory=dict)
    agents: dict[str, AgentHome] = field(init=False, default_factory=dict)
    _store: Store | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        link, enrolment, console = _free_ports(3)
        self.settings = ServerSettings(
            consortium=self.name,
            public_host=self.host,
            bind_host=self.host,
            link_port=link,
            enrolment_port=enrolment,
            console_port=console,
            store_url=None if self.store_url is None else SecretStr(self.store_url),
        )
        self.home = ServerHome(self.folder / "server")

    @property
    def store(self) -> Store:
        """The server's store, opened beside the server's own processes."""
        if self._store is None:
            self._store = Store.open(self.home.store_url(self.settings))
        return self._store

    def start_server(self, *, module: str = "") -> None:
        """Make the consortium and start link, console and supervisor. Returns when all of them answer.

        `module`: another than the product's server, for a benchmark.
        """
        if not self.home.settings_file.exists():
            make_home(self.home, self.settings, ACTOR, datetime.now(UTC))
        program = ["-m", module] if module else ["-m", "dure_server.cli", "run", "--json"]
        command = [*program, "--home", str(self.home.path)]
        log = self.folder / "server.log"
        said_before = log.stat().st_size if log.exists() else 0  # by a server that was started here before
        process = self._start("server", command, log, self.server_prefix)
        self._wait(
            lambda: b'"ready"' in process.log.read_bytes()[said_before:], "the server did not come up", [process]
        )

    def enrol(self, firm: str) -> AgentHome:
        """Invite, join over HTTPS, compare fingerprints, approve."""
        operator = Operator(self.store, self.settings.enrolment_url, ACTOR)
        home = AgentHome(self.folder / "firms" / firm)
        invitation = read_invitation(operator.invite(firm).to_text())
        joined = join(home, invitation, invitation.root_fingerprint)
        operator.approve(firm, joined.identity_fingerprint)
        self.agents[firm] = home
        return home

    def introduce(self, model: str) -> None:
        """Each firm pins every other firm's fingerprint and puts the installed model on its allow-list."""
        introduce(self.agents, model)

    def set_policy(self, **values: int) -> None:
        """Change numbers of every firm's policy, as its people would in the file."""
        for home in self.agents.values():
            lines = read_text(home.policy_file).splitlines()
            for name, value in values.items():
                lines = [f"{name} = {value}" if line.startswith(f"{name} =") else line for line in lines]
            write_file(home.policy_file, ("\n".join(lines) + "\n").encode())

    def start_agent(self, firm: str, *, module: str = "", prefix: Iterable[str] = ()) -> None:
        """Start a firm's agent: `dure-agent run`, or another module; prefix: a command that it is an argument of."""
        program = ["-m", module] if module else ["-m", "dure_client.cli", "run"]
        arguments = [*program, "--home", str(self.agents[firm].path)]
        self._start(firm, arguments, self.folder / "firms" / f"{firm}.log", prefix)

    def start(self, name: str, arguments: Iterable[str]) -> None:
        """Start another Python program that belongs here, such as a host of many agents."""
        self._start(name, arguments, self.folder / f"{name}.log")

    def propose(self, draft: Path) -> JobFile:
        """Make a job of a draft and start it: from here on its coordinator asks the firms to approve."""
        job = propose(self.home, self.store, draft, ACTOR)
        with self.store.transaction() as at:
            at.jobs.set_state(job.id, JobState.RUNNING)
        return job

    def approve_job(self, job: JobFile, *, seconds: float = START_SECONDS) -> None:
        """At each firm, wait for the proposal, compare its digest with the operator's, and approve."""
        waiting = dict(self.agents)
        deadline = time.monotonic() + seconds
        while waiting:
            for firm, home in list(waiting.items()):
                proposed = [known.job for known in known_jobs(home) if known.job.digest() == job.digest()]
                if proposed:
                    decide(home, proposed[0], Verdict.APPROVED, datetime.now(UTC))
                    del waiting[firm]
            self.check()
            if waiting and time.monotonic() > deadline:
                raise LocalConsortiumError(
                    f"{', '.join(waiting)} did not get the proposal within {seconds:.0f} s; see {self.folder}"
                )
            time.sleep(0.05)

    def check(self) -> None:
        """Raise LocalConsortiumError if a process has ended."""
        for process in self.processes.values():
            process.check()

    def stop(self, name: str, *, kill: bool = False) -> None:
        """End one process: politely, or as a crash would (SIGKILL)."""
        process = self.processes.pop(name)
        process.popen.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        process.popen.wait(STOP_SECONDS)

    def close(self) -> None:
        """Stop everything that was started, agents first. Waits for each; what does not end in time is killed."""
        running = [process.popen for process in reversed(list(self.processes.values()))]
        for popen in running:
            if popen.poll() is None:
                popen.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for popen in running:
            try:
                popen.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()
        self.processes.clear()
        if self._store is not None:
            self._store.close()
            self._store = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, name: str, arguments: Iterable[str], log: Path, prefix: Iterable[str] = ()) -> LocalProcess:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            popen = subprocess.Popen(
                [*prefix, sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=_environment(self.folder / "flwr" / name),
                start_new_session=True,  # Ctrl-C reaches whoever holds this object, who then stops them in order
            )
        self.processes[name] = LocalProcess(name, popen, log)
        return self.processes[name]

    def _wait(self, holds: Callable[[], bool], otherwise: str, processes: Iterable[LocalProcess]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not holds():
            for process in processes:
                process.check()
            if time.monotonic() > deadline:
                raise LocalConsortiumError(f"{otherwise} within {START_SECONDS:.0f} s; see {self.folder}")
            time.sleep(0.05)


def write_draft(path: Path, values: Mapping[str, object]) -> Path:
    """Write a job draft as TOML: plain values first, then a table for each mapping."""
    plain = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
    tables = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    lines = [f"{name} = {_toml(value)}" for name, value in plain.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: object) -> str:
    """A TOML value: scalars and lists as in JSON, mappings as inline tables."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _environment(flwr_home: Path) -> dict[str, str]:
    flwr_home.mkdir(parents=True, exist_ok=True)
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(flwr_home)}
    return {**os.environ, **quiet, "PYTHONUNBUFFERED": "1"}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
