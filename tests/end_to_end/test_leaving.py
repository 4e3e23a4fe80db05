"""A firm leaves a job and then the consortium, by the command that people type, with real processes."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from dure_client.home import AgentHome
from dure_client.leaving import stored_receipt
from dure_client.ledger_export import LAST_EXPORT, verify_export
from dure_lab.consortium import LocalConsortium
from dure_protocols.job import JobFile
from dure_server.store import FirmStatus
from tests.end_to_end import tiny
from tests.end_to_end.tiny import ROWS, published, until

LEAVER = "birch"


@pytest.fixture(scope="module")
def course() -> Iterator[tuple[LocalConsortium, JobFile]]:
    """A consortium of its own, because one of its firms will be gone; its job runs."""
    with tiny.founded() as consortium:
        for firm in ROWS:
            tiny.give_data(consortium.enrol(firm), tiny.rows_of(firm))
        consortium.introduce("tabular")
        consortium.set_policy(minimum_cohort=2)
        for firm in ROWS:
            consortium.start_agent(firm)
        job = consortium.propose(tiny.draft(consortium, "leaving", rounds=500))
        tiny.approve(consortium, job)
        until(lambda: len(published(consortium, job)) > 1, consortium)
        yield consortium, job


def leave(home: AgentHome, *words: str) -> str:
    command = [sys.executable, "-m", "dure_client.cli", "leave", *words, "--yes", "--home", str(home.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_firm_leaves_a_job_in_the_middle_of_its_training_and_the_others_go_on(course) -> None:
    consortium, job = course
    home = consortium.agents[LEAVER]
    with tiny.held(consortium, job, LEAVER):
        said = leave(home, job.id)
    assert "published sums hold this firm's update" in said
    assert "cannot be taken back" in said
    assert not (home.job_folder(job.id) / "session.bin").exists()
    assert tiny.trainer_of(consortium, LEAVER, job) is None
    number = published(consortium, job)[-1].number
    until(lambda: published(consortium, job)[-1].number > number + 1, consortium)
    assert tuple(published(consortium, job)[-1].members) == ("alder", "cedar")
    receipt = stored_receipt(home, job.id)
    assert receipt is not None
    with consortium.store.reading() as at:
        assert [row.receipt for row in at.departures.all()] == [receipt.encode()]
        summed = [row.number for row in at.rounds.of(job.id) if row.sum_digest and LEAVER in row.members]
    assert receipt.parts[0].num_sums == len(summed)


def test_a_firm_leaves_the_consortium_while_the_server_is_down_and_the_server_hears_of_it_later(course) -> None:
    consortium, job = course
    home, identity = consortium.agents[LEAVER], consortium.agents[LEAVER].identity()
    consortium.stop("server", kill=True)
    assert "has not heard of it yet" in leave(home, "--consortium", "--seconds", "1")
    assert home.identity_key_file.exists(), "the statement still has to be sent"
    consortium.start_server()
    agent = consortium.processes.pop(LEAVER).popen  # it ends by itself
    assert agent.wait(60) == 0
    with consortium.store.reading() as at:
        assert at.firms.get(LEAVER).status is FirmStatus.LEFT
        assert {row.job for row in at.departures.all()} == {job.id, ""}
    assert not home.identity_key_file.exists()
    assert not home.tls_key_file.exists()
    verify_export(home.ledger_file.with_name(LAST_EXPORT), identity.fingerprint)
    assert "has receipted it" in leave(home, "--consortium")
    number = published(consortium, job)[-1].number
    until(lambda: published(consortium, job)[-1].number > number + 1, consortium)
