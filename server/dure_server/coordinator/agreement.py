"""What comes before rounds: every firm's approval of the job, and pair keys between every two firms, once an epoch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from dure_protocols.errors import DureError, IdentityError, RefusalCode
from dure_protocols.identity import verify
from dure_protocols.job import JobFile
from dure_protocols.messages import (
    Approval,
    AskKeys,
    Established,
    JobRequest,
    KeyAdvertisement,
    KeyCiphertexts,
    Proposal,
    Refusal,
    Reply,
    Roster,
)
from dure_protocols.secagg.server import establish_for
from dure_server.coordinator.conversation import Conversation, Heard, JobFailedError
from dure_server.coordinator.record import JobRecord, Situation
from dure_server.coordinator.sentences import told_code

MAX_EPOCH_TRIES = 5
M = TypeVar("M", bound=Reply)

# What asking again does not mend: a person at the firm, or the operator, has to do something first.
_FINAL_CODES = frozenset(
    {
        RefusalCode.REJECTED_BY_FIRM,
        RefusalCode.LEFT,
        RefusalCode.UNKNOWN_MODEL,
        RefusalCode.MODEL_DIGEST,
        RefusalCode.SIGNATURE,
        RefusalCode.UNKNOWN_JOB,
    }
)

# Before a job runs, a firm's people may still accept a firm, allow a model or approve: those refusals are waited out.
# These are not; the job ends as failed, from where it may be started again once that is done.
_WHAT_TO_DO = {
    RefusalCode.MODEL_DIGEST: "the model's code installed there is not the code that the job file names by its digest; "
    "install the same version of Dure and its models everywhere, then propose a new job or start this one again",
    RefusalCode.REJECTED_BY_FIRM: "its people said no; settle why, then propose another job",
    RefusalCode.LEFT: "its people took it out for good, and keys and statistics need every firm of the job; propose "
    "another job without it",
    RefusalCode.UNKNOWN_JOB: "it decided on another job of this id before; propose the job under a new id",
}
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 5.0  # between proposals; each is a record in every ledger


@dataclass(frozen=True)
class Keys:
    """An epoch that every firm holds roots of."""

    epoch: int
    transcript: bytes


class EpochLostError(DureError):
    """A firm has no keys of this epoch (any more): agree on new ones."""


class Agreement:
    """Approvals and keys of one job. `gather_approvals` first, then `agree_keys`, again whenever an epoch is lost."""

    def __init__(self, job: JobFile, talk: Conversation, record: JobRecord) -> None:
        self._job, self._talk, self._record = job, talk, record
        self._digest = job.digest()
        self._refused: dict[str, RefusalCode] = {}

    def gather_approvals(self) -> None:
        """Propose until every firm of the job has approved exactly this job file, each with its signature.

        Raises JobFailedError when a firm refuses for a reason that waiting does not mend, JobStoppedError.
        """
        self._record.ask_signoffs(sorted(self._job.firms))
        awaited = set(self._job.firms) - self._record.approvals()
        proposal = Proposal(self._job.to_bytes())
        asked, pause_seconds = 0, FIRST_PAUSE_SECONDS
        while awaited:
            self._refused |= dict.fromkeys(self._record.left() & awaited, RefusalCode.LEFT)
            self._check_refusals()
            present = awaited & self._talk.connected()
            if present:
                situation = Situation("proposal", "asking the firms to approve the job", members=tuple(sorted(present)))
                # Every time is another request: an agent answers a repeated one with what it said before.
                key = f".{self._record.now_milliseconds()}.{asked}"
                asked += 1
                for heard in self._talk.ask(dict.fromkeys(present, proposal), situation, key=key, patience_seconds=30):
                    if self._hear_approval(heard):
                        awaited.discard(heard.firm)
                self._talk.forget()
                self._check_refusals()
            if awaited:
                self._talk.pause(self._why_not_started(awaited), pause_seconds)
                pause_seconds = min(1.5 * pause_seconds, LONGEST_PAUSE_SECONDS)

    def _hear_approval(self, heard: Heard) -> bool:
        message = heard.message
        if isinstance(message, Approval) and message.job_digest == self._digest:
            try:
                key = self._job.identities()[heard.firm]
                verify(key, message.signature, "dure approval", self._digest, heard.firm.encode())
            except IdentityError:
                self._record.refused(heard.firm, RefusalCode.SIGNATURE)
                return False
            self._record.approved(heard.firm, message.signature)
            self._refused.pop(heard.firm, None)
            return True
        code = message.code if isinstance(message, Refusal) else RefusalCode.MALFORMED
        self._record.refused(heard.firm, code)
        self._refused[heard.firm] = code
        return False

    def _check_refusals(self) -> None:
        final = {firm: code for firm, code in sorted(self._refused.items()) if code in _WHAT_TO_DO}
        told = [f"{firm} refused the job ({code.value}): {_WHAT_TO_DO[code]}" for firm, code in final.items()]
        if told:
            raise JobFailedError(". ".join(told))

    def _why_not_started(self, awaited: set[str]) -> Situation:
        absent = sorted(awaited - self._talk.connected())
        undecided = [self._with_code(firm) for firm in sorted(awaited - set(absent))]
        parts = [f"{', '.join(absent)} to connect"] if absent else []
        parts += [f"{', '.join(undecided)} to approve the job"] if undecided else []
        members, names = tuple(sorted(self._job.firms)), tuple(sorted(awaited))
        return Situation("proposal", f"waiting for {' and for '.join(parts)}", members=members, waiting_for=names)

    def _with_code(self, firm: str) -> str:
        code = self._refused.get(firm, RefusalCode.NOT_APPROVED)
        return firm if code is RefusalCode.NOT_APPROVED else f"{firm} ({told_code(code.value)})"

    def agree_keys(self, *, fresh: bool = False) -> Keys:
        """Hybrid keys between every two firms, once an epoch. Goes on with the epoch that stands unless `fresh`."""
        refused = ""
        for _ in range(MAX_EPOCH_TRIES):
            epoch = self._record.begin_epoch() if fresh or not self._record.epoch() else self._record.epoch()
            try:
                return self._agree_epoch(epoch)
            except EpochLostError as error:
                refused, fresh = str(error), True
        raise JobFailedError(f"the firms could not agree on keys in {MAX_EPOCH_TRIES} epochs; last: {refused}")

    def _agree_epoch(self, epoch: int) -> Keys:
        everybody = sorted(self._job.firms)

        def everyone(requests: Mapping[str, JobRequest], expected: type[M], phase: str, sentence: str) -> dict[str, M]:
            situation = Situation(phase, sentence, attempt=epoch, members=tuple(everybody))
            replies: dict[str, M] = {}
            for heard in self._talk.ask(requests, situation, keep=True):
                message = heard.message
                if isinstance(message, Refusal) and message.code in _FINAL_CODES:
                    told = _WHAT_TO_DO.get(message.code, "its log says more")
                    raise JobFailedError(f"{heard.firm} refused the job ({message.code.value}): {told}")
                if not isinstance(heard.message, expected):
                    raise EpochLostError(f"{heard.firm} refused in phase {phase}: {code_of(heard)}")
                replies[heard.firm] = heard.message
            return replies

        ask = dict.fromkeys(everybody, AskKeys(self._digest, epoch))
        advertisements = everyone(ask, KeyAdvertisement, "keys", "making keys")
        roster = Roster(self._digest, epoch, tuple(advertisements[firm] for firm in sorted(advertisements)))
        rosters = dict.fromkeys(everybody, roster)
        ciphertexts = everyone(rosters, KeyCiphertexts, "roster", "checking each other's keys").values()
        establish = {firm: establish_for(firm, self._digest, epoch, ciphertexts) for firm in everybody}
        established = everyone(establish, Established, "establish", "agreeing on pair keys")
        transcripts = {message.transcript for message in established.values()}
        if len(transcripts) != 1:
            raise EpochLostError("the firms saw different keys")
        return Keys(epoch, transcripts.pop())


def code_of(heard: Heard) -> str:
    """What a firm refused with, for the operator."""
    message = heard.message
    return message.code.value if isinstance(message, Refusal) else f"unexpected {type(message).__name__}"
