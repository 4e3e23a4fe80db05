"""The errors of the protocol package.

    DureError                 everything Dure raises on purpose; its text tells a person what to do
    ├── MessageError          bytes that are no valid message: truncated, too long, an unknown kind, left-over bytes
    ├── IdentityError         a key, signature, certificate, name or fingerprint that is not what it must be
    ├── RefusedError          a well-formed request that this side will not answer; carries a `RefusalCode`
    └── MisuseError           our own code called something out of order: a bug, not a peer's doing

A peer's bad message and our own misuse are different errors, because only the first may be blamed on somebody else.
"""

from enum import StrEnum


class DureError(Exception):
    """Base of every error that Dure raises on purpose. Command-line programs print its text and exit with 1."""


class MessageError(DureError):
    """Bytes from a peer are not the message they claim to be."""


class IdentityError(DureError):
    """A key, signature, certificate, firm name or fingerprint is not what it must be."""


class MisuseError(DureError):
    """Our own code called a state machine out of order or with the wrong shape."""


class RefusalCode(StrEnum):
    """Why a firm refuses, in the words that may leave it; the reason in full stays in the firm's own log."""

    NOT_APPROVED = "not-approved"
    REJECTED_BY_FIRM = "rejected-by-firm"
    UNKNOWN_JOB = "unknown-job"
    UNKNOWN_MODEL = "unknown-model"
    MODEL_DIGEST = "model-digest"
    CONTRACT = "data-contract"
    DATA = "data"
    PURPOSE = "purpose"
    AGREEMENT = "agreement"
    ROSTER = "roster"
    SIGNATURE = "signature"
    COHORT_TOO_SMALL = "cohort-too-small"
    OUT_OF_ORDER = "out-of-order"
    REPLAY = "replay"
    ATTEMPT_SPENT = "attempt-spent"
    ALREADY_RELEASED = "already-released"
    GLOBAL_MODEL = "global-model"
    FALSE_SUM = "false-sum"
    SNAPSHOT_NEEDED = "snapshot-needed"
    ESCROW = "escrow"
    MALFORMED = "malformed"
    TRAINING = "training"
    STATE_LOST = "state-lost"
    LEFT = "left"
    SANDBOX = "sandbox"
    INTERNAL = "internal"


class RefusedError(DureError):
    """A request that this side will not answer: `code` may leave the firm, the text may not."""

    def __init__(self, code: RefusalCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
