"""The store, over every database it supports."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import MetaData, create_engine, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import StatementError

from dure_protocols.certificates import Authority, new_serial, new_tls_key, read_certificate, signing_request
from dure_protocols.errors import IdentityError
from dure_server.link import journal
from dure_server.store import (
    FirmStatus,
    JobState,
    RoundState,
    SchemaError,
    SignoffState,
    Store,
    StoreConflictError,
    StoreError,
    UnknownRowError,
)
from dure_server.store.database import SCHEMA_VERSION
from dure_server.store.schema import known_versions
from dure_server.store.tables import Base, Firm
from tests.server.conftest import Clock
from tests.server.samples import job_file

DONE = {"count": 120.0, "metrics": {"loss": 0.25}, "model_digest": "11" * 32, "sum_digest": "22" * 32}


@pytest.fixture
def job(store: Store) -> str:
    with store.transaction() as tx:
        for firm in ("firm-a", "firm-b"):
            tx.firms.invite(firm)
        return tx.jobs.propose(job_file("wear")).id


# Schema


def test_migrations_make_exactly_the_tables_that_the_code_maps(store: Store, empty_store_url: str) -> None:
    tables = MetaData()
    for table in (*Base.metadata.tables.values(), *journal.metadata.tables.values()):
        table.to_metadata(tables)
    engine = create_engine(empty_store_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables) == []
    engine.dispose()


def test_the_codes_version_is_that_of_the_newest_migration() -> None:
    assert known_versions()[0] == SCHEMA_VERSION


def test_an_empty_store_says_to_run_init(empty_store_url: str) -> None:
    with pytest.raises(SchemaError, match="dure-server init"):
        Store.open(empty_store_url)


def test_a_newer_store_is_refused_and_says_so(store: Store, empty_store_url: str) -> None:
    with store.transaction() as tx:
        tx.session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for opening in (Store.open, Store.create):
        with pytest.raises(SchemaError, match="9999, which is newer"):
            opening(empty_store_url)


def test_creating_twice_keeps_what_is_there(store: Store, empty_store_url: str, open_stores: list[Store]) -> None:
    again = Store.create(empty_store_url)
    open_stores.append(again)
    with again.reading() as tx:
        assert tx.consortium.get().name == "Millers"


def test_an_unreachable_database_is_named_without_its_password() -> None:
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        Store.open("postgresql://dure:hunter2@127.0.0.1:1/dure?connect_timeout=2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["not a url, hunter2", "mysql://dure:hunter2@localhost/dure"])
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        Store.open(url)
    assert "hunter2" not in str(caught.value)


# Transactions and times


def test_an_exception_rolls_the_whole_transaction_back(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.transaction() as tx:
        _ = tx.firms.invite("firm-a"), 1 / 0
    with store.reading() as tx:
        assert tx.firms.all() == []


def test_reading_never_writes(store: Store) -> None:
    with store.reading() as tx:
        tx.firms.invite("firm-a")
    with store.reading() as tx:
        assert tx.firms.all() == []


def test_times_come_back_aware_and_in_utc_whatever_zone_they_went_in(store: Store, clock: Clock) -> None:
    seoul = datetime.fromisoformat("2026-03-01T18:30:00+09:00")
    clock.now = seoul
    with store.transaction() as tx:
        tx.firms.invite("firm-a")
    with store.reading() as tx:
        invited = tx.firms.get("firm-a").invited_at
    assert invited == seoul
    assert invited.tzinfo is UTC


def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    with pytest.raises(StatementError, match="time zone"), store.transaction() as tx:
        tx.session.add(Firm(name="firm-a", status=FirmStatus.INVITED, invited_at=datetime(2026, 1, 1)))


def test_foreign_keys_are_enforced(store: Store) -> None:
    with pytest.raises(Exception, match=r"(?i)foreign key"), store.transaction() as tx:
        tx.progress.set("no-such-job", "training", "…")


def test_many_writers_at_once_wait_for_each_other_and_the_audit_stays_one_chain(store: Store) -> None:
    def act(number: int) -> None:
        with store.transaction() as tx:
            tx.audit.append("operator", "test.act", str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(40)))
    with store.reading() as tx:
        assert tx.audit.verify() == 40
        assert {event.subject for event in tx.audit.all()} == {str(number) for number in range(40)}


@pytest.mark.parametrize(
    "sabotage",
    [
        "UPDATE audit SET detail = '{\"count\":2}' WHERE number = 2",
        "UPDATE audit SET actor = 'nobody' WHERE number = 2",
        "DELETE FROM audit WHERE number = 2",
        "UPDATE audit SET number = 9 WHERE number = 3",
    ],
)
def test_a_changed_or_missing_audit_event_shows(store: Store, sabotage: str) -> None:
    for number in range(3):
        with store.transaction() as tx:
            tx.audit.append("operator", "test.act", "firm-a", {"count": number})
    with store.transaction() as tx:
        tx.session.execute(text(sabotage.replace(":2", "\\:2")))
    with pytest.raises(StoreError, match="audit log was changed"), store.reading() as tx:
        tx.audit.verify()


# Jobs, sign-offs, rounds, progress


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ([JobState.RUNNING, JobState.PAUSED, JobState.RUNNING, JobState.FINISHED], True),
        ([JobState.RUNNING, JobState.FAILED, JobState.RUNNING], True),
        ([JobState.STOPPED], True),
        ([JobState.RUNNING, JobState.RUNNING], True),
        ([JobState.FINISHED], False),
        ([JobState.PAUSED], False),
        ([JobState.RUNNING, JobState.FINISHED, JobState.RUNNING], False),
        ([JobState.STOPPED, JobState.RUNNING], False),
    ],
)
def test_a_job_moves_only_along_its_life(store: Store, job: str, path: list[JobState], allowed: bool) -> None:
    def walk() -> None:
        for state in path:
            with store.transaction() as tx:
                tx.jobs.set_state(job, state, f"now {state}")

    if allowed:
        walk()
    else:
        with pytest.raises(StoreConflictError, match="cannot become"):
            walk()


def test_a_job_keeps_when_it_started_and_ended(store: Store, job: str, clock: Clock) -> None:
    for state in (JobState.RUNNING, JobState.FAILED, JobState.RUNNING, JobState.FINISHED):
        clock.forward(minutes=1)
        with store.transaction() as tx:
            row = tx.jobs.set_state(job, state)
    assert row.started_at == row.created_at + timedelta(minutes=1)
    assert row.ended_at == row.created_at + timedelta(minutes=4)


def test_proposing_the_same_job_again_is_fine_and_another_under_its_id_is_not(store: Store, job: str) -> None:
    with store.transaction() as tx:
        assert tx.jobs.propose(job_file("wear")).body == job_file("wear").to_bytes()
    with pytest.raises(StoreConflictError, match="another digest"), store.transaction() as tx:
        tx.jobs.propose(job_file("wear", title="Another title"))


def test_unknown_rows_are_named_together_with_the_known(store: Store, job: str) -> None:
    with store.reading() as tx:
        with pytest.raises(UnknownRowError, match="known jobs: wear"):
            tx.jobs.get("tear")
        with pytest.raises(UnknownRowError, match="known firms: firm-a, firm-b"):
            tx.firms.get("firm-c")
        with pytest.raises(UnknownRowError, match="never begun"):
            tx.rounds.abandon("wear", 1, 1, "gone")


def test_a_firms_word_is_kept_and_only_of_firms_that_were_asked(store: Store, job: str) -> None:
    with store.transaction() as tx:
        tx.signoffs.ask(job, ["firm-b", "firm-a"])
        tx.signoffs.set(job, "firm-a", SignoffState.APPROVED, signature=b"s" * 64)
        tx.signoffs.ask(job, ["firm-a"])
    with store.reading() as tx:
        assert [(row.firm, row.state) for row in tx.signoffs.of(job)] == [
            ("firm-a", SignoffState.APPROVED),
            ("firm-b", SignoffState.AWAITING),
        ]
    with pytest.raises(UnknownRowError, match="was not asked"), store.transaction() as tx:
        tx.signoffs.set(job, "firm-c", SignoffState.APPROVED)


def test_a_round_goes_on_after_a_crash_and_finishes_once(store: Store, job: str) -> None:
    for _ in range(2):  # the coordinator starts again and begins and finishes what it had begun and finished
        with store.transaction() as tx:
            if tx.rounds.finished(job, 1) is None:
                tx.rounds.begin(job, 1, 1, ["firm-b", "firm-a"])
            tx.rounds.finish(job, 1, 1, **DONE, bytes_up=1 << 40, bytes_down=7)  # type: ignore[arg-type]
    with store.reading() as tx:
        (row,) = tx.rounds.of(job)
        assert tx.rounds.last_finished(job) is row
    assert (row.members, row.count, row.metrics, row.bytes_up) == (["firm-a", "firm-b"], 120.0, {"loss": 0.25}, 1 << 40)
    with pytest.raises(StoreConflictError, match="another sum"), store.transaction() as tx:
        tx.rounds.finish(job, 1, 1, **{**DONE, "sum_digest": "33" * 32})  # type: ignore[arg-type]
    with pytest.raises(StoreConflictError, match="was finished at attempt 1"), store.transaction() as tx:
        tx.rounds.begin(job, 1, 2, ["firm-a", "firm-b"])
    with pytest.raises(StoreConflictError, match="cannot be abandoned"), store.transaction() as tx:
        tx.rounds.abandon(job, 1, 1, "too late")


def test_an_abandoned_attempt_is_followed_by_a_fresh_one(store: Store, job: str) -> None:
    with store.transaction() as tx:
        tx.rounds.begin(job, 1, 1, ["firm-a", "firm-b"])
        tx.rounds.abandon(job, 1, 1, "firm-b was lost before its upload")
        with pytest.raises(StoreConflictError, match="take the next one"):
            tx.rounds.begin(job, 1, 1, ["firm-a"])
        assert tx.rounds.last_attempt(job, 1) == 1
        tx.rounds.begin(job, 1, 2, ["firm-a"])
        tx.rounds.finish(job, 1, 2, **DONE)  # type: ignore[arg-type]
    with store.reading() as tx:
        assert [row.state for row in tx.rounds.of(job)] == [RoundState.ABANDONED, RoundState.FINISHED]
        assert tx.rounds.last_attempt(job, 2) == 0


def test_an_attempt_s_survivors_are_fixed_once_and_stay_over_a_restart(store: Store, job: str) -> None:
    """Firms vote for one set: a coordinator that is started again must not ask them to agree on another."""
    with store.transaction() as tx:
        tx.rounds.begin(job, 1, 1, ["firm-c", "firm-b", "firm-a"], epoch=3)
        tx.rounds.settle(job, 1, 1, ["firm-c", "firm-a"])
    with store.transaction() as tx:
        tx.rounds.begin(job, 1, 1, ["firm-a", "firm-b", "firm-c"], epoch=3)
        tx.rounds.settle(job, 1, 1, ["firm-a", "firm-c"])
    for other in (["firm-a", "firm-b"], ["firm-a", "firm-b", "firm-c"], []):
        with pytest.raises(StoreConflictError, match="firm-a, firm-c and no others"), store.transaction() as tx:
            tx.rounds.settle(job, 1, 1, other)
    with store.transaction() as tx:
        tx.rounds.finish(job, 1, 1, **DONE, note="firm-a could not use the escrow of firm-b")  # type: ignore[arg-type]
    with store.reading() as tx:
        (row,) = tx.rounds.of(job)
    assert (row.epoch, row.members, row.summed) == (3, ["firm-a", "firm-b", "firm-c"], ["firm-a", "firm-c"])
    assert row.reason == "firm-a could not use the escrow of firm-b"


def test_in_retry_mode_a_sum_holds_every_member(store: Store, job: str) -> None:
    with store.transaction() as tx:
        tx.rounds.begin(job, 1, 1, ["firm-b", "firm-a"], epoch=1)
        tx.rounds.finish(job, 1, 1, **DONE)  # type: ignore[arg-type]
    with store.reading() as tx:
        (row,) = tx.rounds.of(job)
    assert row.survivors is None
    assert row.summed == row.members == ["firm-a", "firm-b"]


def test_an_attempt_that_was_never_begun_has_no_survivors_to_fix(store: Store, job: str) -> None:
    with pytest.raises(UnknownRowError), store.transaction() as tx:
        tx.rounds.settle(job, 1, 1, ["firm-a"])


def test_progress_is_one_row_a_job(store: Store, job: str) -> None:
    with store.transaction() as tx:
        tx.progress.set(job, "training", "…", round_number=1, attempt=1, members=["b", "a"], waiting_for=["b"])
    with store.transaction() as tx:
        tx.progress.set(job, "finished", "All rounds are over.")
    with store.reading() as tx:
        row = tx.progress.get(job)
    assert row is not None
    assert (row.phase, row.round_number, row.members, row.waiting_for) == ("finished", None, [], [])


def test_a_firms_connection_comes_and_goes(store: Store, job: str, clock: Clock) -> None:
    with store.transaction() as tx:
        tx.firms.seen("firm-a", "0.1.0")
        tx.firms.seen("firm-b", "0.1.0")
        tx.firms.seen("firm-b", None)
    with store.reading() as tx:
        assert [firm.connected_since for firm in tx.firms.all()] == [clock.now, None]
        assert [firm.agent_version for firm in tx.firms.all()] == ["0.1.0", "0.1.0"]
    with store.transaction() as tx:
        tx.firms.forget_connections()
    with store.reading() as tx:
        assert [firm.connected_since for firm in tx.firms.all()] == [None, None]


def test_sqlite_runs_with_a_write_ahead_log_and_full_flushes(store: Store, empty_store_url: str) -> None:
    if make_url(empty_store_url).get_backend_name() != "sqlite":
        assert inspect(store._engine).has_table("firms")
        return
    with store.reading() as tx:
        values = [tx.session.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")]
    assert values == ["wal", 2]


def test_how_a_job_is_run_may_change_until_it_is_over(store):
    with store.transaction() as tx:
        for firm in ("firm-a", "firm-b"):
            tx.firms.invite(firm)
        assert tx.jobs.propose(job_file("job-1")).operation == {}
        tx.jobs.set_operation("job-1", {"quorum": 2, "update_seconds": 9.5})
    with store.reading() as tx:
        assert tx.jobs.get("job-1").operation == {"quorum": 2, "update_seconds": 9.5}
    with store.transaction() as tx:
        tx.jobs.set_state("job-1", JobState.STOPPED)
    with store.transaction() as tx, pytest.raises(StoreConflictError, match="stopped"):
        tx.jobs.set_operation("job-1", {})


def test_what_was_deleted_stays_deleted(store):
    with store.transaction() as tx:
        tx.jobs.propose(job_file("job-1"))
        assert tx.jobs.get("job-1").sums_from == 0
        for number in (16, 8):
            tx.jobs.keep_sums_from("job-1", number)
    with store.reading() as tx:
        assert tx.jobs.get("job-1").sums_from == 16


def test_a_store_of_the_version_before_is_brought_up_with_its_jobs(empty_store_url, open_stores):
    """A job from before is run as usual, and all its sums are there."""
    made = Store.create(empty_store_url)
    open_stores.append(made)
    with made.transaction() as tx:
        tx.jobs.propose(job_file("job-1"))
    with made.transaction() as tx:
        for column in ("operation", "sums_from"):
            tx.session.execute(text(f"ALTER TABLE jobs DROP COLUMN {column}"))
        for table in ("departures", "ledger_heads"):
            tx.session.execute(text(f"DROP TABLE {table}"))
        tx.session.execute(text("UPDATE alembic_version SET version_num = '0003'"))
    with pytest.raises(SchemaError, match="dure-server upgrade"):
        made.check_schema()
    made.upgrade()
    with made.reading() as tx:
        row = tx.jobs.get("job-1")
        assert (row.operation, row.sums_from) == ({}, 0)


def test_who_is_admitted_by_one_question_is_who_is_admitted_one_by_one(store: Store, clock: Clock) -> None:
    authority = Authority.create("Millers", clock.now, key=new_tls_key(), serial=new_serial())
    marks = {}
    with store.transaction() as tx:
        for firm in ("approved", "joined", "revoked", "shut-out", "expired"):
            tx.firms.invite(firm)
            tx.firms.join(firm, firm.encode().ljust(32), "0.1.0")
            if firm != "joined":
                tx.firms.approve(firm)
            issued = clock.now - timedelta(days=365 if firm == "expired" else 0)
            pem = authority.issue_client(firm, signing_request(new_tls_key()), issued, serial=new_serial())
            facts = read_certificate(pem)
            tx.certificates.add(facts, pem)
            marks[firm] = facts.fingerprint
        tx.certificates.revoke_all("revoked")
        tx.firms.revoke("shut-out")
    one_by_one = set()
    with store.reading() as tx:
        for firm, mark in marks.items():
            with contextlib.suppress(IdentityError):
                tx.certificates.admit(mark)
                one_by_one.add((firm, mark))
        assert tx.certificates.admitted() == one_by_one == {("approved", marks["approved"])}
