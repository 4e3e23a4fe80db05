"""What the operator reads while a job waits: who is missing, why, and what to do, in one sentence.

Every code that a firm may refuse with, and every way to be absent, has its words here and nowhere else.
"""

from collections.abc import Collection
from datetime import UTC, datetime

from dure_protocols.errors import RefusalCode
from dure_protocols.messages import Absence, AbsenceReason
from dure_server.store.timeline import NO_ANSWER_WORDS

NOT_CONNECTED = "not connected: start its agent"
NO_ANSWER = NO_ANSWER_WORDS  # the timeline knows its code by these words
_LAST_SECOND = 253_402_300_799  # of the year 9999

WHAT_TO_DO = {
    RefusalCode.NOT_APPROVED: "its people have not approved the job",
    RefusalCode.REJECTED_BY_FIRM: "its people rejected the job: settle why",
    RefusalCode.UNKNOWN_JOB: "it does not know this job: propose it under a new id",
    RefusalCode.UNKNOWN_MODEL: "it has not allowed the model",
    RefusalCode.MODEL_DIGEST: "other code of the model is installed there: install one version everywhere",
    RefusalCode.CONTRACT: "its data do not fit the contract: it runs `dure-agent data check`",
    RefusalCode.DATA: "its data cannot be used: it runs `dure-agent data check`",
    RefusalCode.PURPOSE: "its policy does not take this purpose",
    RefusalCode.AGREEMENT: "its policy does not take this agreement: which version has it accepted?",
    RefusalCode.ROSTER: "it has not accepted every firm of the job",
    RefusalCode.SIGNATURE: "a signature was wrong: compare fingerprints",
    RefusalCode.COHORT_TOO_SMALL: "too few firms for its policy: wait for more",
    RefusalCode.OUT_OF_ORDER: "it stands elsewhere in the round and joins the next",
    RefusalCode.REPLAY: "it was restarted and joins the next attempt",
    RefusalCode.ATTEMPT_SPENT: "it was restarted and joins the next attempt",
    RefusalCode.ALREADY_RELEASED: "it contributed on this model before",
    RefusalCode.GLOBAL_MODEL: "it stands on another global model",
    RefusalCode.FALSE_SUM: "a published sum did not carry its tag: see docs/jobs.md",
    RefusalCode.SNAPSHOT_NEEDED: "it lost its state and waits for others to vouch for the model",
    RefusalCode.ESCROW: "its escrow was wrong: propose a job without it",
    RefusalCode.MALFORMED: "it sent what is no answer: is it of another version?",
    RefusalCode.TRAINING: "its training failed: its logs/trainer.log says why",
    RefusalCode.STATE_LOST: "it lost its state",
    RefusalCode.SANDBOX: "its host lacks the sandbox that its policy asks for: it runs `dure-agent doctor`",
    RefusalCode.LEFT: "it left the job for good",
    RefusalCode.INTERNAL: "its agent failed: its logs/agent.log says why",
}
"""What each code means to the operator; the code itself stands before it."""


def told_code(code: str) -> str:
    """A reason as the operator reads it: a code with what it means, or the words themselves."""
    try:
        return f"refused: {code}, {WHAT_TO_DO[RefusalCode(code)]}"
    except ValueError:
        return code


def told_absence(absence: Absence) -> str:
    """Why a firm sits out and until when, by its own word."""
    if absence.reason is AbsenceReason.PAUSED:
        what, end = "paused by its people", "until they resume"
    elif absence.reason is AbsenceReason.LIMIT:
        what, end = "at its limit for this shift", ""
    else:
        what, end = "in maintenance", ""
    if 0 < absence.until <= _LAST_SECOND:
        end = f"until {datetime.fromtimestamp(absence.until, UTC):%Y-%m-%d %H:%M} UTC"
    return f"{what} {end}".strip()


def told_awaited(firms: Collection[str], connected: Collection[str]) -> str:
    """The firms that an answer is awaited from; of those that cannot give it, why."""
    return ", ".join(firm if firm in connected else f"{firm} ({NOT_CONNECTED})" for firm in sorted(firms))
