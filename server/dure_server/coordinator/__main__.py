"""A job's coordinator as a process, started by the supervisor.

    python -m dure_server.coordinator --home HOME --job JOB

Exit status 0: the job finished, or was paused or stopped. 1: the job failed; the reason stands in the store. Anything
else: the supervisor starts it again, and it goes on from the last finished phase.
"""

import argparse
import hashlib
import logging
import sys
from pathlib import Path

import numpy as np

from dure_protocols.errors import DureError
from dure_protocols.job import JobFile
from dure_server.coordinator.conversation import JobFailedError, JobStoppedError
from dure_server.coordinator.firms import Firms
from dure_server.coordinator.record import JobRecord
from dure_server.coordinator.rounds import Coordinator
from dure_server.flower import GrpcGrid, run_over_link
from dure_server.jobs import FINAL_MODEL_FILE, INITIAL_MODEL_FILE
from dure_server.settings import ServerHome
from dure_server.store import JobState, Store

logger = logging.getLogger(__name__)


def coordinate(home: ServerHome, job_id: str) -> None:
    """Run one job to its end and keep what became of it. Raises JobFailedError."""
    settings = home.settings()
    store = Store.open(home.store_url(settings))
    with store.reading() as at:
        job = JobFile.from_bytes(at.jobs.get(job_id).body)
    folder = home.job_folder(job.id)
    record = JobRecord(store, job.id)

    def course(firms: Firms) -> None:
        initial = np.fromfile(folder / INITIAL_MODEL_FILE, "<f4")
        final = Coordinator(job, initial, firms, record).run()
        aside = folder / f"{FINAL_MODEL_FILE}.part"
        final.tofile(aside)
        aside.replace(folder / FINAL_MODEL_FILE)
        record.set_state(JobState.FINISHED)

    run_id = int.from_bytes(hashlib.sha256(job.digest()).digest()[:8], "big") >> 1
    grid = GrpcGrid(home.desk_socket, home.uploads, home.released, run_id, settings.consortium)
    try:
        run_over_link(course, grid)
    except JobFailedError as error:
        record.set_state(JobState.FAILED, str(error))
        raise
    finally:
        store.close()


def main() -> int:
    """The process. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dure_server.coordinator", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--job", required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        coordinate(ServerHome(arguments.home), arguments.job)
    except JobStoppedError as error:
        logger.info("%s", error)
    except DureError as error:
        logger.error("%s", error)  # noqa: TRY400  # its text says what to do
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
