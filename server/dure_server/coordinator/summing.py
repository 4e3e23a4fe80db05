"""From a cohort to the parts of its sum: masked updates, in threshold mode votes on the survivors, releases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dure_protocols.errors import RefusalCode, RefusedError
from dure_protocols.global_state import is_training, layout_of
from dure_protocols.job import JobFile
from dure_protocols.messages import ARRAY_MASKED, Cohort, Join, MaskedUpdate, Release, ReleaseRequest, Vote, VoteRequest
from dure_protocols.secagg.server import Attempt
from dure_protocols.secagg.terms import Terms
from dure_server.coordinator.agreement import code_of
from dure_server.coordinator.conversation import Conversation, Heard, JobFailedError
from dure_server.coordinator.record import JobRecord, Situation
from dure_server.coordinator.sentences import NO_ANSWER
from dure_server.operation import Operation


@dataclass
class Uploads:
    """What came of asking a cohort for its masked updates.

    receipts: by firm, of the vectors that were added; dropped: who sent nothing useful, and why; votes: for these
    survivors, in threshold mode.
    """

    receipts: dict[str, MaskedUpdate] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    votes: tuple[Vote, ...] = ()
    size_bytes: int = 0

    @property
    def complaints(self) -> str:
        """Whose escrow other firms found to be wrong, as they say; empty if nobody complains."""
        about: dict[str, list[str]] = {}
        for firm, receipt in sorted(self.receipts.items()):
            for named in receipt.complaints:
                about.setdefault(named, []).append(firm)
        return "; ".join(f"{', '.join(firms)} could not use the escrow of {named}" for named, firms in about.items())


class Summing:
    """Asks the members of attempts for their parts, and checks each before it counts."""

    def __init__(self, job: JobFile, talk: Conversation, record: JobRecord) -> None:
        self._job, self._talk, self._record = job, talk, record
        self._terms = Terms.of(job)
        self._digest = job.digest()
        self.operation = Operation()

    def gather_updates(
        self, attempt: Attempt, joins: Sequence[Join], settled: tuple[str, ...] | None = None
    ) -> Uploads:
        """Add each masked vector as it comes. settled: a coordinator before us asked these to agree on their sum, so
        nobody else's vector may be added."""
        _, number, _ = attempt.place
        what = "training" if is_training(self._job, number) else "computing sums"
        layout = layout_of(self._job, number)
        in_order = tuple(sorted(joins, key=lambda join: join.firm))
        asked = attempt.members if settled is None else settled
        requests = {
            firm: Cohort(self._digest, *attempt.place, in_order, attempt.deliveries_for(firm)) for firm in asked
        }
        uploads = Uploads()
        situation = self._situation("update", f"firms are {what}", attempt)
        for heard in self._talk.ask(requests, situation, patience_seconds=self.operation.seconds("update", self._job)):
            uploads.size_bytes += heard.size_bytes
            receipt, vector = heard.message, heard.arrays.get(ARRAY_MASKED)
            if not isinstance(receipt, MaskedUpdate) or vector is None:
                uploads.dropped[heard.firm] = code_of(heard)
                continue
            if heard.digests[ARRAY_MASKED] != receipt.vector_digest or vector.dtype != np.uint64:
                uploads.dropped[heard.firm] = RefusalCode.MALFORMED.value
                continue
            try:
                attempt.add(receipt, vector.view(np.uint64), layout)
            except RefusedError as error:
                uploads.dropped[heard.firm] = error.code.value
                continue
            uploads.receipts[heard.firm] = receipt
        absent = set(asked) - set(uploads.receipts) - set(uploads.dropped)
        uploads.dropped |= dict.fromkeys(sorted(absent), NO_ANSWER)
        return uploads

    def gather_votes(self, attempt: Attempt, uploads: Uploads) -> tuple[tuple[Vote, ...], dict[str, str]]:
        """Ask the survivors to agree on themselves. Returns their votes, and who did not vote and why."""
        situation = self._situation("vote", "agreeing on whose sum is opened", attempt)
        receipts = tuple(uploads.receipts[firm] for firm in attempt.survivors)
        request = VoteRequest(self._digest, *attempt.place, receipts)
        votes: dict[str, Vote] = {}
        silent = dict.fromkeys(attempt.survivors, NO_ANSWER)
        requests = dict.fromkeys(attempt.survivors, request)
        for heard in self._talk.ask(requests, situation, patience_seconds=self.operation.seconds("vote", self._job)):
            silent[heard.firm] = code_of(heard)
            if isinstance(heard.message, Vote):
                try:
                    attempt.check_vote(heard.firm, heard.message)
                except RefusedError as error:
                    silent[heard.firm] = error.code.value
                    continue
                votes[heard.firm] = heard.message
                del silent[heard.firm]
        return tuple(votes[firm] for firm in sorted(votes)), silent

    def gather_releases(self, attempt: Attempt, uploads: Uploads) -> dict[str, Release]:
        """Ask the survivors to open their parts, and wait until the sum can be opened: there is no going on without.

        A firm that has released will not contribute to this model again, so where too few can release, the job ends.
        Who returns a wrong share is made up for by others; where all have answered, `unmask` says who it was.
        """
        survivors, threshold = attempt.survivors, self._terms.threshold
        receipts = () if threshold else tuple(uploads.receipts[firm] for firm in survivors)
        # More votes than are needed would only be more for every firm to check.
        request = ReleaseRequest(self._digest, *attempt.place, receipts, uploads.votes[:threshold])
        needed = threshold or len(survivors)
        releases: dict[str, Release] = {}
        problems: dict[str, str] = {}
        patience = self.operation.seconds("release", self._job) if threshold else None
        while not attempt.can_open(releases):
            waiting = [firm for firm in survivors if firm not in releases and firm not in problems]
            if not waiting:
                break
            situation = self._situation("release", "opening the sum", attempt)
            for heard in self._talk.ask(dict.fromkeys(waiting, request), situation, patience_seconds=patience):
                problem = self._check_release(attempt, heard)
                if problem:
                    problems[heard.firm] = problem
                elif isinstance(heard.message, Release):
                    releases[heard.firm] = heard.message
                if len(survivors) - len(problems) < needed:
                    raise JobFailedError(_cannot_release(attempt, problems))
            patience = None  # all that are needed must come, however long it takes
        return releases

    def _check_release(self, attempt: Attempt, heard: Heard) -> str:
        if not isinstance(heard.message, Release):
            return code_of(heard)
        try:
            attempt.check_release(heard.firm, heard.message)
        except RefusedError as error:
            return str(error)
        return ""

    def _situation(self, phase: str, sentence: str, attempt: Attempt) -> Situation:
        _, number, attempt_number = attempt.place
        return Situation(phase, f"round {number}: {sentence}", number, attempt_number, attempt.members)


def _cannot_release(attempt: Attempt, problems: Mapping[str, str]) -> str:
    told = "; ".join(f"{firm} ({why})" for firm, why in sorted(problems.items()))
    return (
        f"too few firms can open the sum of round {attempt.place[1]}; refused: {told}. Nothing was learnt from the"
        " round, and who released does not train on it again: propose a job with another seed"
    )
