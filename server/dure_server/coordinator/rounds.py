"""The course of a job: approvals, keys, rounds, finish. Read `Coordinator.run` first, then `_round`.

Everything that decides is written down before anybody is told, and every request has a derived id: a coordinator that
is started again repeats its last requests and finds the recorded answers. What a round needs of cryptography is in
`dure_protocols.secagg`; what is public about the model in `dure_protocols.global_state`.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from dure_protocols.errors import MessageError, RefusedError
from dure_protocols.global_state import STATISTICS_ROUND, GlobalState, RoundOutcome, layout_of
from dure_protocols.job import JobFile
from dure_protocols.messages import EscrowedJoin, Finish, Finished, Join, Refusal, Release, Request
from dure_protocols.secagg.codec import Words, warm_up
from dure_protocols.secagg.server import Attempt
from dure_protocols.secagg.terms import Terms
from dure_server.coordinator.agreement import Agreement, EpochLostError, Keys
from dure_server.coordinator.conversation import Conversation, JobFailedError
from dure_server.coordinator.firms import Firms
from dure_server.coordinator.joining import Joining, Standings
from dure_server.coordinator.record import FinishedRound, JobRecord, OpenAttempt, Situation
from dure_server.coordinator.summing import Summing, Uploads

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0  # between attempts that too few firms took part in


class Coordinator:
    """Runs one job over `firms`, writing to `record`. Made once a process; call `run`."""

    def __init__(self, job: JobFile, initial: NDArray[np.float32], firms: Firms, record: JobRecord) -> None:
        self._job, self._firms, self._record = job, firms, record
        self._terms = Terms.of(job)
        self._talk = Conversation(job.id, firms, record)
        self._agreement = Agreement(job, self._talk, record)
        self._seconds: dict[str, float] = {}
        self._attempt = 0
        self.state = GlobalState(job, initial)
        self._standings = Standings(self.state)
        self._joining = Joining(job, firms, self._talk, self.state, self._standings)
        self._summing = Summing(job, self._talk, record)

    def run(self) -> NDArray[np.float32]:
        """From wherever the job stands to its end. Returns the final model, (d,) float32.

        Raises JobStoppedError when the operator stops it, JobFailedError when it cannot go on.
        """
        threading.Thread(target=warm_up, args=(layout_of(self._job, 1),), name="warm-up", daemon=True).start()
        self._catch_up()
        self._agreement.gather_approvals()
        if not self.state.is_over:
            self._run_rounds()
        self._finish()
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
        """Compute the model again from the sums that were published before."""
        for done in self._record.finished_rounds():
            words = self._firms.load(done.sum_digest, layout_of(self._job, done.number).words)
            self.state.advance(words, len(done.members))
            self._standings.publish(done)

    def _round(self, keys: Keys) -> None:
        """One round: attempts until one is complete, then publish its sum and move on."""
        number = self.state.round
        excluded: set[str] = set()
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            fixed = self._record.open_attempt(number)
            self._attempt = fixed.attempt if fixed else self._record.reserve_attempt(number)
            self._talk.bytes_down, self._seconds = 0, {}
            with self._timed("join"):
                invited = set(fixed.members) if fixed else self._joining.invited(excluded)
                joins = self._joining.gather(keys, self._place(keys), invited)
            self._record.dropped("join", number, self._attempt, self._joining.why_absent(invited - set(joins)))
            if fixed and set(joins) != set(fixed.members):
                self._abandon(f"{', '.join(sorted(set(fixed.members) - set(joins)))} did not come back")
                continue
            if not self._is_enough(joins):
                excluded = set()
                self._talk.forget()
                self._talk.pause(self._why_waiting(set(joins)), pause_seconds)
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
                continue
            dropped = self._sum(keys, joins, fixed)
            if not dropped:
                return
            excluded |= set(dropped)
            self._joining.refused |= dropped

    def _sum(self, keys: Keys, joins: Mapping[str, Join | EscrowedJoin], fixed: OpenAttempt | None) -> dict[str, str]:
        """One attempt from its cohort to its sum. Returns who must be left out of the next one, and why; empty when the
        sum is published."""
        number = self.state.round
        self._record.begin_attempt(number, self._attempt, sorted(joins), keys.epoch)
        escrows = [join for join in joins.values() if isinstance(join, EscrowedJoin)]
        plain = [join.join if isinstance(join, EscrowedJoin) else join for join in joins.values()]
        attempt = Attempt(self._terms, keys.transcript, self._place(keys), plain, self.state.hash, escrows)
        settled = fixed.survivors if fixed else None
        with self._timed("update"):
            uploads = self._summing.gather_updates(attempt, plain, settled)
        self._record.dropped("update", number, self._attempt, uploads.dropped)
        if self._terms.threshold is None:
            is_lost = bool(uploads.dropped)
        else:
            is_lost = not self._is_enough(attempt.survivors) or (settled is not None and attempt.survivors != settled)
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

    def _is_enough(self, members: Mapping[str, Join | EscrowedJoin] | tuple[str, ...]) -> bool:
        return len(members) >= self._num_needed

    def _why_waiting(self, members: set[str]) -> Situation:
        missing = sorted(set(self._job.firms) - members)
        connected = self._talk.connected()
        told = [f"{firm} ({self._why_missing(firm, connected)})" for firm in missing]
        sentence = f"{len(members)} of at least {self._num_needed} firms are ready; missing: {', '.join(told)}"
        return Situation("join", sentence, self.state.round, self._attempt, tuple(sorted(members)), tuple(missing))

    def _why_missing(self, firm: str, connected: set[str]) -> str:
        if firm not in connected:
            return "not connected"
        return self._joining.refused.get(firm, "no answer in time")

    def _publish(self, attempt: Attempt, releases: Mapping[str, Release], uploads: Uploads) -> None:
        number, members = self.state.round, attempt.survivors
        with self._timed("publish"):
            try:
                total = attempt.unmask(releases)
            except RefusedError as error:
                raise JobFailedError(f"the sum of round {number} cannot be opened: {error}") from error
            outcome = self._advance(total, members)
            sum_digest = self._firms.share(total)
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
        self._standings.publish(FinishedRound(number, epoch, attempt_number, attempt.members, members, sum_digest))
        self._talk.forget()

    def _advance(self, total: Words, members: tuple[str, ...]) -> RoundOutcome:
        try:
            return self.state.advance(total, len(members))
        except MessageError as error:
            raise JobFailedError(
                f"the sum of round {self.state.round} is not one that honest firms can give ({error}); one of"
                f" {', '.join(members)} runs another program or another version. Nothing was published"
            ) from error

    def _finish(self) -> None:
        """Hand every firm what it has not applied yet. The requests stay for those that are away; nobody is waited for.

        A firm answers when it holds the final model, and then takes part no more.
        """
        behind = self._standings.of(set(self._job.firms))
        done: set[str] = set()
        tries = 0
        while behind:
            requests: dict[str, Request] = {}
            arrays = {}
            for firm, next_round in behind.items():
                sums = self._standings.sums_from(next_round)
                requests[firm] = Finish(self._job.digest(), sums)
                arrays[firm] = {entry.array_name: entry.vector_digest for entry in sums}
            situation = Situation("finish", "handing over the model", members=tuple(sorted(self._job.firms)))
            asked, behind = behind, {}
            for heard in self._talk.ask(
                requests, situation, key=f".{tries}", arrays=arrays, patience_seconds=self._job.phase_seconds, keep=True
            ):
                message = heard.message
                if isinstance(message, Finished) and message.model_hash == self.state.hash:
                    done.add(heard.firm)
                elif isinstance(message, Refusal) and self._standings.can_help(message, asked[heard.firm]):
                    behind[heard.firm] = message.next_round
            tries += 1
        missing = sorted(set(self._job.firms) - done)
        sentence = "the job is finished"
        if missing:
            sentence += f"; {', '.join(missing)} will take the model when connected again"
        self._record.show(Situation("finished", sentence, members=tuple(sorted(done)), waiting_for=tuple(missing)))


def _told(dropped: Mapping[str, str]) -> str:
    return "; ".join(f"{firm}: {why}" for firm, why in dropped.items())
