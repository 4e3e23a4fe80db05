"""The course of a job: approvals, keys, rounds, finish. Read `Coordinator.run` first, then `_round`.

Everything that decides is written down before anybody is told, and every request has a derived id: a coordinator that
is started again repeats its last requests and finds the recorded answers. What a round needs of cryptography is in
`dure_protocols.secagg`; what is public about the model in `dure_protocols.global_state`.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from dure_protocols.errors import MessageError, RefusalCode, RefusedError
from dure_protocols.global_state import STATISTICS_ROUND, GlobalState, RoundOutcome, first_round, last_round, layout_of
from dure_protocols.job import JobFile
from dure_protocols.messages import MAX_SUMS, EscrowedJoin, Join, Release
from dure_protocols.secagg.codec import Words, warm_up
from dure_protocols.secagg.server import Attempt
from dure_protocols.secagg.terms import Terms
from dure_server.coordinator.agreement import Agreement, EpochLostError, Keys
from dure_server.coordinator.checkpoints import Checkpoints
from dure_server.coordinator.conversation import Conversation, JobFailedError
from dure_server.coordinator.finishing import Finishing
from dure_server.coordinator.firms import Firms
from dure_server.coordinator.joining import Joining, Standings
from dure_server.coordinator.record import FinishedRound, JobRecord, OpenAttempt, Situation
from dure_server.coordinator.sentences import NO_ANSWER, NOT_CONNECTED, told_code
from dure_server.coordinator.summing import Summing, Uploads
from dure_server.operation import Operation

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0  # between attempts that too few firms took part in
CHECKPOINT_ROUNDS = 16  # how many rounds are worth a checkpoint


class Coordinator:
    """Runs one job over `firms`, writing to `record`. Made once a process; call `run`."""

    def __init__(
        self,
        job: JobFile,
        initial: NDArray[np.float32],
        firms: Firms,
        record: JobRecord,
        checkpoints: Checkpoints,
    ) -> None:
        self._job, self._firms, self._record, self._checkpoints = job, firms, record, checkpoints
        self._terms = Terms.of(job)
        self._talk = Conversation(job.id, firms, record)
        self._agreement = Agreement(job, self._talk, record)
        self._seconds: dict[str, float] = {}
        self._attempt = 0
        self._operation = Operation()
        self._selection: list[float] = []  # the selection metric, round by round
        self.state = GlobalState(job, initial)
        self._standings = Standings(self.state)
        self._joining = Joining(job, firms, self._talk, self.state, self._standings)
        self._summing = Summing(job, self._talk, record)
        self._finishing = Finishing(job, firms, self._talk, record, self.state, self._standings)

    def run(self) -> NDArray[np.float32]:
        """From wherever the job stands to its end. Returns the final model, (d,) float32.

        Raises JobStoppedError when the operator stops it, JobFailedError when it cannot go on.
        """
        threading.Thread(target=warm_up, args=(layout_of(self._job, 1),), name="warm-up", daemon=True).start()
        self._catch_up()
        self._agreement.gather_approvals()
        if not self.state.is_over:
            self._run_rounds()
        self._operation = self._record.operation()
        if self._finishing.run():
            self._talk.forget_all()
            self._firms.retract(self._finishing.shared)
            self._forget_sums(self.state.round)
        return self.state.final

    def _run_rounds(self) -> None:
        keys = self._agreement.agree_keys()
        while not self.state.is_over:
            try:
                self._round(keys)
            except EpochLostError as error:
                self._talk.pause(Situation("keys", f"{error}; agreeing on new ones"))
                keys = self._agreement.agree_keys(fresh=True)

    def _catch_up(self) -> None:
        """Compute the model again: from the newest checkpoint, and the sums that were published since."""
        finished = self._record.finished_rounds()
        self._checkpoints.restore(self.state, {done.number: done.model_digest for done in finished})
        for done in finished:
            if done.number >= self.state.round:
                words = self._firms.load(done.sum_digest, layout_of(self._job, done.number).words)
                self.state.advance(words, len(done.members))
            self._standings.publish(done)
            self._note_metric(done.metrics)
        # What a process before us was about to delete when it was killed is among the last of these.
        self._firms.retract(self._standings.drop(self._record.sums_from())[-2 * MAX_SUMS :])

    def _round(self, keys: Keys) -> None:
        """One round: attempts until one is complete, then publish its sum and move on."""
        number = self.state.round
        excluded: set[str] = set()
        returned: set[str] = set()  # came back in this round after they were killed, which each may do once
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            self._check_left()
            fixed = self._record.open_attempt(number)
            self._attempt = fixed.attempt if fixed else self._record.reserve_attempt(number)
            self._talk.bytes_down, self._seconds, self._talk.aside = 0, {}, ""
            self._operation = self._joining.operation = self._summing.operation = self._record.operation()
            with self._timed("join"):
                invited = set(fixed.members) if fixed else self._joining.invited(excluded)
                joins = self._joining.gather(keys, self._place(keys), invited)
            self._record.dropped("join", number, self._attempt, self._joining.why_absent(invited - set(joins)))
            self._talk.aside = self._joining.sitting_out
            if fixed and set(joins) != set(fixed.members):
                self._abandon(f"{', '.join(sorted(set(fixed.members) - set(joins)))} did not come back")
                continue
            killed = self._joining.killed(invited) - returned
            if killed:
                returned |= killed
                self._talk.forget()
                continue
            if len(joins) < self._quorum:
                excluded = set()
                self._talk.forget()
                self._talk.pause(self._why_waiting(set(joins)), pause_seconds)
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
                continue
            dropped = self._sum(keys, joins, fixed)
            if not dropped:
                return
            back = self._joining.note_dropped(dropped) - returned
            returned |= back
            excluded |= set(dropped) - back

    def _sum(self, keys: Keys, joins: Mapping[str, Join | EscrowedJoin], fixed: OpenAttempt | None) -> dict[str, str]:
        """One attempt from its cohort to its sum. Returns who must be left out of the next one, and why; empty when the
        sum is published."""
        number = self.state.round
        self._record.begin_attempt(number, self._attempt, sorted(joins), keys.epoch)
        escrows = [join for join in joins.values() if isinstance(join, EscrowedJoin)]
        plain = [join.join if isinstance(join, EscrowedJoin) else join for join in joins.values()]
        attempt = Attempt(self._terms, keys.transcript, self._place(keys), plain, self.state.hash, escrows)
        if number == last_round(self._job):
            self._finishing.note_last(attempt.place, plain)
        settled = fixed.survivors if fixed else None
        with self._timed("update"):
            uploads = self._summing.gather_updates(attempt, plain, settled)
        self._record.dropped("update", number, self._attempt, uploads.dropped)
        if self._terms.threshold is None:
            is_lost = bool(uploads.dropped)
        else:
            is_too_few = len(attempt.survivors) < self._num_needed
            is_lost = is_too_few or (settled is not None and attempt.survivors != settled)
        unopenable = attempt.unopenable
        if is_lost or unopenable:
            self._abandon(_told(uploads.dropped | unopenable))
            return uploads.dropped | unopenable
        if self._terms.threshold is not None:
            self._record.settle_attempt(number, self._attempt, attempt.survivors)
            with self._timed("vote"):
                votes, silent = self._summing.gather_votes(attempt, uploads)
            self._record.dropped("vote", number, self._attempt, silent)
            if len(votes) < self._terms.threshold:
                self._abandon(f"too few firms agreed on the survivors: {_told(silent)}")
                return silent
            uploads.votes = votes
        with self._timed("release"):
            releases = self._summing.gather_releases(attempt, uploads)
        self._publish(attempt, releases, uploads)
        return {}

    def _check_left(self) -> None:
        """Go on without firms that left, or say why that cannot be. Raises JobFailedError."""
        left = self._joining.left = self._record.left()
        num_here = len(self._job.firms) - len(left)
        if left and num_here < self._num_needed:
            raise JobFailedError(
                f"{', '.join(sorted(left))} left the job for good, and its sums need {self._num_needed} firms; "
                f"{num_here} are left. What is published stays; propose another job without who left"
            )

    def _abandon(self, reason: str) -> None:
        self._record.abandon_attempt(self.state.round, self._attempt, reason)
        self._talk.forget()

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._seconds[phase] = round(time.monotonic() - started, 4)

    def _place(self, keys: Keys) -> tuple[int, int, int]:
        return keys.epoch, self.state.round, self._attempt

    @property
    def _num_needed(self) -> int:
        """Statistics are exact, so their sum over all firms but one would show that one: they need every firm."""
        return len(self._job.firms) if self.state.round == STATISTICS_ROUND else self._terms.least_survivors

    @property
    def _quorum(self) -> int:
        """The fewest firms to begin an attempt with."""
        return max(self._num_needed, self._operation.quorum or 0)

    def _why_waiting(self, members: set[str]) -> Situation:
        missing = sorted(set(self._job.firms) - members)
        connected = self._talk.connected()
        told = [f"{firm} ({self._why_missing(firm, connected)})" for firm in missing]
        sentence = f"{len(members)} of at least {self._quorum} firms are ready; missing: {', '.join(told)}"
        return Situation("join", sentence, self.state.round, self._attempt, tuple(sorted(members)), tuple(missing))

    def _why_missing(self, firm: str, connected: set[str]) -> str:
        if firm in self._joining.left:
            return told_code(RefusalCode.LEFT.value)
        if firm not in connected:
            return NOT_CONNECTED
        return told_code(self._joining.refused.get(firm, NO_ANSWER))

    def _publish(self, attempt: Attempt, releases: Mapping[str, Release], uploads: Uploads) -> None:
        number, members = self.state.round, attempt.survivors
        with self._timed("publish"):
            try:
                total = attempt.unmask(releases)
            except RefusedError as error:
                raise JobFailedError(f"the sum of round {number} cannot be opened: {error}") from error
            with ThreadPoolExecutor(1, "share") as aside:  # it waits for the disk while the next model is computed
                shared = aside.submit(self._firms.share, total)
                try:
                    outcome = self._advance(total, members)
                except JobFailedError:
                    self._firms.retract([shared.result()])
                    raise
                sum_digest = shared.result()
        self._record.finish_round(
            number,
            self._attempt,
            count=outcome.count,
            metrics=outcome.metrics,
            model_digest=self.state.digest,
            sum_digest=sum_digest,
            seconds=self._seconds,
            bytes_up=uploads.size_bytes,
            bytes_down=self._talk.bytes_down + total.nbytes * len(members),
            note=uploads.complaints,
        )
        epoch, _, attempt_number = attempt.place
        done = FinishedRound(
            number,
            epoch,
            attempt_number,
            attempt.members,
            members,
            sum_digest,
            self.state.digest,
            outcome.metrics,
        )
        self._standings.publish(done)
        self._talk.forget()
        self._drop_sums()
        self._note_metric(outcome.metrics)
        self._check_divergence()

    def _drop_sums(self) -> None:
        """Every now and then, keep the state in a checkpoint, and delete sums that no firm needs.

        Those since the checkpoint before stay: with them the newest one is made again should the disk damage it.
        """
        self._firms.retract(self._joining.snapshots)
        self._joining.snapshots.clear()
        before = self._checkpoints.newest_round()
        if self.state.round - max(before, first_round(self._job)) >= CHECKPOINT_ROUNDS:
            self._checkpoints.save(self.state)
            self._forget_sums(min(before, self._standings.forgettable(self._job, self._terms.witnesses)))

    def _forget_sums(self, number: int) -> None:
        """Delete the sums of rounds before this one, having said so first."""
        if number > self._standings.kept_from and not self._operation.keep_sums:
            self._record.keep_sums_from(number)
            self._firms.retract(self._standings.drop(number))

    def _note_metric(self, metrics: Mapping[str, float]) -> None:
        metric = self._job.selection_metric
        if metric is not None and metric in metrics:
            self._selection.append(metrics[metric])

    def _check_divergence(self) -> None:
        """Stop a job that has run away from its best model. Raises JobFailedError with what to do."""
        if self.state.is_over:
            return
        why = "" if _is_finite(self.state.model) else "the model holds NaN or infinity"
        why = why or self._operation.why_diverged(self._selection)
        if why:
            raise JobFailedError(
                f"the training diverged, so the job was stopped after round {self.state.round - 1}: {why}. Propose a"
                " job with lower learning rates; or, to go on all the same, `dure-server job set"
                f" {self._job.id} --diverged-rounds 0` and `dure-server job start {self._job.id}`"
            )

    def _advance(self, total: Words, members: tuple[str, ...]) -> RoundOutcome:
        try:
            return self.state.advance(total, len(members))
        except MessageError as error:
            raise JobFailedError(
                f"the sum of round {self.state.round} is not one that honest firms can give ({error}); one of"
                f" {', '.join(members)} runs another program or another version. Nothing was published"
            ) from error


@np.errstate(over="ignore", invalid="ignore")
def _is_finite(model: NDArray[np.float32]) -> bool:
    """Whether every number is. The square of its length tells it quickly, unless that is too large itself."""
    return bool(np.isfinite(model @ model)) or bool(np.isfinite(model).all())


def _told(dropped: Mapping[str, str]) -> str:
    return "; ".join(f"{firm}: {why}" for firm, why in dropped.items())
