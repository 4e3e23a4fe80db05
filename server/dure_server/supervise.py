"""`dure-server run`: one parent that starts the server's processes, starts crashed ones again, and stops them all.

    link · console · one coordinator for each job in state running

A child that ends is started again after a pause that doubles from 1 to 30 seconds, and begins at 1 again once it has
run for a minute. Children are in sessions of their own, so Ctrl-C reaches the parent only, which then ends them; and if
the parent is killed outright, the kernel (Linux) does.

Errors: SupervisorError.
"""

import contextlib
import ctypes
import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from sqlalchemy.exc import DBAPIError

from dure_protocols.errors import DureError
from dure_server.ports import check_ports_are_free, ports_of
from dure_server.processes import RunningFile, RunningProcess
from dure_server.settings import ServerHome, ServerSettings
from dure_server.store import JobState, Store

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
HEALTHY_SECONDS = 60.0
STOP_SECONDS = 8.0
"""How long children may take to end after SIGTERM."""
FAREWELL_SECONDS = 30.0
"""How long a coordinator may go on after its job has ended: it has last messages to deliver."""
HALT_SECONDS = 3.0
"""How long one may go on after its job was paused or stopped: it notices by itself, and takes back what it asked."""
TICK_SECONDS = 0.2
START_SECONDS = 60.0
ROTATE_SECONDS = 60.0
MAX_LOG_BYTES = 20 << 20
"""How large a process's log may become; the one before is kept beside it."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class SupervisorError(DureError):
    """The server cannot be started, or one of its processes does not come up."""


@dataclass(frozen=True)
class ChildSpec:
    """A process to keep alive. `argv` MUST hold no secret: every user of the machine can read it.

    job: the one that it is for, "" where it is for all.
    """

    name: str
    argv: Sequence[str]
    log_file: Path
    job: str = ""


@dataclass
class _Child:
    spec: ChildSpec
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    next_start_at: float = 0.0
    pause_seconds: float = FIRST_PAUSE_SECONDS
    unwanted_since: float | None = None
    starts: int = field(default=0)


class Supervisor:
    """Keeps children alive. Not thread-safe; `tick` is called again and again by one loop."""

    def __init__(self, environment: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._environment = dict(environment)
        self._clock = clock
        self._children: dict[str, _Child] = {}
        self._rotate_at = clock()

    def want(self, specs: Sequence[ChildSpec], *, halted: frozenset[str] = frozenset()) -> None:
        """Say which children there should be. One that is no longer wanted may end by itself for a while, unless it
        is named in `halted`: then it is told to end soon."""
        for spec in specs:
            child = self._children.setdefault(spec.name, _Child(spec))
            child.unwanted_since = None
        wanted = {spec.name for spec in specs}
        for name, child in self._children.items():
            if name not in wanted and child.unwanted_since is None:
                child.unwanted_since = self._clock() - (FAREWELL_SECONDS - HALT_SECONDS if name in halted else 0)

    def tick(self) -> None:
        """Notice children that ended, start those that are due, end those that are not wanted."""
        now = self._clock()
        if now >= self._rotate_at:
            self._rotate_at = now + ROTATE_SECONDS
            for child in self._children.values():
                rotate(child.spec.log_file, MAX_LOG_BYTES)
        for name, child in list(self._children.items()):
            if child.process is not None and child.process.poll() is not None:
                self._ended(child, now)
            if child.unwanted_since is not None:
                if child.process is None:
                    del self._children[name]
                elif now - child.unwanted_since >= FAREWELL_SECONDS:
                    child.process.terminate()
            elif child.process is None and now >= child.next_start_at:
                self._start(child, now)

    def running(self) -> list[RunningProcess]:
        """The supervisor itself and its children, as they are now; a child that waits to be started has no process."""
        own = RunningProcess("supervisor", "", os.getpid(), 1)
        return [own, *(_running(child) for child in self._children.values())]

    def starts(self, name: str) -> int:
        """How often a child was started."""
        return self._children[name].starts

    def is_running(self, name: str) -> bool:
        """Whether a child's process is there."""
        child = self._children.get(name)
        return child is not None and child.process is not None and child.process.poll() is None

    def stop(self) -> None:
        """End all children: the latest started first, each by SIGTERM, by SIGKILL if it takes too long."""
        running = [child.process for child in reversed(self._children.values()) if child.process is not None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._children.clear()

    def _start(self, child: _Child, now: float) -> None:
        with child.spec.log_file.open("ab") as log:
            child.process = subprocess.Popen(
                child.spec.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
                # Safe here: the supervisor has one thread, and the function makes one system call.
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )
        child.started_at = now
        child.starts += 1
        logger.info("%s started (process %d)", child.spec.name, child.process.pid)

    def _ended(self, child: _Child, now: float) -> None:
        code = child.process.returncode if child.process is not None else 0
        child.process = None
        if child.unwanted_since is not None:
            return
        if now - child.started_at >= HEALTHY_SECONDS:
            child.pause_seconds = FIRST_PAUSE_SECONDS
        child.next_start_at = now + child.pause_seconds
        logger.warning(
            "%s ended with code %d (%s); started again in %.0f s. Log: %s",
            child.spec.name,
            code,
            last_line(child.spec.log_file) or "it said nothing",
            child.pause_seconds,
            child.spec.log_file,
        )
        child.pause_seconds = min(child.pause_seconds * 2, LONGEST_PAUSE_SECONDS)


def run_server(
    home: ServerHome,
    settings: ServerSettings,
    store: Store,
    ready: Callable[[], None],
    stopped: Callable[[], bool],
    *,
    json_logs: bool = False,
) -> None:
    """Run the server until `stopped()`. Calls `ready` once, when every port answers. json_logs: of the children.

    Raises SettingsError or SupervisorError, having stopped whatever it started.
    """
    with _only_one(home):
        check_ports_are_free(settings)
        with store.transaction() as tx:
            tx.firms.forget_connections()  # what a link that was killed could not take back
        supervisor = Supervisor(_environment(home))
        services = [_module(home, name, json_logs) for name in ("link", "console")]
        running = RunningFile(home.processes_file)
        try:
            supervisor.want(services)
            _wait_until_up(supervisor, services, settings, stopped)
            if not stopped():
                ready()
            jobs = _Jobs(home, store, json_logs)
            while not stopped():
                supervisor.want([*services, *jobs.wanted()], halted=jobs.halted)
                supervisor.tick()
                running.write(supervisor.running())
                time.sleep(TICK_SECONDS)
        finally:
            supervisor.stop()
            running.remove()


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or Ctrl-C has come, while the block runs."""
    asked = False

    def ask(_: int, __: FrameType | None) -> None:
        nonlocal asked
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def rotate(log: Path, max_bytes: int) -> None:
    """Empty a log that has grown too large, its content kept as LOG.1 in place of the one before.

    The process that writes it appends, and so goes on at the beginning; a line that it writes meanwhile may be lost.
    """
    if not log.exists() or log.stat().st_size <= max_bytes:
        return
    shutil.copyfile(log, log.with_name(f"{log.name}.1"))
    os.truncate(log, 0)


def last_line(path: Path) -> str:
    """The last line of a log that says something, for an error message."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""


def _wait_until_up(
    supervisor: Supervisor, services: Sequence[ChildSpec], settings: ServerSettings, stopped: Callable[[], bool]
) -> None:
    deadline = time.monotonic() + START_SECONDS
    waiting = list(ports_of(settings))
    while waiting and not stopped():
        supervisor.tick()
        for spec in services:
            if not supervisor.is_running(spec.name):
                # While starting there is nothing to go on with: the reason is wanted on the terminal, not in a log.
                said = last_line(spec.log_file) or "it said nothing"
                raise SupervisorError(f"{spec.name} did not start: {said} (its log: {spec.log_file})")
        waiting = [port for port in waiting if not _answers(port.host, port.number)]
        if waiting and time.monotonic() > deadline:
            late = ", ".join(f"{port.setting} {port.number}" for port in waiting)
            logs = services[0].log_file.parent
            raise SupervisorError(f"after {START_SECONDS:.0f} s nothing answers on {late}; see the logs in {logs}")
        time.sleep(TICK_SECONDS / 2)


def _answers(host: str, port: int) -> bool:
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


class _Jobs:
    """Which coordinators there should be. While the store cannot be asked, what it said last stands."""

    def __init__(self, home: ServerHome, store: Store, json_logs: bool) -> None:
        self._home, self._store, self._json_logs = home, store, json_logs
        self._wanted: list[ChildSpec] = []
        self._is_away = False
        self.halted: frozenset[str] = frozenset()

    def wanted(self) -> list[ChildSpec]:
        """The coordinators of the running jobs; `halted` then names those that are to end at once."""
        try:
            self._wanted = _coordinators(self._home, self._store, self._json_logs)
            self.halted = _halted(self._store)
        except DBAPIError as error:
            if not self._is_away:
                logger.warning("the store cannot be asked which jobs run (%s); asked again", _kind_of(error))
            self._is_away = True
        else:
            self._is_away = False
        return self._wanted


def _kind_of(error: DBAPIError) -> str:
    """What kind of trouble it is; its text may quote the store's address."""
    return type(error.orig).__name__


def _coordinators(home: ServerHome, store: Store, json_logs: bool) -> list[ChildSpec]:
    with store.reading() as tx:
        jobs = [job.id for job in tx.jobs.in_state(JobState.RUNNING)]
    return [
        ChildSpec(
            f"coordinator of {job}",
            [*_argv(home, "coordinator", json_logs), "--job", job],
            home.logs / f"coordinator-{job}.log",
            job,
        )
        for job in jobs
    ]


def _halted(store: Store) -> frozenset[str]:
    with store.reading() as tx:
        jobs = [*tx.jobs.in_state(JobState.STOPPED), *tx.jobs.in_state(JobState.PAUSED)]
    return frozenset(f"coordinator of {job.id}" for job in jobs)


def _module(home: ServerHome, name: str, json_logs: bool) -> ChildSpec:
    return ChildSpec(name, _argv(home, name, json_logs), home.logs / f"{name}.log")


def _argv(home: ServerHome, module: str, json_logs: bool) -> list[str]:
    plain = [sys.executable, "-m", f"dure_server.{module}", "--home", str(home.path)]
    return [*plain, "--json"] if json_logs else plain


def _environment(home: ServerHome) -> dict[str, str]:
    return {
        **os.environ,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(home.flwr),
        "PYTHONUNBUFFERED": "1",
    }


@contextlib.contextmanager
def _only_one(home: ServerHome) -> Iterator[None]:
    with home.lock_file.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SupervisorError(
                f"another `dure-server run` works on {home.path}: stop it first, or name another home"
            ) from error
        yield


def _running(child: _Child) -> RunningProcess:
    name = "coordinator" if child.spec.job else child.spec.name
    return RunningProcess(name, child.spec.job, child.process.pid if child.process else None, child.starts)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
