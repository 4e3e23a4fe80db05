"""The server's numbers for Prometheus; docs/watching.md says what each means.

Labels are bounded by the consortium: a job (those that have not ended, or did so less than a week ago), a firm, and
words from closed lists. No number is about a firm's data: how many rows a firm has is not known here, and the rows
behind a sum are left to the console.
"""

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from dure_protocols.certificates import read_certificate
from dure_protocols.errors import DureError
from dure_protocols.global_state import first_round, last_round
from dure_protocols.job import JobFile
from dure_server.processes import read_processes, usage_of
from dure_server.settings import ServerHome
from dure_server.store import EventKind, FirmStatus, JobState, RoundState, Store, Transaction
from dure_server.store.tables import Job, Round
from dure_server.watching.phases import PhaseTimes

STORE_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SHOWN_AFTER_END: Final = timedelta(days=7)
_NO_ROUNDS: Final[tuple[str, int, datetime | None, int, int]] = ("", 0, None, 0, 0)
"""A counter begins at zero, and not with the first that it counts."""
_ENDED = frozenset({JobState.FINISHED, JobState.STOPPED, JobState.FAILED})


class ServerMetrics(Collector):
    """Gathers everything at each scrape. One for the console process; scrapes may come at once."""

    def __init__(self, home: ServerHome, store: Store, ask_link: Callable[[], bytes]) -> None:
        """`ask_link` returns what the link counts, in Prometheus' text form, or raises a DureError."""
        self._home, self._store, self._ask_link = home, store, ask_link
        self._phases = PhaseTimes()
        self._one_at_a_time = threading.Lock()
        # A second series for each counter, which nobody asks for; and the function has no types.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        transactions = Histogram(
            "dure_store_seconds",
            "Seconds that transactions of the console took, from begin to commit.",
            ["kind"],
            buckets=STORE_SECONDS,
            registry=self._registry,
        )
        for kind in ("read", "write"):
            transactions.labels(kind)
        store.observe = lambda kind, seconds: transactions.labels(kind).observe(seconds)
        self._registry.register(self)

    def text(self) -> bytes:
        """One scrape, in Prometheus' text form."""
        try:
            told, is_up = self._ask_link(), 1
        except DureError:
            told, is_up = b"", 0
        up = GaugeMetricFamily("dure_link_up", "Whether the link process answers.", is_up)
        registry = CollectorRegistry()
        registry.register(_Given([up]))
        with self._one_at_a_time:
            return generate_latest(self._registry) + generate_latest(registry) + told

    def describe(self) -> list[Metric]:
        """Nothing: a registry would otherwise gather once only to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Everything but the histogram of transactions and the link's own."""
        info = GaugeMetricFamily("dure_server_info", "The server's version; always 1.", labels=["version"])
        info.add_metric([version("dure")], 1)
        yield info
        yield from self._processes()
        yield from self._disk()
        yield from self._certificates()
        try:
            with self._store.reading() as tx:
                shown = _shown(tx)
                found = [*_firms(tx), *_jobs(tx, shown), *_rounds(tx, shown), self._phases.family(tx, shown)]
        except (DureError, SQLAlchemyError):
            found = []
        yield GaugeMetricFamily("dure_store_up", "Whether the store could be read.", int(bool(found)))
        yield from found

    def _processes(self) -> Iterator[Metric]:
        labels = ["process", "job"]
        up = GaugeMetricFamily("dure_process_up", "Whether a process of the server runs.", labels=labels)
        starts = CounterMetricFamily(
            "dure_process_starts", "How often the supervisor started a process that should run.", labels=labels
        )
        resident = GaugeMetricFamily("dure_process_resident_bytes", "Memory of a process (RSS).", labels=labels)
        cpu = CounterMetricFamily(
            "dure_process_cpu_seconds", "Processor time of a process since it was started last.", labels=labels
        )
        files = GaugeMetricFamily("dure_process_open_files", "Open files and connections.", labels=labels)
        for process in read_processes(self._home.processes_file):
            usage = usage_of(process.pid) if process.pid is not None else None
            key = [process.name, process.job]
            up.add_metric(key, int(usage is not None))
            starts.add_metric(key, process.starts)
            if usage is not None:
                resident.add_metric(key, usage.resident_bytes)
                cpu.add_metric(key, usage.cpu_seconds)
                files.add_metric(key, usage.open_files)
        yield from (up, starts, resident, cpu, files)

    def _disk(self) -> Iterator[Metric]:
        disk = shutil.disk_usage(self._home.path)
        yield GaugeMetricFamily("dure_disk_free_bytes", "Free space where the server's home is.", disk.free)
        yield GaugeMetricFamily("dure_disk_size_bytes", "Size of the disk where the server's home is.", disk.total)
        size = GaugeMetricFamily("dure_blobs_bytes", "Bytes of stored blobs, partial ones included.", labels=["folder"])
        number = GaugeMetricFamily("dure_blobs", "Stored blobs, partial ones included.", labels=["folder"])
        for folder, pattern in ((self._home.uploads, "*/*"), (self._home.released, "*")):
            sizes = []
            for file in folder.glob(pattern):
                try:
                    sizes.append(file.stat().st_size)
                except FileNotFoundError:  # dropped meanwhile
                    continue
            size.add_metric([folder.name], sum(sizes))
            number.add_metric([folder.name], len(sizes))
        yield from (size, number)

    def _certificates(self) -> Iterator[Metric]:
        ends = GaugeMetricFamily(
            "dure_certificate_expiry_timestamp_seconds", "When a certificate ends.", labels=["certificate"]
        )
        for name, file in (("server", self._home.server_certificate_file), ("root", self._home.root_file)):
            try:
                ends.add_metric([name], read_certificate(file.read_bytes()).not_after.timestamp())
            except (OSError, DureError):
                continue
        yield ends


class _Given(Collector):
    """Families that are made already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        """These."""
        return self._families


def _shown(tx: Transaction) -> dict[str, Job]:
    """The jobs that have series: not all that ever were."""
    since = tx.now - SHOWN_AFTER_END
    return {job.id: job for job in tx.jobs.all() if job.state not in _ENDED or (job.ended_at or tx.now) >= since}


def _firms(tx: Transaction) -> Iterator[Metric]:
    rows = tx.firms.all()
    firms = GaugeMetricFamily("dure_firms", "Firms of the consortium.", labels=["status"])
    for status in FirmStatus:
        firms.add_metric([status.value], sum(row.status is status for row in rows))
    connected = GaugeMetricFamily("dure_firm_connected", "Whether an approved firm's agent is here.", labels=["firm"])
    for row in rows:
        if row.status is FirmStatus.APPROVED:
            connected.add_metric([row.name], int(row.connected_since is not None))
    yield from (firms, connected)


def _jobs(tx: Transaction, shown: dict[str, Job]) -> Iterator[Metric]:
    state = GaugeMetricFamily("dure_job_state", "1 for the state that a job is in.", labels=["job", "state"])
    planned = GaugeMetricFamily("dure_job_planned_rounds", "Sums that a job is to publish.", labels=["job"])
    firms = GaugeMetricFamily("dure_job_firms", "Firms that may take part in a job.", labels=["job"])
    awaited = GaugeMetricFamily(
        "dure_job_awaited", "1 for each firm whose answer a running job waits for.", labels=["job", "firm"]
    )
    changed = GaugeMetricFamily(
        "dure_job_changed_timestamp_seconds", "When a job's coordinator last told something new.", labels=["job"]
    )
    for name, job in shown.items():
        for each in JobState:
            state.add_metric([name, each.value], int(job.state is each))
        body = JobFile.from_bytes(job.body)
        planned.add_metric([name], last_round(body) - first_round(body) + 1)
        firms.add_metric([name], len(body.firms))
        progress = tx.progress.get(name)
        changed.add_metric([name], (progress.updated_at if progress else job.changed_at).timestamp())
        if progress is not None and job.state is JobState.RUNNING:
            for firm in progress.waiting_for:
                awaited.add_metric([name, firm], 1)
    yield from (state, planned, firms, awaited, changed)


def _rounds(tx: Transaction, shown: dict[str, Job]) -> Iterator[Metric]:
    finished = CounterMetricFamily(
        "dure_rounds_finished", "Sums published, that of statistics and the closing one included.", labels=["job"]
    )
    last = GaugeMetricFamily(
        "dure_last_round_timestamp_seconds", "When a job's newest sum was published.", labels=["job"]
    )
    moved = CounterMetricFamily(
        "dure_round_bytes", "Bytes of finished rounds, all firms together. up: from firms.", labels=["job", "direction"]
    )
    sums = (func.count(), func.max(Round.finished_at), func.sum(Round.bytes_up), func.sum(Round.bytes_down))
    done = select(Round.job, *sums).where(Round.state == RoundState.FINISHED).group_by(Round.job)
    by_job = {row[0]: row for row in tx.session.execute(done)}
    for job in shown:
        _, number, at, up, down = by_job.get(job, _NO_ROUNDS)
        finished.add_metric([job], number)
        moved.add_metric([job, "up"], float(up))
        moved.add_metric([job, "down"], float(down))
        if at is not None:
            last.add_metric([job], at.timestamp())
    yield from (finished, last, moved)
    abandoned = CounterMetricFamily(
        "dure_attempts_abandoned",
        "Attempts given up after their members were fixed.",
        labels=["job"],
    )
    drop_outs = CounterMetricFamily(
        "dure_drop_outs", "Firms that dropped out of a phase, by reason.", labels=["job", "code"]
    )
    coordinators = CounterMetricFamily(
        "dure_coordinator_starts", "How often a coordinator took a job up.", labels=["job"]
    )
    for kind, family in ((EventKind.ABANDONED, abandoned), (EventKind.COORDINATOR, coordinators)):
        counts = {row.job: row.number for row in tx.timeline.counts(kind)}
        for job in shown:
            family.add_metric([job], counts.get(job, 0))
    for row in tx.timeline.counts(EventKind.DROPPED):
        if row.job in shown:
            drop_outs.add_metric([row.job, row.code], row.number)
    yield from (abandoned, drop_outs, coordinators)
