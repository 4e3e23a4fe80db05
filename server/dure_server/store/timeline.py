"""What happened in each job, in order: the newest events, and for all time how many there were of each kind.

Nothing that decides is read from here; the state of a job and its rounds is in `jobs` and `rounds`. So events may be
written a moment late and lost with a coordinator that is killed, and old ones make place for new ones.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Insert, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from dure_protocols.errors import RefusalCode
from dure_server.store.tables import Event, EventCount, EventKind

KEPT_EVENTS = 4000
"""Newest events of each job that are kept: some 700 rounds in which nothing went wrong."""
NO_ANSWER = "no-answer"
NO_ANSWER_WORDS = "no answer in time"
OTHER = "other"
_CODES = frozenset(code.value for code in RefusalCode)


@dataclass(frozen=True)
class Happening:
    """One thing that happened in a job. seconds: how long it took; code: from a closed list, never a text of a firm's.

    firm: whom it is about; of a phase, who answered last.
    """

    kind: EventKind
    phase: str | None = None
    round: int | None = None
    attempt: int | None = None
    firm: str | None = None
    seconds: float | None = None
    code: str | None = None

    @property
    def sentence(self) -> str:
        """For a person, without the round and attempt."""
        took = "" if self.seconds is None else f" {_duration(self.seconds)}"
        last = f", {self.firm} last" if self.firm else ""
        verdict = "approved the job" if self.code == "approved" else f"refused the job: {self.code}"
        says = {
            EventKind.STATE: f"the job is {self.code}",
            EventKind.COORDINATOR: "a coordinator took the job up",
            EventKind.SIGNOFF: f"{self.firm} {verdict}",
            EventKind.PHASE: f"{self.phase}{took}{last}",
            EventKind.DROPPED: f"{self.firm} dropped out of {self.phase}: {self.code}",
            EventKind.WAITING: f"waited{took} for enough firms",
            EventKind.ABANDONED: "the attempt was given up",
            EventKind.FINISHED: f"the sum was published after{took}",
        }
        return says[self.kind]


def reason_code(why: str) -> str:
    """The code of a reason that the coordinator gives for a drop-out. Codes are few: they label a metric."""
    if why in _CODES:
        return why
    return NO_ANSWER if why == NO_ANSWER_WORDS else OTHER


class Timeline:
    """Rows of `events` and `event_counts`, written in the transactions that a job's coordinator has anyway."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._session, self._now = session, now

    def add(self, job: str, happenings: Sequence[Happening]) -> None:
        """Put down what happened up to now, and forget what is too old to be kept."""
        if not happenings:
            return
        for each in happenings:
            if each.kind is not EventKind.WAITING or not self._prolonged(job, each):
                self._session.add(self._row(job, each))
                self._session.flush()  # in this order
        for (kind, code), number in Counter((each.kind, each.code or "") for each in happenings).items():
            self._count(job, kind, code, number)
        newest = select(Event.number).where(Event.job == job).order_by(Event.number.desc())
        last_dropped = newest.offset(KEPT_EVENTS).limit(1).scalar_subquery()
        self._session.execute(
            delete(Event)
            .where(Event.job == job, Event.number <= last_dropped)
            .execution_options(synchronize_session=False)
        )

    def of(self, job: str, *, after: int = 0, newest: int = KEPT_EVENTS) -> list[Event]:
        """A job's events in order, those behind the number `after`; at most the `newest` so many."""
        mine = select(Event).where(Event.job == job, Event.number > after)
        return list(reversed(self._session.scalars(mine.order_by(Event.number.desc()).limit(newest)).all()))

    def counts(self, kind: EventKind) -> list[EventCount]:
        """How many events of a kind there ever were, by job and code."""
        return list(self._session.scalars(select(EventCount).where(EventCount.kind == kind)))

    def _prolonged(self, job: str, more: Happening) -> bool:
        """A wait that goes on is one event: a job that waits for hours must not push its history out."""
        kinds = (Event.job == job) & (Event.kind != EventKind.DROPPED)
        last = self._session.scalars(select(Event).where(kinds).order_by(Event.number.desc()).limit(1)).first()
        if last is None or last.kind is not EventKind.WAITING or last.round_number != more.round:
            return False
        last.at, last.attempt = self._now, more.attempt
        last.seconds = (last.seconds or 0.0) + (more.seconds or 0.0)
        self._session.flush()
        return True

    def _row(self, job: str, each: Happening) -> Event:
        return Event(
            job=job,
            at=self._now,
            kind=each.kind,
            phase=each.phase,
            round_number=each.round,
            attempt=each.attempt,
            firm=each.firm,
            seconds=each.seconds,
            code=each.code,
        )

    def _count(self, job: str, kind: EventKind, code: str, number: int) -> None:
        values = {"job": job, "kind": kind, "code": code, "number": number}
        key = [EventCount.job, EventCount.kind, EventCount.code]
        more = {"number": EventCount.number + number}
        upsert: Insert
        if self._session.get_bind().dialect.name == "sqlite":
            upsert = sqlite.insert(EventCount).values(values).on_conflict_do_update(index_elements=key, set_=more)
        else:
            upsert = postgresql.insert(EventCount).values(values).on_conflict_do_update(index_elements=key, set_=more)
        self._session.execute(upsert)


def happening_of(row: Event) -> Happening:
    """What a row says."""
    return Happening(row.kind, row.phase, row.round_number, row.attempt, row.firm, row.seconds, row.code)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
