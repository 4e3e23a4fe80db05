"""Whatever process is killed in the middle of a round, the job goes on and nothing is counted twice.

One job runs through all these tests. Each holds a firm's trainer, so that the job stands in mid-round for certain,
kills something, lets the trainer go, and waits for later rounds. What a firm gives is told by its rows, which are
powers of two: a sum over a firm twice, or over another than is said, shows in the count.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest

from dure_client.jobs.results import Keeps
from dure_client.ledger import verify_file
from dure_lab.consortium import LocalConsortium
from dure_protocols.job import JobFile
from dure_server.store import JobState, RoundState
from tests.end_to_end import tiny
from tests.end_to_end.recorded_mills import WATCHED, Mills, Recording
from tests.end_to_end.tiny import ROWS, TRAINED_ROWS, held, published, server_part, until
from tests.end_to_end.wire_account import Overhead, departures_over_https, departures_over_link, reconcile

ALL = tuple(sorted(ROWS))
NUM_ROUNDS = 30


@dataclass
class Course:
    """The job that runs through the tests of this file."""

    consortium: LocalConsortium
    job: JobFile

    @property
    def members(self) -> dict[int, tuple[str, ...]]:
        """Round to the firms whose updates are in its sum."""
        return {row.number: tuple(row.members) for row in published(self.consortium, self.job)}

    def goes_on_together_after(self, number: int, seconds: float = 60.0) -> None:
        """Wait until a round is published, and then one with every firm in it."""
        until(lambda: number in self.members, self.consortium, seconds)
        until(lambda: any(at > number and who == ALL for at, who in self.members.items()), self.consortium, seconds)


@pytest.fixture(scope="module")
def course(mills: Mills, recording: Recording) -> Course:
    consortium = mills.consortium
    job = consortium.propose(tiny.draft(consortium, "kills", rounds=NUM_ROUNDS))
    tiny.approve(consortium, job)
    made = Course(consortium, job)
    until(lambda: 1 in made.members, consortium)
    return made


@pytest.fixture(autouse=True)
def everyone_runs(course: Course) -> Iterator[None]:
    """Start again what a failing test left dead, so that it spoils no other."""
    yield
    for name in ("server", *ALL):
        process = course.consortium.processes.get(name)
        if process is not None and process.popen.poll() is None:
            continue
        course.consortium.processes.pop(name, None)
        if name == "server":
            course.consortium.start_server()
        else:
            course.consortium.start_agent(name)


def test_an_agent_killed_in_mid_round_and_started_again_takes_part_again(course: Course) -> None:
    with held(course.consortium, course.job, WATCHED) as number:
        course.consortium.stop(WATCHED, kill=True)
    course.consortium.start_agent(WATCHED)
    course.goes_on_together_after(number)


def test_a_trainer_killed_in_mid_round_costs_its_firm_that_round_and_no_more(course: Course) -> None:
    with held(course.consortium, course.job, "birch") as number:
        trainer = tiny.trainer_of(course.consortium, "birch", course.job)
        assert trainer is not None
        trainer.kill()
    course.goes_on_together_after(number)
    assert course.members[number] == ("alder", "cedar")
    course.consortium.check()


def test_when_an_agent_stays_away_the_others_go_on_in_a_fresh_attempt_without_it(course: Course) -> None:
    with held(course.consortium, course.job, "birch") as number:
        course.consortium.stop("birch", kill=True)
        until(lambda: number + 1 in course.members, course.consortium)
    assert course.members[number] == course.members[number + 1] == ("alder", "cedar")
    with course.consortium.store.reading() as at:
        attempts = [row for row in at.rounds.of(course.job.id) if row.number == number]
    assert [row.state for row in attempts] == [RoundState.ABANDONED, RoundState.FINISHED]
    assert attempts[0].reason == "birch: no answer in time"
    course.consortium.start_agent("birch")
    course.goes_on_together_after(number + 1)


def test_a_coordinator_killed_in_mid_round_is_started_again_and_goes_on_with_that_round(course: Course) -> None:
    with held(course.consortium, course.job, "cedar") as number:
        before = part(course, "dure_server.coordinator", course.job.id)
        before.kill()
        until(lambda: not before.is_running(), course.consortium)
    course.goes_on_together_after(number)
    assert course.members[number] == ALL
    assert part(course, "dure_server.coordinator", course.job.id).pid != before.pid


def test_a_link_killed_in_mid_round_is_started_again_and_nothing_is_lost(course: Course) -> None:
    with held(course.consortium, course.job, "alder") as number:
        before = part(course, "dure_server.link")
        before.kill()
        until(lambda: not before.is_running(), course.consortium)
    course.goes_on_together_after(number)
    assert part(course, "dure_server.link").pid != before.pid


def test_a_server_killed_whole_in_mid_round_goes_on_when_it_is_started_again(course: Course) -> None:
    with held(course.consortium, course.job, "cedar") as number:
        parts = psutil.Process(course.consortium.processes["server"].popen.pid).children(recursive=True)
        course.consortium.stop("server", kill=True)
        _, alive = psutil.wait_procs(parts, timeout=15)
        assert alive == []  # they end with the one that started them
    course.consortium.start_server()
    course.goes_on_together_after(number)


def test_the_job_finishes_with_every_round_counted_once(course: Course) -> None:
    until(lambda: tiny.is_finished(course.consortium, course.job), course.consortium, 120)
    rounds = published(course.consortium, course.job)
    assert [row.number for row in rounds] == list(range(NUM_ROUNDS + 2))  # statistics before, a last look behind
    assert rounds[-1].count == len(rounds[-1].members)
    counts = {row.number: row.count for row in rounds[:-1]}
    assert counts == {row.number: sum(TRAINED_ROWS[firm] for firm in row.members) for row in rounds[:-1]}
    assert tiny.state(course.consortium, course.job) == (JobState.FINISHED, "")
    with course.consortium.store.reading() as at:
        assert at.jobs.get(course.job.id).epoch == 1  # no firm had lost its keys


def test_every_firm_and_the_server_hold_the_same_model_at_the_end(course: Course) -> None:
    homes = course.consortium.agents.values()
    until(lambda: all(tiny.result(home, course.job) for home in homes), course.consortium)
    models = [home.job_folder(course.job.id) / "final.f32" for home in homes]
    models.append(course.consortium.home.job_folder(course.job.id) / "final.f32")
    assert len({model.read_bytes() for model in models}) == 1
    results = [tiny.result(home, course.job) for home in homes]
    assert all(result is not None and result.keeps in Keeps for result in results)


def test_no_mask_was_used_for_two_vectors(course: Course, mills: Mills) -> None:
    """What a firm sent in one attempt it sent in no other way again: one digest an attempt, however often it came."""
    for home in course.consortium.agents.values():
        verify_file(home.ledger_file, home.identity().public_bytes)
    receipts = Counter(
        (record.entry.job, record.entry.round, record.entry.attempt)
        for record in {record.entry: record for record in mills.records}.values()
        if record.entry.kind == "masked-update"
    )
    assert set(receipts.values()) == {1}


def test_what_left_a_firm_whose_agent_was_killed_is_in_its_ledger_too(course: Course, mills: Mills) -> None:
    course.consortium.stop(WATCHED)
    until(lambda: all(connection.is_over for connection in mills.link.connections), course.consortium)
    left = [each for connection in mills.link.connections for each in departures_over_link(connection, Overhead())]
    left += [each for connection in mills.enrolment.connections for each in departures_over_https(connection)]
    reconcile(left, mills.records, exact=False)


def part(course: Course, *argv: str) -> psutil.Process:
    found: list[psutil.Process] = []

    def is_there() -> bool:
        process = server_part(course.consortium, *argv)
        found.extend([process] if process is not None else [])
        return bool(found)

    until(is_there, course.consortium)
    return found[0]
