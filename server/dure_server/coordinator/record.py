"""What a coordinator writes down of its job, so that another process can go on from there.

Beside it goes the timeline, for people: events wait in memory for the next transaction that is made anyway.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from dure_protocols.errors import RefusalCode
from dure_protocols.identity import fingerprint
from dure_protocols.job import JobFile
from dure_protocols.logs import from_now_on
from dure_server.operation import Operation
from dure_server.store import EventKind, Happening, JobState, RoundState, SignoffState, Store, Transaction
from dure_server.store.timeline import reason_code

logger = logging.getLogger(__name__)

JOIN = "join"
"""The phase in which firms are invited to an attempt; one that too few join is made anew."""


@dataclass(frozen=True)
class FinishedRound:
    """A round whose sum is published. cohort: who masked; members: whose vectors the sum holds; model_digest: SHA-256
    of the model after it; metrics: the round metrics' means."""

    number: int
    epoch: int
    attempt: int
    cohort: tuple[str, ...]
    members: tuple[str, ...]
    sum_digest: bytes
    model_digest: bytes
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class OpenAttempt:
    """An attempt whose members are fixed. survivors: those whose sum it opens; None while that is open."""

    attempt: int
    members: tuple[str, ...]
    survivors: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Situation:
    """Where the job is, for the console: phase, who takes part, who is awaited, and why in one sentence."""

    phase: str
    sentence: str
    round: int | None = None
    attempt: int | None = None
    members: tuple[str, ...] = ()
    waiting_for: tuple[str, ...] = ()


class JobRecord:
    """One job's rows in the store. Every method is one transaction. Used by one thread."""

    def __init__(self, store: Store, job: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds, to time phases by."""
        self._store, self._job, self._clock = store, job, clock
        self._last: Situation | None = None
        self._pending = [Happening(EventKind.COORDINATOR)]
        self._phase_began: float | None = None
        self._last_awaited: str | None = None
        self._told: set[Happening] = set()
        self._identities: dict[str, str] | None = None

    def should_run(self) -> bool:
        """False once the operator paused or stopped the job."""
        with self._store.reading() as at:
            return at.jobs.get(self._job).state is JobState.RUNNING

    def is_over(self) -> bool:
        """Whether the job has ended and will not go on."""
        with self._store.reading() as at:
            return at.jobs.get(self._job).state in {JobState.STOPPED, JobState.FINISHED}

    def set_state(self, state: JobState, reason: str = "") -> None:
        """Finish or fail the job."""
        if state is JobState.FAILED:
            self._end_phase()
        with self._writing() as at:
            at.jobs.set_state(self._job, state, reason)

    def operation(self) -> Operation:
        """How the operator wants the job to be run, as of now."""
        with self._store.reading() as at:
            return Operation.model_validate(at.jobs.get(self._job).operation)

    def left(self) -> set[str]:
        """The firms of this job that have left it, or the consortium, by their signed word."""
        with self._store.reading() as at:
            if self._identities is None:
                job = JobFile.from_bytes(at.jobs.get(self._job).body)
                self._identities = {firm: fingerprint(key) for firm, key in job.identities().items()}
            return at.departures.from_job(self._job, self._identities)

    def sums_from(self) -> int:
        """The first round whose sum is still kept for firms that are behind."""
        with self._store.reading() as at:
            return at.jobs.get(self._job).sums_from

    def keep_sums_from(self, number: int) -> None:
        """Note that earlier sums are deleted, before they are."""
        with self._store.transaction() as at:
            at.jobs.keep_sums_from(self._job, number)

    def epoch(self) -> int:
        """The epoch whose keys are in use; 0 before the first."""
        with self._store.reading() as at:
            return at.jobs.get(self._job).epoch

    def begin_epoch(self) -> int:
        """Take the next epoch's number, before any firm is asked."""
        with self._writing() as at:
            return at.jobs.begin_epoch(self._job)

    def ask_signoffs(self, firms: Sequence[str]) -> None:
        """Put down whose approval is awaited."""
        with self._writing() as at:
            at.signoffs.ask(self._job, firms)

    def approvals(self) -> set[str]:
        """The firms that have approved."""
        with self._store.reading() as at:
            return {row.firm for row in at.signoffs.of(self._job) if row.state is SignoffState.APPROVED}

    def now_milliseconds(self) -> int:
        """The store's clock: grows from one coordinator of a job to the next."""
        with self._store.reading() as at:
            return int(at.now.timestamp() * 1000)

    def approved(self, firm: str, signature: bytes) -> None:
        """Keep a firm's signed approval."""
        self._note(Happening(EventKind.SIGNOFF, firm=firm, code="approved"))
        with self._writing() as at:
            at.signoffs.set(self._job, firm, SignoffState.APPROVED, signature=signature)

    def refused(self, firm: str, code: RefusalCode) -> None:
        """Keep that a firm refused, or has not decided yet."""
        state = SignoffState.AWAITING if code is RefusalCode.NOT_APPROVED else SignoffState.REFUSED
        if state is SignoffState.REFUSED:
            self._note_once(Happening(EventKind.SIGNOFF, firm=firm, code=code.value))
        with self._writing() as at:
            at.signoffs.set(self._job, firm, state, code=code.value)

    def finished_rounds(self) -> list[FinishedRound]:
        """Every finished round, in order."""
        with self._store.reading() as at:
            return [
                FinishedRound(
                    row.number,
                    row.epoch,
                    row.attempt,
                    tuple(row.members),
                    tuple(row.summed),
                    bytes.fromhex(row.sum_digest or ""),
                    bytes.fromhex(row.model_digest or ""),
                    row.metrics,
                )
                for row in at.rounds.of(self._job)
                if row.state is RoundState.FINISHED
            ]

    def open_attempt(self, number: int) -> OpenAttempt | None:
        """The attempt at a round that a coordinator before us had fixed the members of, if one stands open."""
        with self._store.reading() as at:
            rows = at.rounds.of(self._job, number)
            row = next((row for row in rows if row.state is RoundState.RUNNING and row.members), None)
            if row is None:
                return None
            return OpenAttempt(row.attempt, tuple(row.members), tuple(row.survivors) if row.survivors else None)

    def reserve_attempt(self, number: int) -> int:
        """Take a number that no attempt at this round has had, before anybody is invited to it."""
        with self._writing() as at:
            return at.rounds.reserve(self._job, number)

    def begin_attempt(self, number: int, attempt: int, members: Sequence[str], epoch: int) -> None:
        """Fix an attempt's members, before they are told."""
        with self._writing() as at:
            at.rounds.begin(self._job, number, attempt, members, epoch)

    def settle_attempt(self, number: int, attempt: int, survivors: Sequence[str]) -> None:
        """Threshold mode: fix whose sum an attempt opens, before they are asked to agree."""
        with self._writing() as at:
            at.rounds.settle(self._job, number, attempt, survivors)

    def abandon_attempt(self, number: int, attempt: int, reason: str) -> None:
        """Give an attempt up; nothing of it was released."""
        self._end_phase()
        self._note(Happening(EventKind.ABANDONED, round=number, attempt=attempt))
        with self._writing() as at:
            at.rounds.abandon(self._job, number, attempt, reason)

    def finish_round(
        self,
        number: int,
        attempt: int,
        *,
        count: int,
        metrics: Mapping[str, float],
        model_digest: bytes,
        sum_digest: bytes,
        seconds: Mapping[str, float],
        bytes_up: int,
        bytes_down: int,
        note: str = "",
    ) -> None:
        """Keep a round's outcome. From here on it is never done again."""
        self._end_phase()
        if "publish" in seconds:
            self._note(Happening(EventKind.PHASE, "publish", number, attempt, seconds=seconds["publish"]))
        self._note(Happening(EventKind.FINISHED, round=number, attempt=attempt, seconds=sum(seconds.values())))
        self._told.clear()
        with self._writing() as at:
            at.rounds.finish(
                self._job,
                number,
                attempt,
                count=count,
                metrics=metrics,
                model_digest=model_digest.hex(),
                sum_digest=sum_digest.hex(),
                seconds=seconds,
                bytes_up=bytes_up,
                bytes_down=bytes_down,
                note=note,
            )

    def dropped(self, phase: str, number: int, attempt: int, reasons: Mapping[str, str]) -> None:
        """Firms dropped out of a phase, and why. Written with the next transaction. Who does not join is told once a
        round, however often it is invited again."""
        for firm, why in sorted(reasons.items()):
            happening = Happening(EventKind.DROPPED, phase, number, attempt, firm, code=reason_code(why))
            if phase == JOIN:
                self._note_once(happening)
            else:
                self._note(happening)

    def show(self, situation: Situation) -> None:
        """Show where the job is. Writes only what changed."""
        if situation == self._last:
            return
        self._turn_to(situation)
        with self._writing() as at:
            at.progress.set(
                self._job,
                situation.phase,
                situation.sentence,
                round_number=situation.round,
                attempt=situation.attempt,
                members=situation.members,
                waiting_for=situation.waiting_for,
            )

    def _turn_to(self, situation: Situation) -> None:
        """Time the phases by what is shown: one is over when the next is shown, or its attempt is."""
        before, self._last = self._last, situation
        if before is None or _place(before) != _place(situation):
            if before is not None and situation.phase == before.phase == JOIN and situation.round == before.round:
                self._end_wait(before)
            self._end_phase(before)
            self._phase_began = self._clock()
            from_now_on(job=self._job, round=situation.round, attempt=situation.attempt, phase=situation.phase)
        elif before.waiting_for and not situation.waiting_for:
            self._last_awaited = before.waiting_for[0] if len(before.waiting_for) == 1 else None

    def _end_phase(self, shown: Situation | None = None) -> None:
        shown = shown or self._last
        if shown is not None and self._phase_began is not None:
            took = round(self._clock() - self._phase_began, 3)
            firm = self._last_awaited if len(shown.members) > 1 else None
            self._note(Happening(EventKind.PHASE, shown.phase, shown.round, shown.attempt, firm, took))
        self._phase_began = self._last_awaited = None

    def _end_wait(self, shown: Situation) -> None:
        """Another attempt is made because too few firms joined this one."""
        if self._phase_began is not None:
            took = round(self._clock() - self._phase_began, 3)
            self._note(Happening(EventKind.WAITING, JOIN, shown.round, shown.attempt, seconds=took))
        self._phase_began = None

    def _note(self, happening: Happening) -> None:
        self._pending.append(happening)
        logger.info("%s", happening.sentence)

    def _note_once(self, happening: Happening) -> None:
        """Put a fact down once a round, whatever the attempt."""
        fact = replace(happening, attempt=None)
        if fact not in self._told:
            self._told.add(fact)
            self._note(happening)

    @contextmanager
    def _writing(self) -> Iterator[Transaction]:
        with self._store.transaction() as at:
            at.timeline.add(self._job, self._pending)
            yield at
        self._pending = []


def _place(situation: Situation) -> tuple[str, int | None, int | None]:
    return situation.phase, situation.round, situation.attempt
