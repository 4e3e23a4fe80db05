"""The coordinator as the ServerApp of a stock SuperLink: `app` is what the bundle imports.

The home is $DURE_SERVER_HOME of the SuperLink's environment; the job is named in the run's configuration, which the
firms' SuperNodes see, too.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from dure_protocols.errors import DureError
from dure_protocols.job import JobFile
from dure_server.coordinator.conversation import JobStoppedError
from dure_server.coordinator.course import Course, run_job
from dure_server.flower import server_app
from dure_server.settings import ServerHome, default_home
from dure_server.store import JobState, Store

JOB_KEY = "dure-job"
"""The name of the job in the run's configuration."""


class SuperLinkError(DureError):
    """The run names no job, or another process coordinates on this home."""


def start(home: ServerHome, job_id: str) -> None:
    """Mark a proposed or paused job as running: `flwr run` was the operator's word. Raises StoreConflictError."""
    store = Store.open(home.store_url(home.settings()))
    try:
        with store.transaction() as at:
            at.jobs.set_state(job_id, JobState.RUNNING)
    finally:
        store.close()


@contextmanager
def sole_coordinator(home: ServerHome) -> Iterator[None]:
    """Hold the lock that `dure-server run` holds: a job must not have two coordinators. Raises SuperLinkError."""
    with home.lock_file.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SuperLinkError(
                f"`dure-server run` or another SuperLink run works on {home.path}: stop it, then submit this run again"
            ) from error
        yield


def coordinate(grid: Grid, context: Context) -> None:
    """Run the job that the run names. Raises JobFailedError or another DureError, which Flower reports for the run."""
    home, job_id = ServerHome(default_home()), context.run_config.get(JOB_KEY)
    if not isinstance(job_id, str) or not job_id:
        raise SuperLinkError(f"the run's configuration names no job: submit it with --run-config '{JOB_KEY}=\"ID\"'")

    def drive(_: JobFile, course: Course) -> None:
        server_app(course, home.released)(grid, context)

    with sole_coordinator(home):
        start(home, job_id)
        with suppress(JobStoppedError):
            run_job(home, job_id, drive)


app = ServerApp()
app.main()(coordinate)
