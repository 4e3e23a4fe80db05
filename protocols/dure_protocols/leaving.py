"""Leaving: a firm's signed word that it takes part no more, and the consortium's receipt. docs/protocol.md, section 12.

Both sides keep both: the firm proves that it left and when, the server that it was told; the receipt also says in which
published sums the firm's updates stand, because those cannot be taken back.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Self

from dure_protocols.certificates import Authority, certificate_der, verify_root_signature
from dure_protocols.errors import IdentityError, MessageError
from dure_protocols.fields import U64, Fields, Hash, Signature, Text, blob, many, nested, pair
from dure_protocols.identity import Identity, verify
from dure_protocols.job import MAX_ROUNDS
from dure_protocols.wire import Reader, Writer

_FORMAT = 1
LEAVE_LABEL, RECEIPT_LABEL = "dure leave", "dure leave receipt"
MAX_LEAVE_BYTES = 16 << 10
MAX_RECEIPT_BYTES = 8 << 20
MAX_JOBS = 4_096
MAX_RUNS = MAX_ROUNDS // 2 + 2
EVERY_JOB = bytes(32)
"""The job digest of a statement that is about the consortium."""

_NUMBER = U64.__metadata__[0]  # type: ignore[attr-defined]  # the codec of an annotated field
Runs = Annotated[tuple[tuple[int, int], ...], many(pair(_NUMBER, _NUMBER), MAX_RUNS)]
"""Rounds as runs of consecutive ones: first and last of each, in order."""


class _Frame(Fields):
    @classmethod
    def _decoded(cls, data: bytes, limit_bytes: int) -> Self:
        if len(data) > limit_bytes:
            raise MessageError(f"{cls.__name__} of {len(data)} bytes came; at most {limit_bytes} are allowed")
        reader = Reader(data)
        if (form := reader.u8()) != _FORMAT:
            raise MessageError(f"{cls.__name__} of format {form} came, {_FORMAT} was expected: update the older side")
        value = cls.read(reader)
        reader.end()
        return value

    def encode(self) -> bytes:
        """The bytes on the wire and on disk."""
        writer = Writer().u8(_FORMAT)
        self.write(writer)
        return bytes(writer)


@dataclass(frozen=True)
class Leave(_Frame):
    """`firm` leaves a job, or with an empty `job` the consortium and all its jobs. at: Unix time in seconds.

    Signed: "dure leave", consortium, firm, job, job digest, at.
    """

    consortium: Text
    firm: Text
    job: Text
    job_digest: Hash
    at: U64
    signature: Signature

    @classmethod
    def make(cls, consortium: str, firm: str, job: str, job_digest: bytes, at: int, identity: Identity) -> "Leave":
        """A firm's statement. job: empty for the consortium, with the digest `EVERY_JOB`."""
        unsigned = cls(consortium, firm, job, job_digest, at, bytes(64))
        return cls(consortium, firm, job, job_digest, at, identity.sign(LEAVE_LABEL, *unsigned.signed_parts()))

    @property
    def is_about_consortium(self) -> bool:
        """Whether the firm leaves everything."""
        return self.job == ""

    def check(self, public_key: bytes) -> None:
        """The firm signed it. Raises IdentityError."""
        verify(public_key, self.signature, LEAVE_LABEL, *self.signed_parts())

    def signed_parts(self) -> tuple[bytes, ...]:
        """What the signature is over, behind its label."""
        texts = (self.consortium.encode(), self.firm.encode(), self.job.encode())
        return (*texts, self.job_digest, self.at.to_bytes(8, "big"))

    @classmethod
    def decode(cls, data: bytes) -> "Leave":
        """Read it. The caller MUST `check` it. Raises MessageError."""
        leave = cls._decoded(data, MAX_LEAVE_BYTES)
        if leave.is_about_consortium is not (leave.job_digest == EVERY_JOB):
            raise MessageError("a statement of leaving names a job with its digest, or neither")
        return leave


@dataclass(frozen=True)
class Part(Fields):
    """In which published sums of a job the firm's vector stands. rounds: runs, see `Runs`."""

    job: Text
    job_digest: Hash
    rounds: Runs

    @property
    def num_sums(self) -> int:
        """How many sums that is."""
        return sum(last - first + 1 for first, last in self.rounds)


@dataclass(frozen=True)
class LeaveReceipt(_Frame):
    """The consortium was told, and says what the firm took part in. at: Unix time in seconds, by the server's clock.

    Signed by the consortium's root: "dure leave receipt" and the other fields' bytes. ECDSA with SHA-256, in DER.
    """

    leave: Annotated[Leave, nested(Leave)]
    at: U64
    parts: Annotated[tuple[Part, ...], many(nested(Part), MAX_JOBS)]
    signature: Annotated[bytes, blob(128)]

    @classmethod
    def make(cls, leave: Leave, at: int, parts: tuple[Part, ...], authority: Authority) -> "LeaveReceipt":
        """The receipt for a statement that was checked."""
        unsigned = cls(leave, at, parts, b"")
        return cls(leave, at, parts, authority.countersign(RECEIPT_LABEL, unsigned.encode()))

    def check(self, leave: Leave, root_pem: bytes) -> None:
        """It is for this statement and signed by this root. Raises IdentityError."""
        if self.leave != leave:
            raise IdentityError("the receipt is for another statement than this firm's")
        unsigned = LeaveReceipt(self.leave, self.at, self.parts, b"")
        verify_root_signature(certificate_der(root_pem), self.signature, RECEIPT_LABEL, unsigned.encode())

    @classmethod
    def decode(cls, data: bytes) -> "LeaveReceipt":
        """Read it. The caller MUST `check` it. Raises MessageError."""
        receipt = cls._decoded(data, MAX_RECEIPT_BYTES)
        if not all(_in_order(part.rounds) for part in receipt.parts):
            raise MessageError("a receipt's rounds are runs in order")
        return receipt


def runs_of(rounds: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Rounds as runs: (1, 2, 3, 7) is ((1, 3), (7, 7)). Pure."""
    runs: list[tuple[int, int]] = []
    for number in sorted(set(rounds)):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return tuple(runs)


def told_runs(runs: Iterable[tuple[int, int]]) -> str:
    """For a person: "1 to 3, 7"."""
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in runs) or "none"


def _in_order(runs: tuple[tuple[int, int], ...]) -> bool:
    ends = [number for run in runs for number in run]
    return all(first <= last for first, last in runs) and all(
        before + 1 < after for before, after in zip(ends[1::2], ends[2::2], strict=False)
    )
