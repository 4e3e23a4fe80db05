"""A store or disk that is away for a while is waited for: no job fails of it, and no process that need not ends."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from sqlalchemy.exc import InternalError, OperationalError

from dure_protocols.frames import Announce
from dure_server.coordinator.course import run_job
from dure_server.link import blobs
from dure_server.link.errors import GridError, LinkAwayError, LinkRefusedError, abort
from dure_server.settings import ServerHome, ServerSettings
from dure_server.store import JobState, LeaseTakenError, Store
from dure_server.supervise import _Jobs
from tests.server.samples import job_file

AWAY = OperationalError("SELECT", {}, Exception("the database system is shutting down"))
READ_ONLY = InternalError("INSERT", {}, Exception("cannot execute INSERT in a read-only transaction"))


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    """A server's home with one running job."""
    made = ServerHome(tmp_path / "server")
    made.create()
    made.settings_file.write_text(ServerSettings(consortium="Millers", public_host="127.0.0.1").to_toml())
    job = job_file("job-1")
    with_jobs = Store.create(made.store_url(made.settings()))
    with with_jobs.transaction() as at:
        at.consortium.create("Millers", "ab" * 32)
        at.jobs.propose(job)
        at.jobs.set_state(job.id, JobState.RUNNING)
    with_jobs.close()
    made.job_folder(job.id).mkdir()
    np.zeros(job.model.parameters, "<f4").tofile(made.job_folder(job.id) / "initial.f32")
    return made


def state_of(home: ServerHome) -> JobState:
    store = Store.open(home.store_url(home.settings()))
    with store.reading() as at:
        (job,) = at.jobs.all()
    store.close()
    return job.state


@pytest.mark.parametrize(
    ("error", "state"),
    [(LinkAwayError("no link for a minute"), JobState.RUNNING), (GridError("refused"), JobState.FAILED)],
    ids=["the link is away", "the link refuses"],
)
def test_a_job_fails_of_a_link_that_refuses_and_not_of_one_that_is_away(
    home: ServerHome, error: Exception, state: JobState
) -> None:
    def drive(*_: object) -> None:
        raise error

    with pytest.raises(type(error)):
        run_job(home, job_file("job-1").id, drive)
    assert state_of(home) is state


def test_a_second_coordinator_is_refused_and_the_job_runs_on(home: ServerHome) -> None:
    refused: list[bool] = []

    def drive(*_: object) -> None:
        with pytest.raises(LeaseTakenError):
            run_job(home, job_file("job-1").id, lambda *_: pytest.fail("two coordinators drive one job"))
        refused.append(True)

    run_job(home, job_file("job-1").id, drive)
    assert refused == [True]
    assert state_of(home) is JobState.RUNNING


class Context:
    """Notes the status that a request ends with."""

    def __init__(self) -> None:
        self.status: grpc.StatusCode | None = None

    async def abort(self, status: grpc.StatusCode, text: str) -> None:
        self.status = status
        raise grpc.aio.AbortError


@pytest.mark.parametrize("error", [AWAY, READ_ONLY], ids=["away", "read-only"])
def test_who_asks_while_the_store_is_away_is_told_to_ask_again(error: Exception) -> None:
    context = Context()
    with pytest.raises(grpc.aio.AbortError):
        asyncio.run(abort(context, error))
    assert context.status is grpc.StatusCode.UNAVAILABLE


def test_an_upload_to_a_full_disk_is_to_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "MIN_FREE_BYTES", 1 << 60)
    folder = blobs.BlobFolder(tmp_path / "uploads", tmp_path / "released")

    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    async def upload() -> None:
        async for _ in folder.upload("mill", Announce("0" * 64, 10), nothing()):
            pass

    with pytest.raises(LinkRefusedError, match="disk is full") as caught:
        asyncio.run(upload())
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE


def test_the_supervisor_keeps_its_coordinators_while_the_store_cannot_be_asked(
    home: ServerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(home.store_url(home.settings()))
    jobs = _Jobs(home, store, json_logs=False)
    before = jobs.wanted()
    assert len(before) == 1

    def away(*_: object) -> None:
        raise AWAY

    monkeypatch.setattr(Store, "reading", away)
    assert jobs.wanted() == before
    monkeypatch.undo()
    with store.transaction() as at:
        at.jobs.set_state(job_file("job-1").id, JobState.PAUSED)
    assert jobs.wanted() == []
    assert len(jobs.halted) == 1
    store.close()
