"""A job's coordinator as a process, started by the supervisor.

    python -m dure_server.coordinator --home HOME --job JOB [--json]

Exit status 0: the job finished, or was paused or stopped. 1: the job failed; the reason stands in the store. Anything
else: the supervisor starts it again, and it goes on from the last finished phase.
"""

import argparse
import hashlib
import logging
import sys
from pathlib import Path

from dure_protocols.errors import DureError
from dure_protocols.job import JobFile
from dure_server.coordinator.conversation import JobStoppedError
from dure_server.coordinator.course import Course, run_job
from dure_server.flower import GrpcGrid, run_app, server_app
from dure_server.logs import log_to_stderr
from dure_server.settings import ServerHome

logger = logging.getLogger(__name__)


def coordinate(home: ServerHome, job_id: str) -> None:
    """Run one job over the link, as a Flower ServerApp. Raises JobFailedError, JobStoppedError."""
    consortium = home.settings().consortium

    def drive(job: JobFile, course: Course) -> None:
        run_id = int.from_bytes(hashlib.sha256(job.digest()).digest()[:8], "big") >> 1
        grid = GrpcGrid(home.desk_socket, home.uploads, home.released, run_id, consortium)
        try:
            run_app(server_app(course, home.released), grid, run_id)
        except JobStoppedError as error:
            if error.is_for_good:  # no firm shall train for what is over; a paused job's answers are taken up again
                grid.desk.forget_run(run_id)
            raise

    run_job(home, job_id, drive)


def main() -> int:
    """The process. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dure_server.coordinator", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--json", action="store_true", help="log JSON lines")
    arguments = parser.parse_args()
    log_to_stderr("coordinator", as_json=arguments.json, job=arguments.job)
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
