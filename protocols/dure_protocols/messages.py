"""Every message between coordinator and firm: one frozen dataclass each, one encoding, one decoder.

    coordinator asks      firm answers          when
    Proposal              Approval              before a job: does the firm take part?
    AskKeys               KeyAdvertisement      once an epoch: fresh X25519 + ML-KEM-768 keys, signed
    Roster                KeyCiphertexts        … the whole roster, verified; KEM ciphertexts, signed
    Establish             Established           … pair roots derived, ephemeral keys erased
    Invitation            Join                  each attempt of a round; earlier published sums travel down with it
    Cohort                MaskedUpdate          the member set; the masked vector travels up beside the answer
    ReleaseRequest        Release               every member's upload receipt; the self-mask seed
    Finish                Finished              the last sum
    Hello                 Present               on a runtime that does not know which node is which firm
    (any)                 Refusal               a code, never a reason

What a firm answers is, together with the masked vector, all that it tells the coordinator (design, section 7).
`encode` writes a kind byte and the fields; `decode` checks every length and refuses what is left over.
Every signature is over the job's digest and the parts that its class names, see `secagg.terms.Terms.check`.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from dure_protocols.errors import MessageError, RefusalCode
from dure_protocols.fields import (
    TEXT,
    U64,
    Codec,
    Fields,
    Hash,
    Names,
    Seed,
    Signature,
    Text,
    blob,
    fixed,
    many,
    nested,
    pair,
)
from dure_protocols.job import MAX_JOB_BYTES
from dure_protocols.wire import Reader, Writer

MLKEM_PUBLIC_BYTES = 1184
MLKEM_CIPHERTEXT_BYTES = 1088
MAX_SUMS = 64
MAX_MESSAGE_BYTES = 8 << 20
ARRAY_MASKED = "masked"


@dataclass(frozen=True)
class Proposal(Fields):
    """A job file, whole, for the firm to approve."""

    kind: ClassVar[int] = 1
    job: Annotated[bytes, blob(MAX_JOB_BYTES)]


@dataclass(frozen=True)
class Approval(Fields):
    """The firm takes part in exactly this job. Signed: "dure approval", firm."""

    kind: ClassVar[int] = 2
    firm: Text
    job_digest: Hash
    signature: Signature


@dataclass(frozen=True)
class AskKeys(Fields):
    """Begin an epoch: make fresh keys."""

    kind: ClassVar[int] = 3
    job_digest: Hash
    epoch: U64


@dataclass(frozen=True)
class KeyAdvertisement(Fields):
    """A firm's public keys for one epoch. Signed: "dure advertisement", epoch, firm, x25519, mlkem."""

    kind: ClassVar[int] = 4
    firm: Text
    epoch: U64
    x25519: Annotated[bytes, fixed(32)]
    mlkem: Annotated[bytes, fixed(MLKEM_PUBLIC_BYTES)]
    signature: Signature


@dataclass(frozen=True)
class Roster(Fields):
    """Every firm's advertisement of this epoch, as the server says."""

    kind: ClassVar[int] = 5
    job_digest: Hash
    epoch: U64
    advertisements: Annotated[tuple[KeyAdvertisement, ...], many(nested(KeyAdvertisement))]


_CIPHERTEXTS = many(pair(TEXT, fixed(MLKEM_CIPHERTEXT_BYTES)))


@dataclass(frozen=True)
class KeyCiphertexts(Fields):
    """KEM ciphertexts from one firm to each firm behind it in the alphabet.

    Signed: "dure ciphertexts", digest of the roster, firm, ciphertexts.
    """

    kind: ClassVar[int] = 6
    firm: Text
    epoch: U64
    ciphertexts: Annotated[tuple[tuple[str, bytes], ...], _CIPHERTEXTS]
    signature: Signature

    def ciphertext_bytes(self) -> bytes:
        """The ciphertexts as they are signed and hashed."""
        writer = Writer()
        _CIPHERTEXTS.write(writer, self.ciphertexts)
        return bytes(writer)


@dataclass(frozen=True)
class Establish(Fields):
    """Every firm's ciphertexts of this epoch, as the server says."""

    kind: ClassVar[int] = 7
    job_digest: Hash
    epoch: U64
    ciphertexts: Annotated[tuple[KeyCiphertexts, ...], many(nested(KeyCiphertexts))]


@dataclass(frozen=True)
class Established(Fields):
    """The firm holds a root with every other firm. transcript: digest of everything the roots are bound to."""

    kind: ClassVar[int] = 8
    firm: Text
    epoch: U64
    transcript: Hash


@dataclass(frozen=True)
class PublishedSum(Fields):
    """What a round published: its members and the SHA-256 of the unmasked vector's bytes, which travel as array."""

    round: U64
    members: Names
    vector_digest: Hash

    @property
    def array_name(self) -> str:
        """Name of the array beside the message that holds the vector."""
        return f"sum-{self.round}"


Sums = Annotated[tuple[PublishedSum, ...], many(nested(PublishedSum), MAX_SUMS)]


@dataclass(frozen=True)
class Invitation(Fields):
    """Join this attempt of this round. sums: what the firm has not applied yet, oldest first, arrays beside it."""

    kind: ClassVar[int] = 9
    job_digest: Hash
    epoch: U64
    round: U64
    attempt: U64
    sums: Sums


@dataclass(frozen=True)
class Join(Fields):
    """The firm takes part in this attempt, on the global model with this hash.

    Signed: "dure join", transcript, (epoch, round, attempt), firm, model hash.
    """

    kind: ClassVar[int] = 10
    firm: Text
    epoch: U64
    round: U64
    attempt: U64
    model_hash: Hash
    signature: Signature


@dataclass(frozen=True)
class Cohort(Fields):
    """Who joined this attempt, each with its signed Join: train and mask."""

    kind: ClassVar[int] = 11
    job_digest: Hash
    epoch: U64
    round: U64
    attempt: U64
    joins: Annotated[tuple[Join, ...], many(nested(Join))]


@dataclass(frozen=True)
class MaskedUpdate(Fields):
    """A receipt for the masked vector that travels beside it.

    context: the mask context of the attempt; vector_digest: SHA-256 of the masked vector's bytes.
    Signed: "dure masked update", context, firm, vector digest.
    """

    kind: ClassVar[int] = 12
    firm: Text
    context: Hash
    vector_digest: Hash
    signature: Signature


@dataclass(frozen=True)
class ReleaseRequest(Fields):
    """Every member's receipt: the proof that all of them uploaded, so the self masks may be opened."""

    kind: ClassVar[int] = 13
    job_digest: Hash
    epoch: U64
    round: U64
    attempt: U64
    uploads: Annotated[tuple[MaskedUpdate, ...], many(nested(MaskedUpdate))]


@dataclass(frozen=True, repr=False)
class Release(Fields):
    """A firm's own self-mask seed of this attempt. Signed: "dure release", context, firm, seed."""

    kind: ClassVar[int] = 14
    firm: Text
    context: Hash
    seed: Seed
    signature: Signature

    def __repr__(self) -> str:
        return f"Release(firm={self.firm!r})"


@dataclass(frozen=True)
class Finish(Fields):
    """The job is over; `sums` as in Invitation."""

    kind: ClassVar[int] = 15
    job_digest: Hash
    sums: Sums


@dataclass(frozen=True)
class Finished(Fields):
    """The firm holds the final model, chosen by the public rule of the job file."""

    kind: ClassVar[int] = 16
    firm: Text
    model_hash: Hash


def _read_code(reader: Reader) -> RefusalCode:
    text = reader.text()
    try:
        return RefusalCode(text)
    except ValueError as error:
        raise MessageError(f"unknown refusal code {text!r}; is the agent newer than this server?") from error


@dataclass(frozen=True)
class Refusal(Fields):
    """The firm will not do what was asked. next_round: the round that the firm's model stands before."""

    kind: ClassVar[int] = 17
    firm: Text
    code: Annotated[RefusalCode, Codec(Writer.text, _read_code)]
    next_round: U64 = 0


@dataclass(frozen=True)
class Hello(Fields):
    """Which firm are you? Asked only on runtimes that do not know, which is why the answer is a claim."""

    kind: ClassVar[int] = 18


@dataclass(frozen=True)
class Present(Fields):
    """The firm that answers. Every later message of it is signed."""

    kind: ClassVar[int] = 19
    firm: Text


JobRequest = AskKeys | Roster | Establish | Invitation | Cohort | ReleaseRequest | Finish
"""Requests of an approved job; each names it by `job_digest`."""
Request = Hello | Proposal | JobRequest
Reply = (
    Present
    | Approval
    | KeyAdvertisement
    | KeyCiphertexts
    | Established
    | Join
    | MaskedUpdate
    | Release
    | Finished
    | Refusal
)
Message = Request | Reply

_CLASSES: dict[int, type[Message]] = {
    cls.kind: cls
    for cls in (
        *(Hello, Proposal, AskKeys, Roster, Establish, Invitation, Cohort, ReleaseRequest, Finish),
        *(
            Present,
            Approval,
            KeyAdvertisement,
            KeyCiphertexts,
            Established,
            Join,
            MaskedUpdate,
            Release,
            Finished,
            Refusal,
        ),
    )
}


def encode(message: Message) -> bytes:
    """A message's bytes: its kind and its fields."""
    writer = Writer().u8(message.kind)
    message.write(writer)
    return bytes(writer)


def decode(data: bytes) -> Message:
    """The message of these bytes. Raises MessageError on anything but exactly one well-formed message."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageError(f"a message of {len(data)} bytes came; at most {MAX_MESSAGE_BYTES} are allowed")
    reader = Reader(data)
    kind = reader.u8()
    if kind not in _CLASSES:
        raise MessageError(f"unknown message kind {kind}; is the other side of another version?")
    message = _CLASSES[kind].read(reader)
    reader.end()
    return message
