"""`dure bench scale`: many firms in one job through one link, all on this machine.

Server, link, coordinator, keys, ledgers, masks and messages are the product's; the agents are threads of a few host
programs, and nobody trains. So the agents' work, which is spread over as many machines elsewhere, is done on these
cores, too: the result says how much of the machine it took.
"""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from dure_client.home import AgentConfig, AgentHome, keep_or_make_private, write_file
from dure_lab.bench.round import MODEL, WARM_UP_ROUNDS, draft_of
from dure_lab.bench.spread import Spread, significant
from dure_lab.consortium import LocalConsortium, LocalConsortiumError
from dure_lab.homes import by_itself
from dure_models.digest import model_digest
from dure_protocols.certificates import key_to_pem, new_serial, new_tls_key, read_certificate, signing_request
from dure_protocols.identity import Identity
from dure_protocols.job import JobFile
from dure_server.store import JobState, RoundState
from dure_server.store.tables import Round

CONNECT_SECONDS = 120.0
_MIB = 1 << 20
_KINDS = {
    "dure_server.link": "link",
    "dure_server.console": "console",
    "dure_server.coordinator": "coordinator",
    "dure_server.cli": "supervisor",
    "dure_lab.bench.host": "agents",
}


class Idle(BaseModel):
    """What agents cost that wait for something to do. cores: of one core, 1 is all of it; the rest is per agent."""

    model_config = ConfigDict(frozen=True)

    link_cores: float
    agents_cores: float
    link_threads: int
    link_connections_per_agent: float
    threads_per_agent: float
    connections_per_agent: float
    link_rss_mib: int


class ScaleBenchmark(BaseModel):
    """What `dure bench scale --json` prints.

    overhead_seconds: median wall time from one published round to the next, in which nothing trains; seconds: the same
    and each phase, with spread. cpu_seconds_per_round: by kind of process. server_peak_rss_mib: by kind of process,
    mapped files included; agents_rss_mib: of all host programs together.
    """

    model_config = ConfigDict(frozen=True)

    agents: int
    parameters: int
    store: str
    mode: str
    rounds: int
    overhead_seconds: float
    seconds: Mapping[str, Spread]
    cpu_seconds_per_round: Mapping[str, float]
    bytes_up: int
    bytes_down: int
    server_peak_rss_mib: Mapping[str, int]
    server_peak_rss_mib_together: int
    agents_rss_mib: int
    idle: Idle


def bench_scale(
    num_agents: int,
    num_parameters: int,
    num_rounds: int,
    *,
    num_hosts: int = 2,
    store_url: str | None = None,
    idle_seconds: float = 20.0,
) -> ScaleBenchmark:
    """Run it: `num_rounds` measured rounds after a warm-up. store_url: of an empty PostgreSQL database.

    Raises LocalConsortiumError.
    """
    with (
        tempfile.TemporaryDirectory(prefix="dure-bench-") as folder,
        LocalConsortium(Path(folder), store_url=store_url) as consortium,
    ):
        _found(consortium, num_agents, num_hosts)
        idle = _idle(consortium, num_agents, idle_seconds)
        options = {"parameters": num_parameters}
        job = consortium.propose(draft_of(consortium.folder, options, num_rounds + WARM_UP_ROUNDS))
        watch = _Watch(consortium)
        _watch_until_done(consortium, job, watch)
        with consortium.store.reading() as at:
            finished = [row for row in at.rounds.of(job.id) if row.state is RoundState.FINISHED]
        rounds = [row for row in finished if row.number <= job.rounds]
        return _result(job, rounds, watch, idle, "sqlite" if store_url is None else "postgresql")


def _found(consortium: LocalConsortium, num_agents: int, num_hosts: int) -> None:
    """A running server, and every agent connected to it."""
    consortium.start_server()
    names = [f"firm-{number:03d}" for number in range(num_agents)]
    for name in names:
        consortium.agents[name] = _admit(consortium, name)
    _introduce(consortium.agents)
    for number in range(num_hosts):
        homes = [str(consortium.agents[name].path) for name in names[number::num_hosts]]
        consortium.start(f"host-{number}", ["-m", "dure_lab.bench.host", *homes])
    _wait_until_connected(consortium, num_agents)


def _admit(consortium: LocalConsortium, name: str) -> AgentHome:
    """Enrol a firm as invitation, joining and approval would, without the API, which strangers may not ask so often."""
    settings, authority = consortium.settings, consortium.home.authority()
    home = AgentHome(consortium.folder / "firms" / name)
    home.create()
    identity, key, now = Identity.from_seed(os.urandom(32)), new_tls_key(), datetime.now(UTC)
    keep_or_make_private(home.identity_key_file, identity.to_pem())
    keep_or_make_private(home.tls_key_file, key_to_pem(key))
    pem = authority.issue_client(name, signing_request(key), now, serial=new_serial())
    write_file(home.tls_certificate_file, pem)
    write_file(home.root_file, authority.certificate_pem)
    home.write_config(
        AgentConfig(
            consortium=settings.consortium,
            firm=name,
            server_host=settings.public_host,
            enrolment_port=settings.enrolment_port,
            link_port=settings.link_port,
            root_fingerprint=authority.fingerprint,
        )
    )
    write_file(home.data_file, b'[train]\npaths = ["none.csv"]\n')
    with consortium.store.transaction() as at:
        at.firms.invite(name)
        at.firms.join(name, identity.public_bytes, "bench")
        at.firms.approve(name)
        at.certificates.add(read_certificate(pem), pem)
    return home


def _introduce(agents: Mapping[str, AgentHome]) -> None:
    """Write each firm's policy: everybody else pinned, the installed model allowed, and jobs with it approved."""
    pins = {name: home.identity().fingerprint for name, home in agents.items()}
    digest = model_digest(MODEL)
    for name, home in agents.items():
        lines = ['approve_jobs = "ask"', "ask_person = []", "purposes = []", 'require_sandbox = "off"', "[firms]"]
        lines += [f'{other} = "{value}"' for other, value in pins.items() if other != name]
        lines += ["[[allowed_models]]", f'name = "{MODEL}"', f'digest = "{digest}"']
        write_file(home.policy_file, by_itself("\n".join(lines)).encode())


def _wait_until_connected(consortium: LocalConsortium, num_agents: int) -> None:
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        consortium.check()
        with consortium.store.reading() as at:
            here = sum(firm.connected_since is not None for firm in at.firms.all())
        if here == num_agents:
            return
        if time.monotonic() > deadline:
            raise LocalConsortiumError(f"{here} of {num_agents} agents connected; see {consortium.folder}")
        time.sleep(0.2)


def _idle(consortium: LocalConsortium, num_agents: int, seconds: float) -> Idle:
    """Look at the processes while nothing happens."""
    time.sleep(2.0)  # what connecting has left to do
    family = _family(consortium)
    before = {kind: sum(_cpu_seconds(member) for member in members) for kind, members in family.items()}
    time.sleep(seconds)
    spent = {
        kind: (sum(_cpu_seconds(member) for member in members) - before[kind]) / seconds
        for kind, members in family.items()
    }
    link, hosts = family["link"][0], family["agents"]
    port = consortium.settings.link_port
    served = [each for each in link.net_connections("tcp") if each.laddr.port == port and each.status == "ESTABLISHED"]
    held = [each for host in hosts for each in host.net_connections("tcp") if each.status == "ESTABLISHED"]
    return Idle(
        link_cores=significant(spent["link"]),
        agents_cores=significant(spent["agents"]),
        link_threads=link.num_threads(),
        link_connections_per_agent=len(served) / num_agents,
        threads_per_agent=sum(host.num_threads() for host in hosts) / num_agents,
        connections_per_agent=len(held) / num_agents,
        link_rss_mib=link.memory_info().rss // _MIB,
    )


@dataclass
class _Watch:
    """CPU seconds of each kind of process when rounds ended, and peaks of memory."""

    consortium: LocalConsortium
    cpu: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)
    agents_rss: int = 0

    def look(self, num_finished: int) -> None:
        """Note how things are after so many rounds."""
        family = _family(self.consortium)
        if not self.cpu or self.cpu[-1][0] != num_finished:
            spent = {kind: sum(_cpu_seconds(member) for member in members) for kind, members in family.items()}
            self.cpu.append((num_finished, spent))
        for kind, members in family.items():
            self.peaks[kind] = max([self.peaks.get(kind, 0), *(_peak_mib(member) for member in members)])
        resident = 0
        for host in family.get("agents", []):
            resident += host.memory_info().rss
        self.agents_rss = max(self.agents_rss, resident // _MIB)

    def cpu_per_round(self) -> dict[str, float]:
        """CPU seconds a round, by kind, over the rounds after the warm-up."""
        looks = [look for look in self.cpu if look[0] >= WARM_UP_ROUNDS]
        (first, before), (last, after) = looks[0], looks[-1]
        return {kind: significant((after[kind] - before.get(kind, 0.0)) / max(1, last - first)) for kind in after}


def _watch_until_done(consortium: LocalConsortium, job: JobFile, watch: _Watch) -> None:
    num_finished = 0
    while num_finished < job.rounds:
        with consortium.store.reading() as at:
            row = at.jobs.get(job.id)
            rounds = [one for one in at.rounds.of(job.id) if one.state is RoundState.FINISHED]
        num_finished = len([one for one in rounds if one.number <= job.rounds])
        if row.state is not JobState.RUNNING and num_finished < job.rounds:
            raise LocalConsortiumError(f"the benchmark's job ended as {row.state.value}: {row.reason}")
        watch.look(num_finished)
        consortium.check()
        time.sleep(0.2)


def _family(consortium: LocalConsortium) -> dict[str, list[psutil.Process]]:
    """The consortium's processes by kind."""
    found: dict[str, list[psutil.Process]] = {}
    for process in consortium.processes.values():
        parent = psutil.Process(process.popen.pid)
        for member in [parent, *parent.children(recursive=True)]:
            try:
                words = member.cmdline()
            except psutil.Error:
                continue
            kind = next((_KINDS[word] for word in words if word in _KINDS), None)
            if kind is not None:
                found.setdefault(kind, []).append(member)
    return found


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _peak_mib(process: psutil.Process) -> int:
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 // _MIB
    except (OSError, IndexError, ValueError):
        return 0


def _result(job: JobFile, done: Sequence[Round], watch: _Watch, idle: Idle, store: str) -> ScaleBenchmark:
    ends = [row.finished_at for row in done]
    walls = [
        (after - before).total_seconds()
        for before, after in zip(ends[WARM_UP_ROUNDS - 1 :], ends[WARM_UP_ROUNDS:], strict=False)
        if before is not None and after is not None
    ]
    measured = done[WARM_UP_ROUNDS:]
    phases = {phase: Spread.of([row.seconds[phase] for row in measured]) for phase in measured[0].seconds}
    peaks = {kind: peak for kind, peak in watch.peaks.items() if kind != "agents"}
    return ScaleBenchmark(
        agents=len(job.firms),
        parameters=job.model.parameters,
        store=store,
        mode=job.mode,
        rounds=len(walls),
        overhead_seconds=Spread.of(walls).median,
        seconds={"round": Spread.of(walls), **phases},
        cpu_seconds_per_round=watch.cpu_per_round(),
        bytes_up=measured[-1].bytes_up // len(job.firms),
        bytes_down=measured[-1].bytes_down // len(job.firms),
        server_peak_rss_mib=dict(sorted(peaks.items())),
        server_peak_rss_mib_together=sum(peaks.values()),
        agents_rss_mib=watch.agents_rss,
        idle=idle,
    )
