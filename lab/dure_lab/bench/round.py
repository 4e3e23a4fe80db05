"""`dure bench round`: what an encrypted round costs beyond training, with real processes over mutual TLS on loopback.

Everything is the product but the training itself: server, link, coordinator, agents and trainer processes, journal and
ledger with fsync, masks, model hashes. All processes share this machine's cores.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from dure_client.home import write_file
from dure_client.ledger import read_records, totals
from dure_lab.consortium import LocalConsortium, LocalConsortiumError, write_draft
from dure_models.contract import Column, ColumnType, DataContract, Role
from dure_protocols.job import JobFile
from dure_server.store import JobState, RoundState
from dure_server.store.tables import Round

JOB_ID = "bench"
MODEL = "no-training"
WARM_UP_ROUNDS = 2
_MIB = 1 << 20


class Spread(BaseModel):
    """A figure over the measured rounds."""

    model_config = ConfigDict(frozen=True)

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """The spread of at least one value."""
        return cls(
            median=round(statistics.median(values), 4),
            minimum=round(min(values), 4),
            maximum=round(max(values), 4),
        )


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


def bench_round(num_firms: int, num_parameters: int, num_rounds: int) -> RoundBenchmark:
    """Run it: `num_rounds` measured rounds after a warm-up. Raises LocalConsortiumError."""
    with tempfile.TemporaryDirectory(prefix="dure-bench-") as folder, LocalConsortium(Path(folder)) as consortium:
        consortium.start_server()
        for number in range(num_firms):
            home = consortium.enrol(f"firm-{number:02d}")
            write_file(home.data_file, b'[train]\npaths = ["none.csv"]\n')
        consortium.introduce(MODEL)
        for firm in consortium.agents:
            consortium.start_agent(firm, module="dure_lab.bench.agent")
        job = consortium.propose(_draft(Path(folder), num_parameters, num_rounds + WARM_UP_ROUNDS))
        consortium.approve_job(job)
        peaks = _wait(consortium, job)
        return _result(consortium, job, peaks)


def _draft(folder: Path, num_parameters: int, num_rounds: int) -> Path:
    columns = (Column(name="target", type=ColumnType.FLOAT, role=Role.TARGET, range=(0, 1)),)
    (folder / "contract.toml").write_text(DataContract(name="none", title="No data", columns=columns).to_toml())
    values = {
        "id": JOB_ID,
        "title": "Benchmark of a round",
        "model": MODEL,
        "contract": "contract.toml",
        "rounds": num_rounds,
        "options": {"parameters": num_parameters},
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
    kinds = ("link", "console", "coordinator", "bench.agent", "idle_trainer", "cli")
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        status = Path(f"/proc/{pid}/status").read_text()
        module = command[command.index("-m") + 1]
        kind = next((kind for kind in kinds if module.endswith(kind)), "")
        name = {"bench.agent": "agent", "idle_trainer": "trainer", "cli": "supervisor"}.get(kind, kind)
        return name, int(status.split("VmHWM:")[1].split()[0]) * 1024 // _MIB
    except (OSError, IndexError, ValueError):
        return "", 0


def _result(consortium: LocalConsortium, job: JobFile, peaks: dict[str, int]) -> RoundBenchmark:
    with consortium.store.reading() as at:
        done = [row for row in at.rounds.of(job.id) if row.state is RoundState.FINISHED and row.number <= job.rounds]
    measured = list(zip(done[WARM_UP_ROUNDS - 1 :], done[WARM_UP_ROUNDS:], strict=False))
    walls = [_seconds_between(before, after) for before, after in measured]
    phases = {phase: Spread.of([after.seconds[phase] for _, after in measured]) for phase in done[0].seconds}
    last = done[-1]
    sent = [
        totals(read_records(home.ledger_file)).bytes_by_round[job.id, last.number]
        for home in consortium.agents.values()
    ]
    return RoundBenchmark(
        firms=len(job.firms),
        parameters=job.model.parameters,
        rounds=len(measured),
        overhead_seconds=Spread.of(walls).median,
        seconds={"round": Spread.of(walls), **phases},
        bytes_up=max(sent),
        bytes_down=last.bytes_down // len(job.firms),
        bytes_up_per_parameter=round(max(sent) / job.model.parameters, 4),
        peak_rss_mib=dict(sorted(peaks.items())),
    )


def _seconds_between(before: Round, after: Round) -> float:
    if before.finished_at is None or after.finished_at is None:
        raise LocalConsortiumError("a finished round has no time; the store is damaged")
    return (after.finished_at - before.finished_at).total_seconds()
