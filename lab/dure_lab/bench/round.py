"""`dure bench round`: what an encrypted round costs beyond training, with real processes over mutual TLS on loopback.

Everything is the product but the training itself: server, link, coordinator, agents and trainer processes, journal and
ledger with fsync, masks, model hashes. All processes share this machine's cores.
"""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from dure_client.home import write_file
from dure_client.ledger import read_records, totals
from dure_lab.bench.spread import Spread
from dure_lab.consortium import LocalConsortium, LocalConsortiumError, write_draft
from dure_lab.homes import OWN_TERMS
from dure_models.contract import Column, ColumnType, DataContract, Role
from dure_protocols.job import JobFile
from dure_server.store import JobState, RoundState
from dure_server.store.tables import Round

JOB_ID = "bench"
MODEL = "no-training"
WARM_UP_ROUNDS = 2
_MIB = 1 << 20
_KINDS = {
    "link": "link",
    "console": "console",
    "coordinator": "coordinator",
    "agent": "agent",
    "idle_trainer": "trainer",
    "cli": "supervisor",
    "server": "supervisor",
}
"""Last part of a process's module to what it is."""


class RoundBenchmark(BaseModel):
    """What `dure bench round --json` prints.

    overhead_seconds: median wall time from one published round to the next; nothing trains, so all of it is overhead.
    seconds: the same and each phase, with spread. Bytes are a firm's in one round. peak_rss_mib: a process's highest
    resident memory, mapped files included; the largest of each kind.
    """

    model_config = ConfigDict(frozen=True)

    firms: int
    parameters: int
    rounds: int
    overhead_seconds: float
    seconds: Mapping[str, Spread]
    bytes_up: int
    bytes_down: int
    bytes_up_per_parameter: float
    peak_rss_mib: Mapping[str, int]


@dataclass(frozen=True)
class RoundsRun:
    """A job that ran. rounds: its training rounds, all of them; peaks: each kind of process's peak memory, MiB."""

    job: JobFile
    rounds: tuple[Round, ...]
    peaks: Mapping[str, int]
    bytes_up: int
    """Of the firm that sent most in the last round, headers of its messages included."""

    def seconds(self, at: int) -> float:
        """Wall time from the round before to the one at this index, from 1."""
        before, after = self.rounds[at - 1].finished_at, self.rounds[at].finished_at
        if before is None or after is None:
            raise LocalConsortiumError("a finished round has no time; the store is damaged")
        return (after - before).total_seconds()


def bench_round(num_firms: int, num_parameters: int, num_rounds: int) -> RoundBenchmark:
    """Run it: `num_rounds` measured rounds after a warm-up. Raises LocalConsortiumError."""
    with tempfile.TemporaryDirectory(prefix="dure-bench-") as folder, LocalConsortium(Path(folder)) as consortium:
        return _result(run_rounds(consortium, num_firms, num_parameters, num_rounds + WARM_UP_ROUNDS))


def run_rounds(
    consortium: LocalConsortium,
    num_firms: int,
    num_parameters: int,
    num_rounds: int,
    *,
    training_seconds: float = 0.0,
    server_module: str = "",
    agent_module: str = "dure_lab.bench.agent",
) -> RoundsRun:
    """Found the consortium and run one job to its end. Other modules are for benchmarks that change the processes."""
    consortium.start_server(module=server_module)
    for number in range(num_firms):
        home = consortium.enrol(f"firm-{number:02d}")
        write_file(home.data_file, b'[train]\npaths = ["none.csv"]\n')
    consortium.introduce(MODEL)
    for firm in consortium.agents:
        consortium.start_agent(firm, module=agent_module)
    options = {"parameters": num_parameters, "training_seconds": training_seconds}
    job = consortium.propose(draft_of(consortium.folder, options, num_rounds))
    consortium.approve_job(job)
    peaks = _wait(consortium, job)
    with consortium.store.reading() as at:
        done = [row for row in at.rounds.of(job.id) if row.state is RoundState.FINISHED and row.number <= job.rounds]
    sent = [
        totals(read_records(home.ledger_file)).bytes_by_round[job.id, done[-1].number]
        for home in consortium.agents.values()
    ]
    return RoundsRun(job, tuple(done), peaks, max(sent))


def draft_of(folder: Path, options: Mapping[str, float], num_rounds: int) -> Path:
    """Write the draft, and the contract, of a job without training."""
    columns = (Column(name="target", type=ColumnType.FLOAT, role=Role.TARGET, range=(0, 1)),)
    (folder / "contract.toml").write_text(DataContract(name="none", title="No data", columns=columns).to_toml())
    values = {
        **OWN_TERMS,
        "id": JOB_ID,
        "title": "Benchmark of a round",
        "model": MODEL,
        "contract": "contract.toml",
        "rounds": num_rounds,
        "options": options,
        "codec": {"clip": 0.02, "count_cap": 1000},
        "training": {"learning_rate": 1.0},
        "phase_seconds": 600.0,
    }
    return write_draft(folder / "job.toml", values)


def _wait(consortium: LocalConsortium, job: JobFile) -> dict[str, int]:
    """Wait for the job's end. Returns each kind of process's peak memory, MiB, sampled while it runs."""
    peaks: dict[str, int] = {}
    while True:
        for kind, peak in _peaks(consortium).items():
            peaks[kind] = max(peak, peaks.get(kind, 0))
        with consortium.store.reading() as at:
            row = at.jobs.get(job.id)
        if row.state is JobState.FINISHED:
            return peaks
        if row.state is not JobState.RUNNING:
            raise LocalConsortiumError(f"the benchmark's job ended as {row.state.value}: {row.reason}")
        consortium.check()
        time.sleep(0.5)


def _peaks(consortium: LocalConsortium) -> dict[str, int]:
    peaks: dict[str, int] = {}
    for process in consortium.processes.values():
        try:
            family = [psutil.Process(process.popen.pid), *psutil.Process(process.popen.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for member in family:
            kind, peak = _kind_and_peak(member.pid)
            if kind:
                peaks[kind] = max(peak, peaks.get(kind, 0))
    return peaks


def _kind_and_peak(pid: int) -> tuple[str, int]:
    """What a process is and its peak resident memory in MiB; "" for one that is gone or none of ours."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        status = Path(f"/proc/{pid}/status").read_text()
        kind = _KINDS.get(command[command.index("-m") + 1].rpartition(".")[2], "")
        return kind, int(status.split("VmHWM:")[1].split()[0]) * 1024 // _MIB
    except (OSError, IndexError, ValueError):
        return "", 0


def _result(ran: RoundsRun) -> RoundBenchmark:
    measured = range(WARM_UP_ROUNDS, len(ran.rounds))
    walls = [ran.seconds(at) for at in measured]
    phases = {phase: Spread.of([ran.rounds[at].seconds[phase] for at in measured]) for phase in ran.rounds[0].seconds}
    return RoundBenchmark(
        firms=len(ran.job.firms),
        parameters=ran.job.model.parameters,
        rounds=len(walls),
        overhead_seconds=Spread.of(walls).median,
        seconds={"round": Spread.of(walls), **phases},
        bytes_up=ran.bytes_up,
        bytes_down=ran.rounds[-1].bytes_down // len(ran.job.firms),
        bytes_up_per_parameter=round(ran.bytes_up / ran.job.model.parameters, 4),
        peak_rss_mib=dict(sorted(ran.peaks.items())),
    )
