"""A job's course as one function, whatever drives it: the supervisor's process over the link, or a stock SuperLink."""

import os
from collections.abc import Callable
from typing import Final

import numpy as np

from dure_protocols.errors import DureError
from dure_protocols.job import JobFile
from dure_server.coordinator.checkpoints import Checkpoints
from dure_server.coordinator.conversation import JobStoppedError
from dure_server.coordinator.firms import Firms
from dure_server.coordinator.record import JobRecord
from dure_server.coordinator.rounds import Coordinator
from dure_server.jobs import FINAL_MODEL_FILE, INITIAL_MODEL_FILE
from dure_server.link.errors import LinkAwayError
from dure_server.settings import ServerHome
from dure_server.store import JobState, Store

LEASE_FILE: Final = "coordinator.lock"
LEASE_LOST: Final = 75  # exit status: a passing failure, start again

Course = Callable[[Firms], None]
"""Runs a job to its end over the firms it is given."""


def run_job(home: ServerHome, job_id: str, drive: Callable[[JobFile, Course], None]) -> None:
    """Let `drive` run a job's course, and keep what became of it.

    Raises JobStoppedError, LeaseTakenError while another process drives the job, LinkAwayError, or why it failed.
    """
    store = Store.open(home.store_url(home.settings()))
    try:
        with store.reading() as at:
            job = JobFile.from_bytes(at.jobs.get(job_id).body)
        with store.lease(f"coordinator of {job.id}", home.job_folder(job.id) / LEASE_FILE, _end_at_once):
            _run(home, store, job, drive)
    finally:
        store.close()


def _run(home: ServerHome, store: Store, job: JobFile, drive: Callable[[JobFile, Course], None]) -> None:
    folder = home.job_folder(job.id)
    record = JobRecord(store, job.id)

    def course(firms: Firms) -> None:
        initial = np.fromfile(folder / INITIAL_MODEL_FILE, "<f4")
        final = Coordinator(job, initial, firms, record, Checkpoints(folder)).run()
        aside = folder / f"{FINAL_MODEL_FILE}.part"
        final.tofile(aside)
        aside.replace(folder / FINAL_MODEL_FILE)
        record.set_state(JobState.FINISHED)

    try:
        drive(job, course)
    except (JobStoppedError, LinkAwayError):
        raise
    except DureError as error:  # what Dure raises on purpose would only come again at the next start
        record.set_state(JobState.FAILED, str(error))
        raise


def _end_at_once() -> None:
    """Another coordinator may drive the job by now: leave everything as it is, as if killed."""
    os._exit(LEASE_LOST)
