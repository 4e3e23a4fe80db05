"""What a coordinator writes down of its job, so that another process can go on from there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dure_protocols.errors import RefusalCode
from dure_server.operation import Operation
from dure_server.store import JobState, RoundState, SignoffState, Store


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
    """One job's rows in the store. Every method is one transaction."""

    def __init__(self, store: Store, job: str) -> None:
        self._store, self._job = store, job
        self._last: Situation | None = None

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
        with self._store.transaction() as at:
            at.jobs.set_state(self._job, state, reason)

    def operation(self) -> Operation:
        """How the operator wants the job to be run, as of now."""
        with self._store.reading() as at:
            return Operation.model_validate(at.jobs.get(self._job).operation)

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
        with self._store.transaction() as at:
            return at.jobs.begin_epoch(self._job)

    def ask_signoffs(self, firms: Sequence[str]) -> None:
        """Put down whose approval is awaited."""
        with self._store.transaction() as at:
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
        with self._store.transaction() as at:
            at.signoffs.set(self._job, firm, SignoffState.APPROVED, signature=signature)

    def refused(self, firm: str, code: RefusalCode) -> None:
        """Keep that a firm refused, or has not decided yet."""
        state = SignoffState.AWAITING if code is RefusalCode.NOT_APPROVED else SignoffState.REFUSED
        with self._store.transaction() as at:
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
        with self._store.transaction() as at:
            return at.rounds.reserve(self._job, number)

    def begin_attempt(self, number: int, attempt: int, members: Sequence[str], epoch: int) -> None:
        """Fix an attempt's members, before they are told."""
        with self._store.transaction() as at:
            at.rounds.begin(self._job, number, attempt, members, epoch)

    def settle_attempt(self, number: int, attempt: int, survivors: Sequence[str]) -> None:
        """Threshold mode: fix whose sum an attempt opens, before they are asked to agree."""
        with self._store.transaction() as at:
            at.rounds.settle(self._job, number, attempt, survivors)

    def abandon_attempt(self, number: int, attempt: int, reason: str) -> None:
        """Give an attempt up; nothing of it was released."""
        with self._store.transaction() as at:
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
        with self._store.transaction() as at:
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

    def show(self, situation: Situation) -> None:
        """Show where the job is. Writes only what changed."""
        if situation == self._last:
            return
        self._last = situation
        with self._store.transaction() as at:
            at.progress.set(
                self._job,
                situation.phase,
                situation.sentence,
                round_number=situation.round,
                attempt=situation.attempt,
                members=situation.members,
                waiting_for=situation.waiting_for,
            )
