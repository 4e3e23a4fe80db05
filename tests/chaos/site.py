"""Four firms and a server as real processes, in which faults happen; afterwards the oracle says whether all is well."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from sqlalchemy.exc import DBAPIError

from dure_client.home import AgentHome, write_file
from dure_client.policy import read_text
from dure_lab.consortium import LocalConsortium, write_draft
from dure_lab.homes import OWN_TERMS, by_itself
from dure_models.contract import Column, ColumnType, DataContract, Role
from dure_protocols.job import JobFile
from dure_server.store import JobState, StoreConflictError
from tests.chaos import oracle
from tests.chaos.controller import Controller
from tests.chaos.disks import Disk
from tests.chaos.faults import FIRMS, Action, Fault
from tests.chaos.points import DIE, VARIABLE, Point
from tests.chaos.proxy import Proxy
from tests.chaos.trainer import BITS, CLIP, COUNT_CAP
from tests.end_to_end import tiny
from tests.postgres import PrivateServer

PARAMETERS = 3000  # a vector of 6 kB: more than travels inside a message
DISK_MIB = 400  # above the room that the link keeps free
PATIENCE_SECONDS = 150.0


@dataclass(frozen=True)
class Outcome:
    """How a job ended. attempts: beyond one a round; absent: (round, firm) whose update is in no sum; died: processes
    that ended though nobody had killed them."""

    job: str
    seconds: float
    happened: tuple[Fault, ...]
    pending: tuple[Fault, ...]
    attempts: int
    absent: tuple[tuple[int, str], ...]
    died: tuple[str, ...] = ()
    problem: str = ""


@dataclass
class Site:
    """See `running`."""

    consortium: LocalConsortium
    controller: Controller = field(init=False)
    proxies: dict[str, Proxy] = field(default_factory=dict)
    disks: dict[str, Disk] = field(default_factory=dict)
    postgres: PrivateServer | None = None
    _away_until: dict[str, float] = field(default_factory=dict)
    _second_ones: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    _timers: list[threading.Timer] = field(default_factory=list)
    _killed: set[str] = field(default_factory=set)
    _died: list[str] = field(default_factory=list)
    _num_jobs: int = 0

    def __post_init__(self) -> None:
        self.controller = Controller(self.consortium.folder / "chaos.sock", self._perform)
        os.environ[VARIABLE] = str(self.consortium.folder / "chaos.sock")

    def found(self) -> None:
        """Make the consortium and start everything."""
        consortium = self.consortium
        consortium.start_server(module="tests.chaos.server")
        columns = (Column(name="target", type=ColumnType.FLOAT, role=Role.TARGET, range=(0, 1)),)
        contract = DataContract(name="none", title="No data", columns=columns)
        (consortium.folder / "contract.toml").write_text(contract.to_toml())
        for number, firm in enumerate(FIRMS):
            home = consortium.enrol(firm)
            write_file(home.data_file, f'[train]\npaths = ["{number}.csv"]\n'.encode())
            self.proxies[firm] = Proxy(consortium.settings.link_port)
            home.write_config(home.config().model_copy(update={"link_port": self.proxies[firm].port}))
        consortium.introduce("no-training")
        for home in consortium.agents.values():
            write_file(home.policy_file, by_itself(read_text(home.policy_file)).encode())
        for firm in FIRMS:
            consortium.start_agent(firm, module="tests.chaos.agent")

    def run(
        self,
        faults: Sequence[Fault],
        *,
        rounds: int,
        mode: str = "retry",
        whole: bool = True,
        keep_sums: bool = True,
        name: str = "",
        seconds: float = PATIENCE_SECONDS,
    ) -> Outcome:
        """Run one job in which these faults happen, and ask the oracle. whole: a round without a firm is a failure;
        keep_sums: so that the oracle can look at every sum, which the server deletes otherwise.

        Never raises for what the job does: `problem` says it.
        """
        self._num_jobs += 1
        self._died.clear()
        name = name or f"job-{self._num_jobs:03d}"
        self.controller.plan(name, faults)
        began = time.monotonic()
        job = self.consortium.propose(self._draft(name, rounds, mode, whole, keep_sums))
        problem = ""
        try:
            self._see_through(job, began + seconds)
            published, server = tiny.published(self.consortium, job), self.consortium.home
            oracle.check(job, published, server, self._homes, whole=whole)
            if keep_sums:
                oracle.check_sums(job, published, server)
            else:
                oracle.check_deleted(published, server)
        except AssertionError as error:
            problem = str(error)
        took = time.monotonic() - began
        self._settle()
        if problem:
            self._give_up(job)
        if self.controller.errors:
            problem = f"{problem}\nthe harness failed: {self.controller.errors}"
        return self._outcome(job, took, problem)

    def close(self) -> None:
        """End everything. Fails if a process is left."""
        self._settle()
        self.consortium.close()
        self.controller.close()
        for proxy in self.proxies.values():
            proxy.close()
        os.environ.pop(VARIABLE, None)
        left = self.processes()
        for process in left:
            process.kill()
        assert not left, f"processes are left: {left}"

    def processes(self) -> list[psutil.Process]:
        """Every process that works on this consortium's folder."""
        folder = str(self.consortium.folder)
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if process.pid != os.getpid() and any(folder in word for word in words):
                found.append(process)
        return found

    @property
    def _homes(self) -> Mapping[str, AgentHome]:
        return self.consortium.agents

    def _draft(self, name: str, rounds: int, mode: str, whole: bool, keep_sums: bool) -> Path:
        values = {
            "id": name,
            "title": "Chaos",
            "model": "no-training",
            "contract": "contract.toml",
            "rounds": rounds,
            "mode": mode,
            "minimum_cohort": len(FIRMS) if whole else len(FIRMS) - 1,
            # Every first model is zeros; another length is another model, on which a firm has not trained before.
            "options": {"parameters": PARAMETERS + self._num_jobs},
            "codec": {"bits": BITS, "clip": CLIP, "count_cap": COUNT_CAP},
            "training": {"learning_rate": 1.0},
            "phase_seconds": 15.0,
            "operation": {"keep_sums": keep_sums},
        }
        return write_draft(self.consortium.folder / f"{name}.toml", {**OWN_TERMS, **values})

    def _see_through(self, job: JobFile, deadline: float) -> None:
        """Wait for the job's end, and start again what is dead, as a machine's service manager does."""
        finals = [home.job_folder(job.id) / "final.f32" for home in self._homes.values()]
        while True:
            with contextlib.suppress(DBAPIError):  # the store itself may be away
                self._revive()
                state, reason = tiny.state(self.consortium, job)
                told = f"{state}: {reason or tiny.sentence(self.consortium, job)}"
                assert state in {JobState.RUNNING, JobState.FINISHED}, told
                if state is JobState.FINISHED and all(file.exists() for file in finals):
                    return
                late = time.monotonic() > deadline
                assert not late, f"not over in time, {told}\n{tiny.last_words(self.consortium)}"
            time.sleep(0.05)

    def _revive(self) -> None:
        for name in ("server", *FIRMS):
            process = self.consortium.processes.get(name)
            is_dead = process is None or process.popen.poll() is not None
            if not is_dead or time.monotonic() < self._away_until.get(name, 0.0):
                continue
            self.consortium.processes.pop(name, None)
            if name not in self._killed:
                self._died.append(name)
            self._killed.discard(name)
            if name == "server":
                self.consortium.start_server(module="tests.chaos.server")
            else:
                self.consortium.start_agent(name, module="tests.chaos.agent")

    def _settle(self) -> None:
        """Undo what is still going on, and end second coordinators."""
        for timer in self._timers:
            timer.join()
        self._timers.clear()
        for popen in self._second_ones:
            popen.kill()
            popen.wait()
        self._second_ones.clear()

    def _give_up(self, job: JobFile) -> None:
        """Stop a job that is not over, so that the next one is alone."""
        with contextlib.suppress(StoreConflictError, DBAPIError), self.consortium.store.transaction() as at:
            at.jobs.set_state(job.id, JobState.STOPPED)

    def _outcome(self, job: JobFile, took: float, problem: str) -> Outcome:
        with self.consortium.store.reading() as at:
            rows = at.rounds.of(job.id)
        published = tiny.published(self.consortium, job)
        absent = [(row.number, firm) for row in published for firm in FIRMS if firm not in row.summed]
        spent = sum(bool(row.members) for row in rows) - len(published)
        happened, pending = tuple(self.controller.happened), tuple(self.controller.pending)
        return Outcome(job.id, took, happened, pending, spent, tuple(absent), tuple(self._died), problem.strip())

    def _perform(self, fault: Fault, point: Point) -> str:
        match fault.action:
            case Action.KILL:
                return self._kill(fault, point)
            case Action.CUT | Action.STALL | Action.SLOW:
                for firm in [fault.firm] if fault.firm else FIRMS:
                    proxy = self.proxies[firm]
                    {Action.CUT: proxy.cut, Action.STALL: proxy.stall, Action.SLOW: proxy.slow}[fault.action](
                        fault.seconds
                    )
            case Action.FULL_DISK:
                disk = self.disks[fault.firm or "server"]
                disk.fill()
                self._later(fault.seconds, disk.free)
            case Action.READ_ONLY:
                assert self.postgres is not None
                self.postgres.set_read_only(on=True)
                self._later(fault.seconds, lambda: self.postgres.set_read_only(on=False))
            case Action.RESTART_STORE:
                assert self.postgres is not None
                self.postgres.stop()
                self._later(fault.seconds, self.postgres.start)
            case Action.SECOND_COORDINATOR:
                self._start_second(point.job)
            case Action.DUPLICATE | Action.REORDER:
                return fault.action.value
            case Action.DELAY:
                return f"delay {fault.seconds}"
        return ""

    def _later(self, seconds: float, work) -> None:
        timer = threading.Timer(seconds, work)
        self._timers.append(timer)
        timer.start()

    def _kill(self, fault: Fault, point: Point) -> str:
        if fault.kind in {"agent", "server"}:
            self._killed.add(fault.firm or "server")
            self._away_until[fault.firm or "server"] = time.monotonic() + fault.seconds
        if fault.target == point.process:
            return DIE
        match fault.kind:
            case "agent":
                self._kill_all([self._process(fault.firm)])
            case "server":
                parent = self._process("server")
                self._kill_all([parent, *parent.children(recursive=True)] if parent else [])
            case "trainer":
                self._kill_all([self._trainer(fault.firm, point.job)])
            case "coordinator":
                self._kill_all([tiny.server_part(self.consortium, "tests.chaos.coordinator", point.job)])
            case kind:
                module = {"link": "tests.chaos.link", "console": "dure_server.console"}[kind]
                self._kill_all([tiny.server_part(self.consortium, module)])
        return ""

    def _trainer(self, firm: str, job: str) -> psutil.Process | None:
        scratch = str(self._homes[firm].job_folder(job) / "scratch")
        agent = self._process(firm)
        for child in agent.children(recursive=True) if agent else []:
            with contextlib.suppress(psutil.Error):
                if scratch in child.cmdline():
                    return child
        return None

    def _process(self, name: str) -> psutil.Process | None:
        process = self.consortium.processes.get(name)
        with contextlib.suppress(psutil.Error):
            return None if process is None else psutil.Process(process.popen.pid)
        return None

    def _kill_all(self, processes: Sequence[psutil.Process | None]) -> None:
        """kill -9 of those that are there: one that an earlier fault has killed is dead already."""
        for process in processes:
            with contextlib.suppress(psutil.Error):
                if process is not None:
                    process.kill()

    def _start_second(self, job: str) -> None:
        command = [sys.executable, "-m", "dure_server.coordinator", "--home", str(self.consortium.home.path)]
        with (self.consortium.home.logs / "second.log").open("ab") as log:
            self._second_ones.append(subprocess.Popen([*command, "--job", job], stdout=log, stderr=log))


@contextlib.contextmanager
def running(*, postgres: PrivateServer | None = None, disks: Sequence[str] = ()) -> Iterator[Site]:
    """A running consortium, over SQLite or a PostgreSQL server. disks: who gets a small disk: "server", a firm."""
    folder = Path(tempfile.mkdtemp(prefix="dure-"))
    mounted = {name: Disk(folder / ("server" if name == "server" else f"firms/{name}"), DISK_MIB) for name in disks}
    try:
        consortium = LocalConsortium(folder, "Chaos", store_url=postgres.url if postgres else None)
        site = Site(consortium, disks=mounted, postgres=postgres)
        try:
            site.found()
            yield site
        finally:
            site.close()
    finally:
        for disk in mounted.values():
            disk.close()
        shutil.rmtree(folder, ignore_errors=True)
