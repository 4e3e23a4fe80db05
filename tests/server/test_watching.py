"""What a scrape says against what the store holds, and what makes a server not ready."""

import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from dure_protocols.errors import DureError
from dure_server.processes import RunningFile, RunningProcess, read_processes, usage_of
from dure_server.settings import ServerHome
from dure_server.store import EventKind, Happening, JobState, Store
from dure_server.watching import Readiness, ServerMetrics, readiness
from tests.server.conftest import Clock
from tests.server.samples import FIRMS, identity, job_file

Samples = dict[tuple[str, ...], float]


class Scrape:
    """The samples of a scrape: name -> label values in the order of their names -> value."""

    def __init__(self, scraped: bytes) -> None:
        self.names: set[str] = set()
        self._samples: dict[str, Samples] = {}
        for family in text_string_to_metric_families(scraped.decode()):
            self.names.add(family.name)
            for sample in family.samples:
                key = tuple(value for _, value in sorted(sample.labels.items()))
                self._samples.setdefault(sample.name, {})[key] = sample.value

    def __getitem__(self, name: str) -> Samples:
        return self._samples.get(name, {})


def answers() -> bytes:
    return b"# HELP dure_link_streams x\n# TYPE dure_link_streams gauge\ndure_link_streams 2.0\n"


def silent() -> bytes:
    raise DureError("the link did not answer")


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    made = ServerHome(tmp_path / "home")
    made.create()
    return made


@pytest.fixture
def metrics(home: ServerHome, store: Store) -> ServerMetrics:
    return ServerMetrics(home, store, answers)


@pytest.fixture
def job(store: Store) -> str:
    with store.transaction() as tx:
        for firm in FIRMS:
            tx.firms.invite(firm)
            tx.firms.join(firm, identity(firm).public_bytes, "0.1.0")
            tx.firms.approve(firm)
        tx.firms.invite("firm-c")
        tx.firms.seen("firm-a", "0.1.0")
        tx.jobs.propose(job_file("wear"))
        tx.jobs.set_state("wear", JobState.RUNNING)
    return "wear"


def finish(store: Store, number: int, **seconds: float) -> None:
    with store.transaction() as tx:
        tx.rounds.begin("wear", number, 1, FIRMS)
        tx.rounds.finish(
            "wear", number, 1, count=1, metrics={}, model_digest="11" * 32, sum_digest="22" * 32, seconds=seconds,
            bytes_up=1000 * number, bytes_down=10 * number,
        )  # fmt: skip


def test_firms_and_jobs_are_told_as_the_store_has_them(metrics: ServerMetrics, job: str, store: Store) -> None:
    with store.transaction() as tx:
        tx.progress.set(job, "update", "…", round_number=1, attempt=1, members=FIRMS, waiting_for=["firm-b"])
    scrape = Scrape(metrics.text())
    assert scrape["dure_firms"] == {("invited",): 1, ("joined",): 0, ("approved",): 2, ("revoked",): 0, ("left",): 0}
    assert scrape["dure_firm_connected"] == {("firm-a",): 1, ("firm-b",): 0}
    assert [key for key, value in scrape["dure_job_state"].items() if value] == [("wear", "running")]
    assert scrape["dure_job_awaited"] == {("firm-b", "wear"): 1}
    assert scrape["dure_job_planned_rounds"] == {("wear",): 4}  # three, and one that measures the last model
    assert scrape["dure_store_up"] == scrape["dure_link_up"] == {(): 1}
    assert scrape["dure_link_streams"] == {(): 2}


def test_rounds_are_counted_once_however_often_it_is_scraped(metrics: ServerMetrics, job: str, store: Store) -> None:
    assert Scrape(metrics.text())["dure_rounds_finished_total"] == {("wear",): 0}
    finish(store, 1, join=0.2, update=5.0)
    metrics.text()
    finish(store, 2, join=0.1, update=50.0, publish=5000.0)
    for scrape in (Scrape(metrics.text()), Scrape(metrics.text())):
        assert scrape["dure_rounds_finished_total"] == {("wear",): 2}
        assert scrape["dure_round_bytes_total"] == {("up", "wear"): 3000, ("down", "wear"): 30}
        assert scrape["dure_phase_seconds_count"] == {
            ("wear", "join"): 2,
            ("wear", "update"): 2,
            ("wear", "publish"): 1,
        }
        assert scrape["dure_phase_seconds_sum"]["wear", "update"] == 55.0
        buckets = {key[1]: value for key, value in scrape["dure_phase_seconds_bucket"].items() if key[2] == "update"}
        assert (buckets["3.0"], buckets["10.0"], buckets["60.0"], buckets["+Inf"]) == (0, 1, 2, 2)
        publish = {key[1]: value for key, value in scrape["dure_phase_seconds_bucket"].items() if key[2] == "publish"}
        assert (publish["3600.0"], publish["+Inf"]) == (0, 1)
        join = {key[1]: value for key, value in scrape["dure_phase_seconds_bucket"].items() if key[2] == "join"}
        assert join["0.1"] == 1  # a bucket's end belongs to it


def test_another_console_counts_the_same(metrics: ServerMetrics, home: ServerHome, job: str, store: Store) -> None:
    finish(store, 1, join=0.2)
    metrics.text()
    finish(store, 2, join=0.2)
    old, new = Scrape(metrics.text()), Scrape(ServerMetrics(home, store, answers).text())
    for name in ("dure_rounds_finished_total", "dure_phase_seconds_count", "dure_round_bytes_total"):
        assert old[name] == new[name]


def test_drop_outs_attempts_and_coordinators_are_counted(metrics: ServerMetrics, job: str, store: Store) -> None:
    with store.transaction() as tx:
        lost = [Happening(EventKind.DROPPED, "update", 1, 1, firm, code="no-answer") for firm in FIRMS]
        tx.timeline.add(job, [Happening(EventKind.COORDINATOR), *lost, Happening(EventKind.ABANDONED, None, 1, 1)])
    scrape = Scrape(metrics.text())
    assert scrape["dure_drop_outs_total"] == {("no-answer", "wear"): 2}  # and no firm is named
    assert scrape["dure_attempts_abandoned_total"] == scrape["dure_coordinator_starts_total"] == {("wear",): 1}


def test_a_job_that_ended_a_week_ago_has_no_series_any_more(
    metrics: ServerMetrics, job: str, store: Store, clock: Clock
) -> None:
    finish(store, 1, join=0.2)
    with store.transaction() as tx:
        tx.jobs.set_state(job, JobState.STOPPED)
    clock.now += timedelta(days=6)
    assert Scrape(metrics.text())["dure_rounds_finished_total"] == {("wear",): 1}
    clock.now += timedelta(days=2)
    assert b"wear" not in metrics.text()


def test_without_its_link_or_store_a_scrape_says_so_and_the_rest(home: ServerHome, store: Store, job: str) -> None:
    metrics = ServerMetrics(home, store, silent)
    assert Scrape(metrics.text())["dure_link_up"] == {(): 0}
    with store.transaction() as tx:
        tx.session.execute(text("ALTER TABLE rounds RENAME TO squares"))
    scrape = Scrape(metrics.text())
    assert scrape["dure_store_up"] == {(): 0}
    assert scrape["dure_job_state"] == {}
    assert scrape["dure_disk_free_bytes"][()] > 0


def test_blobs_and_certificates_are_looked_up(metrics: ServerMetrics, home: ServerHome) -> None:
    (home.uploads / "firm-a").mkdir()
    (home.uploads / "firm-a" / "aa.part").write_bytes(bytes(300))
    (home.released / "bb").write_bytes(bytes(50))
    scrape = Scrape(metrics.text())
    assert scrape["dure_blobs_bytes"] == {("uploads",): 300, ("released",): 50}
    assert scrape["dure_blobs"] == {("uploads",): 1, ("released",): 1}
    assert scrape["dure_certificate_expiry_timestamp_seconds"] == {}  # none was made here


def test_processes_are_told_by_their_supervisor_and_measured(metrics: ServerMetrics, home: ServerHome) -> None:
    gone = RunningProcess("coordinator", "wear", None, 3)
    RunningFile(home.processes_file).write([RunningProcess("link", "", os.getpid(), 1), gone])
    scrape = Scrape(metrics.text())
    assert scrape["dure_process_up"] == {("", "link"): 1, ("wear", "coordinator"): 0}
    assert scrape["dure_process_starts_total"] == {("", "link"): 1, ("wear", "coordinator"): 3}
    usage = usage_of(os.getpid())
    if usage is not None:  # Linux
        assert scrape["dure_process_resident_bytes"]["", "link"] > 10_000_000
        assert scrape["dure_process_cpu_seconds_total"]["", "link"] > 0


def test_a_disk_that_takes_no_file_stops_nothing_and_is_told_once(
    home: ServerHome, caplog: pytest.LogCaptureFixture
) -> None:
    file = RunningFile(home.path / "gone" / "processes.json")
    processes = [RunningProcess("link", "", os.getpid(), 1)]
    for _ in range(3):
        file.write(processes)
    assert caplog.text.count("/metrics lacks the processes") == 1
    (home.path / "gone").mkdir()
    file.write(processes)
    assert read_processes(home.path / "gone" / "processes.json") == processes


def test_no_file_and_a_damaged_one_mean_no_processes(home: ServerHome) -> None:
    assert read_processes(home.processes_file) == []
    home.processes_file.write_text('[{"name": ')
    assert read_processes(home.processes_file) == []


def test_a_server_is_ready_when_disk_store_and_link_are(home: ServerHome, store: Store) -> None:
    assert readiness(home.path, store, answers) is Readiness.READY
    assert readiness(home.path, store, silent) is Readiness.LINK
    too_much = shutil.disk_usage(home.path).total * 2
    assert readiness(home.path, store, answers, floor_bytes=too_much) is Readiness.DISK


def test_a_store_of_another_version_is_not_ready(home: ServerHome, store: Store) -> None:
    with store.transaction() as tx:
        tx.session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    assert readiness(home.path, store, answers) is Readiness.SCHEMA


def test_a_store_that_is_gone_is_not_ready(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'gone' / 'store.sqlite'}"
    (tmp_path / "gone").mkdir()
    store = Store.create(url)
    store.close()
    shutil.rmtree(tmp_path / "gone")
    assert readiness(tmp_path, store, answers) is Readiness.STORE
