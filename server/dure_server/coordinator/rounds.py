"""The course of a job: approvals, keys, rounds, finish. Read `Coordinator.run` first.

Everything that decides is written down before anybody is told, and every request has a derived id: a coordinator that
is started again repeats its last requests and finds the recorded answers. What a round needs of cryptography is in
`dure_protocols.secagg`; what is public about the model in `dure_protocols.global_state`.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from dure_protocols.errors import MessageError, RefusalCode, RefusedError
from dure_protocols.global_state import (
    STATISTICS_ROUND,
    GlobalState,
    RoundOutcome,
    is_training,
    layout_of,
)
from dure_protocols.job import JobFile
from dure_protocols.messages import (
    ARRAY_MASKED,
    MAX_SUMS,
    Cohort,
    Finish,
    Finished,
    Invitation,
    Join,
    MaskedUpdate,
    PublishedSum,
    Refusal,
    Release,
    ReleaseRequest,
    Request,
)
from dure_protocols.secagg.codec import Words
from dure_protocols.secagg.server import Attempt, check_join, check_release
from dure_protocols.secagg.terms import Terms
from dure_server.coordinator.agreement import Agreement, EpochLostError, Keys, code_of
from dure_server.coordinator.conversation import Conversation, Heard, JobFailedError
from dure_server.coordinator.firms import Firms
from dure_server.coordinator.record import FinishedRound, JobRecord, Situation

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0  # between attempts that too few firms took part in


class Coordinator:
    """Runs one job over `firms`, writing to `record`. Made once a process; call `run`."""

    def __init__(self, job: JobFile, initial: NDArray[np.float32], firms: Firms, record: JobRecord) -> None:
        self._job, self._firms, self._record = job, firms, record
        self._terms = Terms.of(job)
        self._digest = job.digest()
        self._talk = Conversation(job.id, firms, record)
        self._agreement = Agreement(job, self._talk, record)
        self._seconds: dict[str, float] = {}
        self._published: list[FinishedRound] = []
        self._stands_before: dict[str, int] = {}
        self._attempt = 0
        self._refused: dict[str, str] = {}
        self._away: set[str] = set()
        self.state = GlobalState(job, initial)

    def run(self) -> NDArray[np.float32]:
        """From wherever the job stands to its end. Returns the final model, (d,) float32.

        Raises JobStoppedError when the operator stops it, JobFailedError when it cannot go on.
        """
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
            self.state.advance(self._load(done), len(done.members))
            self._published.append(done)

    def _load(self, done: FinishedRound) -> NDArray[np.uint64]:
        return self._firms.load(done.sum_digest, layout_of(self._job, done.number).words)

    def _round(self, keys: Keys) -> None:
        """One round: attempts until one is complete, then publish its sum and move on."""
        number = self.state.round
        excluded: set[str] = set()
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            fixed = self._record.open_attempt(number)
            self._attempt = fixed[0] if fixed else self._record.reserve_attempt(number)
            self._talk.bytes_down, self._seconds = 0, {}
            with self._timed("join"):
                joins = self._gather_joins(keys, set(fixed[1]) if fixed else self._invited(excluded))
            members = {join.firm for join in joins}
            if fixed and members != set(fixed[1]):
                lost = ", ".join(sorted(set(fixed[1]) - members))
                self._record.abandon_attempt(number, self._attempt, f"{lost} did not come back")
                self._talk.forget()
                continue
            if not self._is_enough(members):
                excluded = set()
                self._talk.forget()
                self._talk.pause(self._why_waiting(members), pause_seconds)
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
                continue
            self._record.begin_attempt(number, self._attempt, sorted(members))
            attempt = Attempt(self._terms, keys.transcript, self._place(keys), joins, self.state.hash)
            with self._timed("update"):
                receipts, dropped, bytes_up = self._gather_updates(keys, attempt, joins)
            if dropped:
                self._record.abandon_attempt(number, self._attempt, _told(dropped))
                excluded |= set(dropped)
                self._refused |= dropped
                self._talk.forget()
                continue
            with self._timed("release"):
                releases = self._gather_releases(keys, attempt, receipts)
            self._publish(attempt, releases, bytes_up)
            return

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._seconds[phase] = round(time.monotonic() - started, 4)

    def _place(self, keys: Keys) -> tuple[int, int, int]:
        return keys.epoch, self.state.round, self._attempt

    def _situation(self, phase: str, sentence: str, members: set[str] | tuple[str, ...]) -> Situation:
        return Situation(phase, sentence, self.state.round, self._attempt, tuple(sorted(members)))

    def _invited(self, excluded: set[str]) -> set[str]:
        """Whom to invite. A firm that did not come last time is waited for again once it is connected."""
        self._away -= self._talk.connected()
        return set(self._job.firms) - excluded - self._away

    def _is_enough(self, members: set[str]) -> bool:
        """Statistics are exact, so their sum over all firms but one would show that one: they need every firm."""
        if self.state.round == STATISTICS_ROUND:
            return len(members) == len(self._job.firms)
        return len(members) >= self._job.minimum_cohort

    def _why_waiting(self, members: set[str]) -> Situation:
        missing = sorted(set(self._job.firms) - members)
        connected = self._talk.connected()
        told = [f"{firm} ({self._why_missing(firm, connected)})" for firm in missing]
        needed = len(self._job.firms) if self.state.round == STATISTICS_ROUND else self._job.minimum_cohort
        sentence = f"{len(members)} of at least {needed} firms are ready; missing: {', '.join(told)}"
        return Situation("join", sentence, self.state.round, self._attempt, tuple(sorted(members)), tuple(missing))

    def _why_missing(self, firm: str, connected: set[str]) -> str:
        if firm not in connected:
            return "not connected"
        return self._refused.get(firm, "no answer in time")

    def _gather_joins(self, keys: Keys, invited: set[str]) -> tuple[Join, ...]:
        """Invite; a firm that has missed sums is invited again with all of them."""
        situation = self._situation("join", f"round {self.state.round}: inviting the firms", invited)
        joins: dict[str, Join] = {}
        self._refused = {firm: why for firm, why in self._refused.items() if firm not in invited}
        behind = {firm: self._stands_before.get(firm, self.state.round - 1) for firm in invited}
        tries = 0
        while behind:
            invitations, arrays = self._invitations(keys, behind)
            asked, behind = behind, {}
            replies = self._talk.ask(
                invitations,
                situation,
                key=f".{tries}",
                arrays=arrays,
                patience_seconds=self._job.phase_seconds,
            )
            for heard in replies:
                message = heard.message
                if isinstance(message, Join):
                    if self._is_valid_join(keys, message):
                        joins[heard.firm] = message
                        self._stands_before[heard.firm] = self.state.round
                elif isinstance(message, Refusal) and message.code is RefusalCode.STATE_LOST:
                    raise EpochLostError(f"{heard.firm} has lost its keys")
                elif isinstance(message, Refusal) and message.code is RefusalCode.ALREADY_RELEASED:
                    raise JobFailedError(
                        f"{heard.firm} has released in round {self.state.round} before and will not train on its model"
                        " again, in this job or an earlier one with its seed: propose a new job with another seed"
                    )
                elif isinstance(message, Refusal) and self._can_catch_up(message, asked[heard.firm]):
                    behind[heard.firm] = message.next_round
                else:
                    self._refused[heard.firm] = code_of(heard)
            tries += 1
        self._away |= invited - set(joins) - set(self._refused)
        return tuple(joins[firm] for firm in sorted(joins))

    def _can_catch_up(self, refusal: Refusal, sent_from: int) -> bool:
        """A firm that says where it stands can be helped, unless it stands where it was helped from already."""
        stands_behind = refusal.next_round < self.state.round and refusal.next_round != sent_from
        return refusal.code is RefusalCode.GLOBAL_MODEL and stands_behind

    def _invitations(
        self, keys: Keys, stands_before: Mapping[str, int]
    ) -> tuple[dict[str, Request], dict[str, dict[str, bytes]]]:
        invitations: dict[str, Request] = {}
        arrays = {}
        for firm, next_round in stands_before.items():
            sums = self._sums_from(next_round)
            invitations[firm] = Invitation(self._digest, *self._place(keys), sums)
            arrays[firm] = {entry.array_name: entry.vector_digest for entry in sums}
        return invitations, arrays

    def _sums_from(self, next_round: int) -> tuple[PublishedSum, ...]:
        missing = [done for done in self._published if done.number >= next_round][:MAX_SUMS]
        return tuple(PublishedSum(done.number, done.members, done.sum_digest) for done in missing)

    def _is_valid_join(self, keys: Keys, join: Join) -> bool:
        try:
            check_join(self._terms, keys.transcript, self._place(keys), join)
        except RefusedError:
            return False
        return join.model_hash == self.state.hash

    def _gather_updates(
        self, keys: Keys, attempt: Attempt, joins: tuple[Join, ...]
    ) -> tuple[dict[str, MaskedUpdate], dict[str, str], int]:
        """Add each masked vector as it comes. Returns receipts, who dropped out and why, and the bytes received."""
        what = "training" if is_training(self._job, self.state.round) else "computing sums"
        situation = self._situation("update", f"round {self.state.round}: firms are {what}", attempt.members)
        cohort = Cohort(self._digest, *self._place(keys), joins)
        layout = layout_of(self._job, self.state.round)
        receipts: dict[str, MaskedUpdate] = {}
        dropped: dict[str, str] = {}
        bytes_up = 0
        requests = dict.fromkeys(attempt.members, cohort)
        for heard in self._talk.ask(requests, situation, patience_seconds=self._job.phase_seconds):
            bytes_up += heard.size_bytes
            receipt, vector = heard.message, heard.arrays.get(ARRAY_MASKED)
            if not isinstance(receipt, MaskedUpdate) or vector is None:
                dropped[heard.firm] = code_of(heard)
                continue
            if heard.digests[ARRAY_MASKED] != receipt.vector_digest or vector.dtype != np.uint64:
                dropped[heard.firm] = RefusalCode.MALFORMED.value
                continue
            try:
                attempt.add(receipt, vector.view(np.uint64), layout)
            except RefusedError as error:
                dropped[heard.firm] = error.code.value
                continue
            receipts[heard.firm] = receipt
        absent = set(attempt.members) - set(receipts) - set(dropped)
        return receipts, dropped | dict.fromkeys(sorted(absent), "no answer in time"), bytes_up

    def _gather_releases(
        self, keys: Keys, attempt: Attempt, receipts: Mapping[str, MaskedUpdate]
    ) -> dict[str, Release]:
        """Ask every member to open its self mask. There is no going on without one: we wait for whoever is away.

        A firm that has released will not contribute to this model again, so a member that cannot release ends the job.
        """
        situation = self._situation("release", f"round {self.state.round}: opening the sum", attempt.members)
        uploads = tuple(receipts[firm] for firm in attempt.members)
        request = ReleaseRequest(self._digest, *self._place(keys), uploads)
        releases: dict[str, Release] = {}
        for heard in self._talk.ask(dict.fromkeys(attempt.members, request), situation):
            problem = self._check_release(attempt, heard)
            if problem:
                raise JobFailedError(
                    f"{heard.firm} could not release its self mask in round {self.state.round} ({problem}). Nothing was"
                    " learnt from the round, and others do not train on it again: propose a job with another seed"
                )
            if isinstance(heard.message, Release):
                releases[heard.firm] = heard.message
        return releases

    def _check_release(self, attempt: Attempt, heard: Heard) -> str:
        if not isinstance(heard.message, Release):
            return code_of(heard)
        try:
            check_release(self._terms, attempt.context, heard.firm, heard.message)
        except RefusedError as error:
            return str(error)
        return ""

    def _publish(self, attempt: Attempt, releases: Mapping[str, Release], bytes_up: int) -> None:
        number, members = self.state.round, attempt.members
        with self._timed("publish"):
            total = attempt.unmask(releases)
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
            bytes_up=bytes_up,
            bytes_down=self._talk.bytes_down + total.nbytes * len(members),
        )
        self._published.append(FinishedRound(number, members, sum_digest))
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
        behind = {firm: self._stands_before.get(firm, self.state.round - 1) for firm in sorted(self._job.firms)}
        done: set[str] = set()
        tries = 0
        while behind:
            requests: dict[str, Request] = {}
            arrays = {}
            for firm, next_round in behind.items():
                sums = self._sums_from(next_round)
                requests[firm] = Finish(self._digest, sums)
                arrays[firm] = {entry.array_name: entry.vector_digest for entry in sums}
            situation = Situation("finish", "handing over the model", members=tuple(sorted(self._job.firms)))
            asked, behind = behind, {}
            for heard in self._talk.ask(
                requests, situation, key=f".{tries}", arrays=arrays, patience_seconds=self._job.phase_seconds, keep=True
            ):
                message = heard.message
                if isinstance(message, Finished) and message.model_hash == self.state.hash:
                    done.add(heard.firm)
                elif isinstance(message, Refusal) and self._can_catch_up(message, asked[heard.firm]):
                    behind[heard.firm] = message.next_round
            tries += 1
        missing = sorted(set(self._job.firms) - done)
        sentence = "the job is finished"
        if missing:
            sentence += f"; {', '.join(missing)} will take the model when connected again"
        self._record.show(Situation("finished", sentence, members=tuple(sorted(done)), waiting_for=tuple(missing)))


def _told(dropped: Mapping[str, str]) -> str:
    return "; ".join(f"{firm}: {why}" for firm, why in dropped.items())
