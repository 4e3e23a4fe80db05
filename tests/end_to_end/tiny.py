"""A consortium small enough for tests: three mills with few simulated rows each, real processes, real TLS."""

import contextlib
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import psutil

from dure_client.home import AgentHome, write_file
from dure_client.jobs.approvals import Verdict, decide, known_job
from dure_client.jobs.results import JobResult, ResultError
from dure_lab.consortium import LocalConsortium, write_draft
from dure_lab.datasets import milling
from dure_protocols.job import JobFile
from dure_server.store import JobState, RoundState
from dure_server.store.tables import Round

ROWS = {"alder": 160, "birch": 320, "cedar": 640}
"""Rows of each firm. Powers of two times five: a fifth is for validation, so a sum of counts shows who is in it."""

TRAINED_ROWS = {firm: rows * 4 // 5 for firm, rows in ROWS.items()}
PATIENCE_SECONDS = 60.0


@contextlib.contextmanager
def founded(host: str = "127.0.0.1") -> Iterator[LocalConsortium]:
    """A running server without firms. Its folder has a short path, for the sockets, and is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="dure-"))
    try:
        with LocalConsortium(folder, "Tiny mills", host) as made:
            made.start_server()
            (folder / "contract.toml").write_text(milling.task().contract.to_toml())
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def rows_of(firm: str) -> pl.DataFrame:
    """A firm's simulated rows; every failure of the machine is moved to the front, so that all parts have some."""
    shop = milling.WORKSHOPS[list(ROWS).index(firm)]
    return milling.simulate(shop, ROWS[firm], np.random.default_rng(len(firm)))


def give_data(home: AgentHome, table: pl.DataFrame, file_name: str = "rows.parquet") -> Path:
    """Lay a firm's rows into its home and tell its data.toml where they are; the test rows are the training rows."""
    folder = home.path / "data"
    folder.mkdir(exist_ok=True)
    file = folder / file_name
    table.write_parquet(file)
    write_file(home.data_file, f'[train]\npaths = ["{file}"]\n\n[test]\npaths = ["{file}"]\n'.encode())
    return file


def draft(consortium: LocalConsortium, job: str, *, rounds: int, hidden: int = 8, **more: object) -> Path:
    """A job's draft: the milling task with a small model."""
    task = milling.task()
    training = task.training.model_dump(mode="json", exclude={"num_rounds", "update_clip", "count_cap"})
    values: dict[str, object] = {
        "id": job,
        "title": f"Tiny {job}",
        "simulated": True,
        "model": task.model,
        "contract": "contract.toml",
        "rounds": rounds,
        "minimum_cohort": 2,
        "selection_metric": "validation_loss",
        "seed": zlib.crc32(job.encode()),  # no firm trains twice on one first model
        "phase_seconds": 60.0,
        "codec": {"clip": task.training.update_clip, "count_cap": task.training.count_cap},
        "training": {**training, "local_epochs": 1},
        "options": {**task.model_options, "hidden": hidden},
    }
    return write_draft(consortium.folder / f"{job}.toml", values | more)


def until(holds: Callable[[], object], consortium: LocalConsortium, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until something holds; tell what the processes' logs say last if it does not come to pass."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"it did not come to pass in {seconds:.0f} s\n{last_words(consortium)}"
        time.sleep(0.02)


def last_words(consortium: LocalConsortium) -> str:
    """The ends of all logs."""
    logs = sorted([*consortium.folder.rglob("*.log")])
    return "\n".join(f"== {log.name}\n" + "\n".join(log.read_text().splitlines()[-8:]) for log in logs)


def approve(consortium: LocalConsortium, job: JobFile, *firms: str) -> None:
    """Approve a job at each firm, as its people would once the proposal is there."""
    for firm in firms or tuple(consortium.agents):
        home = consortium.agents[firm]
        until((home.job_folder(job.id) / "job.json").exists, consortium)
        known = known_job(home, job.id).job
        assert known.digest() == job.digest()
        decide(home, known, Verdict.APPROVED, datetime.now(UTC))


def sentence(consortium: LocalConsortium, job: JobFile) -> str:
    """What the console says of a job."""
    with consortium.store.reading() as at:
        progress = at.progress.get(job.id)
        return progress.sentence if progress else ""


def state(consortium: LocalConsortium, job: JobFile) -> tuple[JobState, str]:
    """A job's state and the reason for it."""
    with consortium.store.reading() as at:
        row = at.jobs.get(job.id)
        return row.state, row.reason


def stands_in(consortium: LocalConsortium, job: JobFile) -> tuple[str, int | None, tuple[str, ...]]:
    """Phase, round and the firms that are awaited."""
    with consortium.store.reading() as at:
        progress = at.progress.get(job.id)
        return (progress.phase, progress.round_number, tuple(progress.waiting_for)) if progress else ("", None, ())


def published(consortium: LocalConsortium, job: JobFile) -> list[Round]:
    """The rounds whose sums are published, in order."""
    with consortium.store.reading() as at:
        return [row for row in at.rounds.of(job.id) if row.state is RoundState.FINISHED]


def is_finished(consortium: LocalConsortium, job: JobFile) -> bool:
    """Whether a job is over; fails if it ended otherwise."""
    now, reason = state(consortium, job)
    assert now in {JobState.RUNNING, JobState.FINISHED}, f"{now}: {reason}\n{last_words(consortium)}"
    return now is JobState.FINISHED


def result(home: AgentHome, job: JobFile) -> JobResult | None:
    """A firm's result, once it is there."""
    with contextlib.suppress(ResultError):
        return JobResult.read(home.job_folder(job.id) / "result.json")
    return None


def trainer_of(consortium: LocalConsortium, firm: str, job: JobFile) -> psutil.Process | None:
    """The process in which a firm trains for a job: the innermost, where a sandbox's own processes are around it."""
    scratch = str(consortium.agents[firm].job_folder(job.id) / "scratch")
    found = None
    for child in _children(consortium.processes[firm].popen.pid):
        with contextlib.suppress(psutil.Error):
            if scratch in child.cmdline():
                found = child
    return found


def server_part(consortium: LocalConsortium, *argv: str) -> psutil.Process | None:
    """The server's process whose command line has these words."""
    for child in _children(consortium.processes["server"].popen.pid):
        with contextlib.suppress(psutil.Error):
            if set(argv) <= set(child.cmdline()):
                return child
    return None


@contextlib.contextmanager
def held(consortium: LocalConsortium, job: JobFile, firm: str) -> Iterator[int]:
    """Keep a firm's trainer from going on, so that the job stands in the middle of a round. Yields the round."""
    trainer = trainer_of(consortium, firm, job)
    assert trainer is not None, f"{firm} does not train {job.id}"
    trainer.suspend()
    try:
        until(lambda: stands_in(consortium, job)[::2] == ("update", (firm,)), consortium)
        number = stands_in(consortium, job)[1]
        assert number is not None
        yield number
    finally:
        with contextlib.suppress(psutil.Error):
            trainer.resume()


def _children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []
