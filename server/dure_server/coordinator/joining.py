"""Who takes part in an attempt: invites the firms, and helps those that are behind to the model of the round.

A firm that has missed sums gets them and computes the model for itself. One that cannot check them, because it lost its
state or was not there when their keys were agreed, gets a snapshot that enough other firms have signed the hash of.
"""

from collections.abc import Mapping, Sequence

from dure_protocols.errors import RefusalCode, RefusedError
from dure_protocols.global_state import GlobalState
from dure_protocols.job import JobFile
from dure_protocols.messages import (
    ARRAY_SNAPSHOT,
    MAX_SUMS,
    Absence,
    EscrowedJoin,
    Invitation,
    Join,
    PublishedSum,
    Refusal,
    Request,
    Snapshot,
)
from dure_protocols.secagg.escrow import check_escrow
from dure_protocols.secagg.server import in_conflict
from dure_protocols.secagg.terms import Terms, check_join
from dure_server.coordinator.agreement import EpochLostError, Keys, code_of
from dure_server.coordinator.conversation import Conversation, Heard, JobFailedError
from dure_server.coordinator.firms import Firms
from dure_server.coordinator.record import FinishedRound, Situation
from dure_server.coordinator.sentences import NO_ANSWER, told_absence
from dure_server.operation import Operation

Place = tuple[int, int, int]
Arrays = Mapping[str, Mapping[str, bytes]]


class Standings:
    """Which published sums each firm has applied, as far as is known, and which sums are still there to help with.

    kept_from: the first round whose sum is kept; a firm that stands before an earlier one takes a snapshot.
    """

    def __init__(self, state: GlobalState) -> None:
        self._state = state
        self.kept_from = 0
        self._published: list[FinishedRound] = []
        self._stands_before: dict[str, int] = {}

    def publish(self, done: FinishedRound) -> None:
        """A round's sum is published."""
        self._published.append(done)

    def reached(self, firm: str) -> None:
        """The firm stands on the newest model."""
        self._stands_before[firm] = self._state.round

    def of(self, firms: Sequence[str] | set[str]) -> dict[str, int]:
        """The round from which on each firm lacks sums; one that has not been heard of has probably missed one."""
        probably = self._state.round - 1
        return {firm: max(self._stands_before.get(firm, probably), self.kept_from) for firm in sorted(firms)}

    def may_lack_deleted_sums(self, job: JobFile) -> bool:
        """Whether a firm stands before sums that are deleted, or may: one that this process has not heard yet."""
        return any(self._stands_before.get(firm, 0) < self.kept_from for firm in job.firms)

    def forgettable(self, job: JobFile, witnesses: int) -> int:
        """The first round whose sum has to be kept.

        Sums that all firms have applied are not; and of firms further behind than one message of sums, as many may be
        left to snapshots as there are firms enough besides to vouch for one. Nobody knows where a firm stands that has
        not been heard since this process began.
        """
        stands = sorted(self._stands_before.get(firm, 0) for firm in job.firms)
        return max(stands[0], min(stands[len(stands) - witnesses], self._state.round - MAX_SUMS))

    def drop(self, number: int) -> list[bytes]:
        """Keep sums from this round on. Returns the digests of those that were kept for nothing before it."""
        dropped = [done.sum_digest for done in self._published if done.number < number]
        self._published = [done for done in self._published if done.number >= number]
        self.kept_from = number
        return dropped

    def can_help(self, refusal: Refusal, sent_from: int) -> bool:
        """A firm that says where it stands can be helped, unless it stands where it was helped from already."""
        stands_behind = refusal.next_round < self._state.round and refusal.next_round != sent_from
        return refusal.code is RefusalCode.GLOBAL_MODEL and stands_behind

    def sums_from(self, next_round: int) -> tuple[PublishedSum, ...]:
        """What a firm that stands before this round lacks, at most as many sums as a message takes."""
        missing = [done for done in self._published if done.number >= max(next_round, self.kept_from)][:MAX_SUMS]
        return tuple(
            PublishedSum(done.epoch, done.number, done.attempt, done.cohort, done.members, done.sum_digest)
            for done in missing
        )


class Joining:
    """Gathers the joins of attempts. Remembers over attempts who refused and why, and who did not come."""

    def __init__(
        self, job: JobFile, firms: Firms, talk: Conversation, state: GlobalState, standings: Standings
    ) -> None:
        self._job, self._firms, self._talk = job, firms, talk
        self._state, self._standings = state, standings
        self._terms = Terms.of(job)
        self._digest = job.digest()
        self.operation = Operation()
        self.left: set[str] = set()
        """Firms that left the job for good."""
        self._away: set[str] = set()
        self._lost: set[str] = set()
        self._disbelieve: set[str] = set()
        self._sits_out: dict[str, str] = {}
        self.snapshots: list[bytes] = []
        """Digests of what was shared for single firms, to be retracted when the round is over."""
        self.refused: dict[str, str] = {}

    @property
    def sitting_out(self) -> str:
        """Who sits out of the attempt by its own word, and until when; empty if nobody does."""
        return "; ".join(f"{firm} is {why}" for firm, why in sorted(self._sits_out.items()))

    def invited(self, excluded: set[str]) -> set[str]:
        """Whom to invite. A firm that did not come last time is waited for again once it is connected."""
        self._away -= self._talk.connected()
        return set(self._job.firms) - self.left - excluded - self._away

    def killed(self, invited: set[str]) -> set[str]:
        """Those who were killed after they had joined and before they could say so: a fresh attempt helps them."""
        return {firm for firm in invited if self.refused.get(firm) == RefusalCode.REPLAY.value}

    def note_dropped(self, dropped: Mapping[str, str]) -> set[str]:
        """Note who dropped out of an attempt and why. Returns who may be back for the next one: killed on the way and
        here again, or cut off and invited as soon as it is connected."""
        self.refused |= dropped
        cut_off = set(dropped) - self._talk.connected()
        self._away |= cut_off
        return cut_off | {firm for firm, why in dropped.items() if why == RefusalCode.ATTEMPT_SPENT.value}

    def why_absent(self, firms: set[str]) -> dict[str, str]:
        """Why firms that were invited have not joined."""
        return {firm: self.refused.get(firm, NO_ANSWER) for firm in firms}

    def gather(self, keys: Keys, place: Place, invited: set[str]) -> dict[str, Join | EscrowedJoin]:
        """Invite, help those behind, and return the joins that are signed for this place and on our model, by firm.

        Raises EpochLostError when a firm has lost its keys, JobFailedError when too many cannot go on.
        """
        self.refused = {firm: why for firm, why in self.refused.items() if firm not in invited}
        self._lost, self._sits_out = set(), {}
        joins = self._gather_computing(keys, place, invited)
        if len(self._job.firms) - len(self._disbelieve) < self._terms.least_survivors:
            raise JobFailedError(
                f"{', '.join(sorted(self._disbelieve))} refuse a published sum: its tag is not that of what the members"
                " sent. One of them ran another program, or this server's store was changed; propose a new job"
            )
        if self._lost:
            joins |= self._gather_with_snapshot(keys, place, joins)
        self._away |= invited - set(joins) - set(self.refused)
        escrowed = [join for join in joins.values() if isinstance(join, EscrowedJoin)]
        for firm, why in in_conflict(self._terms, escrowed).items():
            del joins[firm]
            self.refused[firm] = why
        return joins

    def _gather_computing(self, keys: Keys, place: Place, invited: set[str]) -> dict[str, Join | EscrowedJoin]:
        joins: dict[str, Join | EscrowedJoin] = {}
        behind = self._standings.of(invited)
        tries = 0
        while behind:
            sums = {firm: self._standings.sums_from(next_round) for firm, next_round in behind.items()}
            invitations = {firm: Invitation(self._digest, *place, entries) for firm, entries in sums.items()}
            arrays = {firm: {e.array_name: e.vector_digest for e in entries} for firm, entries in sums.items()}
            asked, behind = behind, {}
            for heard in self._ask(invitations, arrays, place, f".{tries}"):
                message = heard.message
                if isinstance(message, Refusal) and self._standings.can_help(message, asked[heard.firm]):
                    if message.next_round < self._standings.kept_from:
                        self._lost.add(heard.firm)
                    else:
                        behind[heard.firm] = message.next_round
                else:
                    self._hear(keys, place, heard, joins)
            tries += 1
        return joins

    def _gather_with_snapshot(
        self, keys: Keys, place: Place, joined: Mapping[str, Join | EscrowedJoin]
    ) -> dict[str, Join | EscrowedJoin]:
        """Invite firms that cannot compute the model with the model itself, and the others' signatures on it."""
        lost, self._lost = sorted(self._lost), set()
        if len(self._job.firms) - len(lost) < self._terms.witnesses:
            raise JobFailedError(
                f"{', '.join(lost)} lost the state by which they check the model, and too few firms are left to vouch"
                f" for it ({self._terms.witnesses} are needed): propose a new job"
            )
        if len(joined) < self._terms.witnesses:
            self.refused |= dict.fromkeys(lost, f"waits for {self._terms.witnesses} firms to vouch for the model")
            return {}
        witnesses = tuple(_join_of(joined[firm]) for firm in sorted(joined))
        digest = self._firms.share(self._state.to_words())
        self.snapshots.append(digest)
        invitation = Invitation(self._digest, *place, (), (Snapshot(digest, witnesses),))
        joins: dict[str, Join | EscrowedJoin] = {}
        arrays = {firm: {ARRAY_SNAPSHOT: digest} for firm in lost}
        for heard in self._ask(dict.fromkeys(lost, invitation), arrays, place, ".snapshot"):
            self._hear(keys, place, heard, joins)
        self.refused |= dict.fromkeys(self._lost, "could not take the snapshot")
        return joins

    def _ask(self, requests: Mapping[str, Request], arrays: Arrays, place: Place, key: str) -> Sequence[Heard]:
        sentence = f"round {place[1]}: inviting the firms"
        situation = Situation("join", sentence, place[1], place[2], tuple(sorted(requests)))
        patience = self.operation.seconds("join", self._job)
        return list(self._talk.ask(requests, situation, key=key, arrays=arrays, patience_seconds=patience))

    def _hear(self, keys: Keys, place: Place, heard: Heard, joins: dict[str, Join | EscrowedJoin]) -> None:
        message = heard.message
        if isinstance(message, Join | EscrowedJoin):
            try:
                self._check(keys, place, message)
            except RefusedError as error:
                self.refused[heard.firm] = error.code.value
            else:
                joins[heard.firm] = message
                self._standings.reached(heard.firm)
        elif isinstance(message, Refusal) and message.code is RefusalCode.STATE_LOST:
            raise EpochLostError(f"{heard.firm} has lost its keys")
        elif isinstance(message, Refusal) and message.code is RefusalCode.ALREADY_RELEASED:
            raise JobFailedError(
                f"{heard.firm} has released in round {self._state.round} before and will not train on its model"
                " again, in this job or an earlier one with its seed: propose a new job with another seed"
            )
        elif isinstance(message, Refusal) and message.code is RefusalCode.FALSE_SUM:
            self._disbelieve.add(heard.firm)
            self.refused[heard.firm] = message.code.value
        elif isinstance(message, Refusal) and message.code is RefusalCode.SNAPSHOT_NEEDED:
            self._lost.add(heard.firm)
        elif isinstance(message, Absence):
            self.refused[heard.firm] = self._sits_out[heard.firm] = told_absence(message)
        else:
            self.refused[heard.firm] = code_of(heard)

    def _check(self, keys: Keys, place: Place, message: Join | EscrowedJoin) -> None:
        """What the server checks of a join: signed for this place, on our model, its escrow whole where one is due."""
        join = _join_of(message)
        check_join(self._terms, keys.transcript, place, join)
        if join.model_hash != self._state.hash:
            raise RefusedError(RefusalCode.GLOBAL_MODEL, f"{join.firm} stands on another global model")
        if isinstance(message, EscrowedJoin) is (self._terms.threshold is None):
            raise RefusedError(RefusalCode.ESCROW, f"{join.firm} joined in another mode than the job's")
        if isinstance(message, EscrowedJoin):
            check_escrow(self._terms, message)


def _join_of(message: Join | EscrowedJoin) -> Join:
    return message.join if isinstance(message, EscrowedJoin) else message
