"""The job's end: every firm gets the sums that it lacks, and with them the final model."""

from collections.abc import Sequence

from dure_protocols.global_state import GlobalState, last_round
from dure_protocols.job import JobFile
from dure_protocols.messages import (
    ARRAY_SNAPSHOT,
    EscrowedJoin,
    Finish,
    Finished,
    Invitation,
    Join,
    Refusal,
    Request,
    Snapshot,
)
from dure_server.coordinator.conversation import Conversation
from dure_server.coordinator.firms import Firms
from dure_server.coordinator.joining import Place, Standings
from dure_server.coordinator.record import JobRecord, Situation


class Finishing:
    """Hands over the model. `note_last` during the last round, then `run`."""

    def __init__(
        self,
        job: JobFile,
        firms: Firms,
        talk: Conversation,
        record: JobRecord,
        state: GlobalState,
        standings: Standings,
    ) -> None:
        self._job, self._firms, self._talk, self._record = job, firms, talk, record
        self._state, self._standings = state, standings
        self._snapshot: tuple[Place, Snapshot] | None = None
        self.shared: list[bytes] = []
        """Digests of what was shared for firms that are behind, to be retracted when all have finished."""

    def note_last(self, place: Place, joins: Sequence[Join]) -> None:
        """Keep the model before the last round and its members' signatures, for firms whose sums are deleted."""
        if self._standings.may_lack_deleted_sums(self._job):
            digest = self._firms.share(self._state.to_words())
            self._snapshot = place, Snapshot(digest, tuple(joins))
            self.shared.append(digest)

    def run(self) -> bool:
        """Hand every firm what it has not applied yet. The requests stay for those that are away; nobody is waited for.

        A firm answers when it holds the final model, and then takes part no more. Returns whether all have.
        """
        remaining = set(self._job.firms) - self._record.left()
        behind = self._standings.of(remaining)
        done: set[str] = set()
        tries = 0
        while behind:
            asked, behind = behind, {}
            for firm, message in self._ask(asked, tries):
                if isinstance(message, Finished) and message.model_hash == self._state.hash:
                    done.add(firm)
                elif isinstance(message, Refusal) and self._standings.can_help(message, asked[firm]):
                    behind[firm] = message.next_round
            if far := {firm for firm, number in behind.items() if number < self._standings.kept_from}:
                taken = self._give_snapshot(far)
                behind = {firm: last_round(self._job) if firm in far else at for firm, at in behind.items()}
                behind = {firm: at for firm, at in behind.items() if firm not in far - taken}
            tries += 1
        missing = sorted(remaining - done - self._record.left())
        sentence = "the job is finished"
        if missing:
            sentence += f"; {', '.join(missing)} will take the model when connected again"
        self._record.show(Situation("finished", sentence, members=tuple(sorted(done)), waiting_for=tuple(missing)))
        return not missing

    def _ask(self, standing: dict[str, int], tries: int) -> list[tuple[str, object]]:
        requests: dict[str, Request] = {}
        arrays = {}
        for firm, next_round in standing.items():
            sums = self._standings.sums_from(next_round)
            requests[firm] = Finish(self._job.digest(), sums)
            arrays[firm] = {entry.array_name: entry.vector_digest for entry in sums}
        situation = Situation("finish", "handing over the model", members=tuple(sorted(self._job.firms)))
        patience = self._job.phase_seconds
        heard = self._talk.ask(
            requests, situation, key=f".{tries}", arrays=arrays, patience_seconds=patience, keep=True
        )
        return [(answer.firm, answer.message) for answer in heard]

    def _give_snapshot(self, firms: set[str]) -> set[str]:
        """Invite firms that are too far behind to the last attempt, which is over: to join it they take its model. The
        join is good for nothing else. Returns who did."""
        if self._snapshot is None:
            return set()
        place, snapshot = self._snapshot
        request = Invitation(self._job.digest(), *place, (), (snapshot,))
        situation = Situation("finish", "handing over a snapshot of the model", members=tuple(sorted(firms)))
        arrays = {firm: {ARRAY_SNAPSHOT: snapshot.vector_digest} for firm in firms}
        heard = self._talk.ask(
            dict.fromkeys(sorted(firms), request),
            situation,
            key=".snapshot",
            arrays=arrays,
            patience_seconds=self._job.phase_seconds,
            keep=True,
        )
        return {answer.firm for answer in heard if isinstance(answer.message, Join | EscrowedJoin)}
