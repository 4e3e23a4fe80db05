"""Threshold mode with real processes: a firm that dies in mid-round costs no fresh attempt; the job ends for all."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dure_lab.consortium import LocalConsortium
from dure_lab.datasets import milling
from dure_protocols.job import JobFile
from tests.end_to_end import tiny

FIRMS = ("alder", "birch", "cedar", "dogwood")
NUM_ROUNDS = 4


@pytest.fixture(scope="module")
def consortium() -> Iterator[LocalConsortium]:
    folder = Path(tempfile.mkdtemp(prefix="dure-"))
    try:
        with LocalConsortium(folder, "Threshold mills") as made:
            made.start_server()
            (folder / "contract.toml").write_text(milling.task().contract.to_toml())
            for number, firm in enumerate(FIRMS):
                table = milling.simulate(milling.WORKSHOPS[number % 3], 200 + number, np.random.default_rng(number))
                tiny.give_data(made.enrol(firm), table)
            made.introduce(milling.task().model)
            for firm in FIRMS:
                made.start_agent(firm)
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def job(consortium: LocalConsortium) -> JobFile:
    draft = tiny.draft(consortium, "survivors", rounds=NUM_ROUNDS, mode="threshold", minimum_cohort=3)
    made = consortium.propose(draft)
    tiny.approve(consortium, made)
    return made


def test_the_survivors_open_the_sum_of_the_attempt_in_which_a_firm_died(
    consortium: LocalConsortium, job: JobFile
) -> None:
    assert job.threshold == 3
    tiny.until(lambda: tiny.published(consortium, job), consortium)
    with tiny.held(consortium, job, "dogwood") as number:
        consortium.stop("dogwood", kill=True)
        tiny.until(lambda: tiny.published(consortium, job)[-1].number >= number, consortium)
    row = next(row for row in tiny.published(consortium, job) if row.number == number)
    assert (row.attempt, tuple(row.members), tuple(row.summed)) == (1, FIRMS, FIRMS[:3])


def test_the_firm_that_died_comes_back_checks_what_it_missed_and_gets_the_same_model(
    consortium: LocalConsortium, job: JobFile
) -> None:
    consortium.start_agent("dogwood")
    tiny.until(lambda: tiny.is_finished(consortium, job), consortium)
    homes = [consortium.agents[firm] for firm in FIRMS]
    tiny.until(lambda: all(tiny.result(home, job) for home in homes), consortium)
    assert len({(home.job_folder(job.id) / "final.f32").read_bytes() for home in homes}) == 1
