"""A job's timeline: in the store, as the coordinator's record writes it, and gathered for the page."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from dure_protocols.errors import RefusalCode
from dure_server.console.timeline import event_views, stretches
from dure_server.coordinator.record import JobRecord, Situation
from dure_server.store import EventKind, Happening, JobState, Store
from dure_server.store import timeline as timeline_module
from dure_server.store.timeline import happening_of, reason_code
from tests.server.conftest import Clock
from tests.server.samples import job_file

FIRMS = ("firm-a", "firm-b", "firm-c")
DIGEST = bytes(32)


@pytest.fixture
def job(store: Store) -> str:
    with store.transaction() as tx:
        for firm in FIRMS:
            tx.firms.invite(firm)
        return tx.jobs.propose(job_file("wear", firms=FIRMS)).id


class Course:
    """A coordinator's record, with a stopwatch that stands still until it is told to go."""

    def __init__(self, store: Store, job: str, clock: Clock) -> None:
        self.store, self.clock, self.seconds = store, clock, 0.0
        self.record = JobRecord(store, job, lambda: self.seconds)

    def forward(self, seconds: float) -> None:
        self.seconds += seconds
        self.clock.forward(seconds=seconds)

    def phase(self, phase: str, number: int, attempt: int, seconds: float, last: str = "firm-b") -> None:
        """A phase in which all answer, `last` last."""
        for waiting in (FIRMS, (last,), ()):
            self.record.show(Situation(phase, "…", number, attempt, FIRMS, waiting))
        self.forward(seconds)

    def round(self, number: int, attempt: int = 1, joined: bool = False) -> None:
        if not joined:
            self.phase("join", number, self.record.reserve_attempt(number), 0.5)
        self.record.begin_attempt(number, attempt, FIRMS, 1)
        self.phase("update", number, attempt, 2.0, last="firm-c")
        self.phase("release", number, attempt, 0.25)
        self.record.finish_round(
            number, attempt, count=1, metrics={}, model_digest=DIGEST, sum_digest=DIGEST,
            seconds={"join": 0.5, "update": 2.0, "release": 0.25, "publish": 0.125}, bytes_up=1, bytes_down=1,
        )  # fmt: skip

    @property
    def told(self) -> list[str]:
        with self.store.reading() as tx:
            return [happening_of(row).sentence for row in tx.timeline.of("wear")]


@pytest.fixture
def course(store: Store, job: str, clock: Clock) -> Course:
    return Course(store, job, clock)


# The store


def test_events_come_back_in_order_and_behind_a_number(store: Store, job: str, clock: Clock) -> None:
    with store.transaction() as tx:
        tx.timeline.add(job, [Happening(EventKind.PHASE, f"phase-{n}", 1, 1, seconds=float(n)) for n in range(3)])
    with store.reading() as tx:
        rows = tx.timeline.of(job)
        assert [row.phase for row in rows] == ["phase-0", "phase-1", "phase-2"]
        assert {row.at for row in rows} == {clock.now}
        assert [row.phase for row in tx.timeline.of(job, after=rows[0].number)] == ["phase-1", "phase-2"]
        assert [row.phase for row in tx.timeline.of(job, newest=1)] == ["phase-2"]


def test_only_the_newest_events_of_each_job_are_kept_and_all_are_counted(
    store: Store, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline_module, "KEPT_EVENTS", 5)
    with store.transaction() as tx:
        tx.jobs.propose(job_file("other", firms=FIRMS))
        tx.timeline.add("other", [Happening(EventKind.COORDINATOR)])
    for number in range(12):
        with store.transaction() as tx:
            tx.timeline.add(job, [Happening(EventKind.DROPPED, "join", number, 1, "firm-a", code="no-answer")])
    with store.reading() as tx:
        assert [row.round_number for row in tx.timeline.of(job)] == [7, 8, 9, 10, 11]
        assert len(tx.timeline.of("other")) == 1
        counts = [(row.job, row.code, row.number) for row in tx.timeline.counts(EventKind.DROPPED)]
    assert counts == [(job, "no-answer", 12)]


def test_two_coordinators_at_once_lose_no_count(store: Store, job: str) -> None:
    def add(_: int) -> None:
        with store.transaction() as tx:
            tx.timeline.add(job, [Happening(EventKind.COORDINATOR)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(20)))
    with store.reading() as tx:
        assert [row.number for row in tx.timeline.counts(EventKind.COORDINATOR)] == [20]
        assert len(tx.timeline.of(job)) == 20


def test_a_jobs_states_are_events_whoever_sets_them(store: Store, job: str) -> None:
    with store.transaction() as tx:
        for state in (JobState.RUNNING, JobState.RUNNING, JobState.PAUSED):
            tx.jobs.set_state(job, state)
    with store.reading() as tx:
        assert [row.code for row in tx.timeline.of(job)] == ["running", "paused"]


def test_reasons_become_codes_of_a_closed_list() -> None:
    assert {reason_code(code.value) for code in RefusalCode} == {code.value for code in RefusalCode}
    assert reason_code("no answer in time") == "no-answer"
    assert reason_code("escrowed other keys than firm-b did") == "other"


# What the coordinator tells


def test_a_round_is_told_by_its_phases_and_who_answered_last(course: Course) -> None:
    course.round(1)
    assert course.told == [
        "a coordinator took the job up",
        "join 0.5 s, firm-b last",
        "update 2.0 s, firm-c last",
        "release 0.2 s, firm-b last",
        "publish 0.1 s",
        "the sum was published after 2.9 s",
    ]


def test_a_drop_out_and_the_attempt_that_it_cost_are_told(course: Course) -> None:
    course.phase("join", 1, course.record.reserve_attempt(1), 0.5)
    course.record.begin_attempt(1, 1, FIRMS, 1)
    course.record.show(Situation("update", "…", 1, 1, FIRMS, FIRMS))
    course.forward(120)
    course.record.dropped("update", 1, 1, {"firm-b": "no answer in time", "firm-c": "training"})
    course.record.abandon_attempt(1, 1, "…")
    course.round(1, attempt=2)
    assert course.told[2:5] == [
        "firm-b dropped out of update: no-answer",
        "firm-c dropped out of update: training",
        "update 2 min 0 s",
    ]
    assert course.told[5:7] == ["the attempt was given up", "join 0.5 s, firm-b last"]


def test_waiting_for_firms_for_hours_is_one_event_and_each_absence_is_told_once(course: Course) -> None:
    for _ in range(50):
        attempt = course.record.reserve_attempt(1)
        course.record.show(Situation("join", "inviting", 1, attempt, FIRMS, FIRMS))
        course.forward(120)
        course.record.dropped("join", 1, attempt, {"firm-b": "no answer in time"})
    course.phase("join", 1, course.record.reserve_attempt(1), 0.5)
    course.round(1, attempt=51, joined=True)
    assert course.told[1:4] == [
        "firm-b dropped out of join: no-answer",
        "waited 1 h 40 min for enough firms",
        "join 0.5 s, firm-b last",
    ]
    course.record.dropped("join", 2, 1, {"firm-b": "no answer in time"})  # another round: told again
    course.round(2)
    assert course.told.count("firm-b dropped out of join: no-answer") == 2


def test_sign_offs_are_told_once_and_those_that_only_wait_are_not(course: Course) -> None:
    course.record.ask_signoffs(FIRMS)
    for _ in range(3):
        course.record.refused("firm-a", RefusalCode.ROSTER)
        course.record.refused("firm-b", RefusalCode.NOT_APPROVED)
    course.record.approved("firm-a", b"")
    assert course.told == [
        "a coordinator took the job up", "firm-a refused the job: roster", "firm-a approved the job"
    ]  # fmt: skip


def test_what_a_failed_transaction_would_have_told_is_told_by_the_next(course: Course) -> None:
    course.record.dropped("update", 1, 1, {"firm-b": "training"})
    with pytest.raises(Exception, match="never begun"):
        course.record.abandon_attempt(1, 1, "…")
    assert course.told == []
    course.record.reserve_attempt(1)
    assert course.told == [
        "a coordinator took the job up", "firm-b dropped out of update: training", "the attempt was given up"
    ]  # fmt: skip


# The page's stretches


def test_the_page_gathers_attempts_waits_and_what_is_about_the_whole_job(course: Course, store: Store) -> None:
    for _ in range(2):
        attempt = course.record.reserve_attempt(1)
        course.record.show(Situation("join", "inviting", 1, attempt, FIRMS, FIRMS))
        course.forward(60)
        course.record.dropped("join", 1, attempt, {"firm-b": "no answer in time"})
    course.phase("join", 1, course.record.reserve_attempt(1), 0.5)
    course.round(1, attempt=3, joined=True)
    course.round(2)
    with store.reading() as tx:
        shown = stretches(event_views(tx.timeline.of("wear")))
    assert [(each.round, each.attempt, each.outcome) for each in shown] == [
        (2, 1, "finished"), (1, 3, "finished"), (1, None, "waiting"), (1, 1, ""), (None, None, "")
    ]  # fmt: skip
    assert [part.phase for part in shown[0].bar] == ["join", "update", "release", "publish"]
    assert shown[0].bar[0].start == 0
    assert sum(part.width for part in shown[0].bar) == pytest.approx(100, abs=0.1)  # it is the longest
    assert [event.sentence for event in shown[3].told] == ["firm-b dropped out of join: no-answer"]
