"""The operator pauses, resumes and stops a job, a firm pauses itself: real processes, by the commands people type."""

import subprocess
import sys

import pytest
from sqlalchemy import text

from dure_lab.consortium import LocalConsortium
from dure_protocols.job import JobFile
from dure_server.store import JobState
from tests.end_to_end import tiny
from tests.end_to_end.recorded_mills import Mills, Recording
from tests.end_to_end.tiny import ROWS, published, sentence, server_part, until

ALL = tuple(sorted(ROWS))


def run(module: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def course(mills: Mills, recording: Recording) -> tuple[LocalConsortium, JobFile]:
    consortium = mills.consortium
    job = consortium.propose(tiny.draft(consortium, "halting", rounds=500))
    tiny.approve(consortium, job)
    until(lambda: len(published(consortium, job)) > 1, consortium)
    return consortium, job


def operate(consortium: LocalConsortium, *words: str) -> str:
    return run("dure_server.cli", "job", *words, "--home", str(consortium.home.path))


def coordinator(consortium: LocalConsortium, job: JobFile) -> object:
    return server_part(consortium, "dure_server.coordinator", job.id)


def goes_on(consortium: LocalConsortium, job: JobFile, members: tuple[str, ...] = ALL) -> None:
    """Wait for two more rounds, the later one of these members."""
    number = published(consortium, job)[-1].number

    def is_there() -> bool:
        return any(row.number > number + 1 and tuple(row.members) == members for row in published(consortium, job))

    until(is_there, consortium)


def test_a_paused_job_stands_still_without_a_coordinator_and_goes_on_when_it_is_resumed(course) -> None:
    consortium, job = course
    operate(consortium, "pause", job.id)
    until(lambda: coordinator(consortium, job) is None, consortium)
    number = published(consortium, job)[-1].number
    assert tiny.state(consortium, job)[0] is JobState.PAUSED
    operate(consortium, "resume", job.id)
    goes_on(consortium, job)
    assert [row.number for row in published(consortium, job)][: number + 1] == list(range(number + 1))


def test_a_firm_that_pauses_sits_out_and_the_console_says_so(course) -> None:
    consortium, job = course
    home = str(consortium.agents["birch"].path)
    run("dure_client.cli", "pause", job.id, "--hours", "1", "--home", home)
    assert "paused here until" in run("dure_client.cli", "jobs", "--home", home)
    until(lambda: "birch is paused by its people until" in sentence(consortium, job), consortium)
    goes_on(consortium, job, ("alder", "cedar"))
    run("dure_client.cli", "resume", job.id, "--home", home)
    goes_on(consortium, job)


def test_the_way_a_job_is_run_may_change_while_it_runs(course) -> None:
    consortium, job = course
    said = operate(consortium, "set", job.id, "--quorum", "3", "--update-seconds", "50")
    assert "quorum 3, update_seconds 50" in said
    goes_on(consortium, job)


def test_a_stopped_job_ends_and_takes_back_what_it_asked_of_the_firms(course) -> None:
    consortium, job = course

    def asked() -> int:
        """How many requests of this job the link holds for firms."""
        with consortium.store.reading() as at:
            bodies = at.session.scalars(text("SELECT body FROM link_messages"))
            return sum(f"{job.id}/".encode() in bytes(body) for body in bodies)

    with tiny.held(consortium, job, "alder"):
        assert asked() > 0
        operate(consortium, "stop", job.id)
        until(lambda: coordinator(consortium, job) is None, consortium)
    assert tiny.state(consortium, job)[0] is JobState.STOPPED
    until(lambda: asked() == 0, consortium)
    consortium.check()
