"""Every message between coordinator and firm: one frozen dataclass each, one encoding, one decoder.

    coordinator asks      firm answers          when
    Proposal              Approval              before a job: does the firm take part?
    AskKeys               KeyAdvertisement      once an epoch: fresh X25519 + ML-KEM-768 keys, signed
    Roster                KeyCiphertexts        … the whole roster, verified; KEM ciphertexts, signed
    Establish             Established           … pair roots derived, ephemeral keys erased
    Invitation            Join, EscrowedJoin    each attempt of a round; earlier published sums travel down with it
    Cohort                MaskedUpdate          the member set; the masked vector travels up beside the answer
    VoteRequest           Vote                  threshold mode: the survivors; each firm signs one set
    ReleaseRequest        Release               receipts or votes; the self-mask seed, and shares in threshold mode
    Finish                Finished              the last sum
    Hello                 Present               on a runtime that does not know which node is which firm
    Invitation            Absence               not now: the firm is paused, in maintenance or at a limit
    (any)                 Refusal               a code, never a reason

What a firm answers is, together with the masked vector, all that it tells the coordinator (design, section 7).
`encode` writes a kind byte and the fields; `decode` checks every length and refuses what is left over.
Every signature is over the job's digest and the parts that its class names, see `secagg.terms.Terms.check`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, get_args

from dure_protocols.errors import MessageError, RefusalCode
from dure_protocols.fields import (
    MAX_FIRMS,
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
TAG_BOX_BYTES = 32 + 16
SHARE_BYTES = 33
SHARE_BOX_BYTES = 2 * SHARE_BYTES + 16
MAX_SUMS = 64
MAX_MESSAGE_BYTES = 8 << 20
ARRAY_MASKED = "masked"
ARRAY_SNAPSHOT = "snapshot"


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


@dataclass(frozen=True)
class SealedKey(Fields):
    """From one firm to one firm behind it in the alphabet: a KEM ciphertext.

    tag_box: from the job's first firm, the epoch's tag key, sealed under the pair root; from others empty.
    Signed by the sender: "dure ciphertext", digest of the roster, sender, receiver, ciphertext, tag_box.
    """

    sender: Text
    receiver: Text
    ciphertext: Annotated[bytes, fixed(MLKEM_CIPHERTEXT_BYTES)]
    tag_box: Annotated[bytes, blob(TAG_BOX_BYTES)]
    signature: Signature


_SEALED_KEYS = many(nested(SealedKey))


@dataclass(frozen=True)
class KeyCiphertexts(Fields):
    """What a firm sends to each firm behind it in the alphabet."""

    kind: ClassVar[int] = 6
    firm: Text
    epoch: U64
    ciphertexts: Annotated[tuple[SealedKey, ...], _SEALED_KEYS]


@dataclass(frozen=True)
class Establish(Fields):
    """What the firms before this one in the alphabet sent to it, as the server says."""

    kind: ClassVar[int] = 7
    job_digest: Hash
    epoch: U64
    ciphertexts: Annotated[tuple[SealedKey, ...], _SEALED_KEYS]


@dataclass(frozen=True)
class Established(Fields):
    """The firm holds a root with every other firm. transcript: digest of the roster and of the epoch's tag key."""

    kind: ClassVar[int] = 8
    firm: Text
    epoch: U64
    transcript: Hash


@dataclass(frozen=True)
class PublishedSum(Fields):
    """What an attempt published, with everything that its tag is bound to.

    cohort: who masked; members: whose vectors are in the sum, in retry mode all of the cohort; vector_digest: SHA-256
    of the unmasked vector's bytes, which travel as array.
    """

    epoch: U64
    round: U64
    attempt: U64
    cohort: Names
    members: Names
    vector_digest: Hash

    @property
    def array_name(self) -> str:
        """Name of the array beside the message that holds the vector."""
        return f"sum-{self.round}"


Sums = Annotated[tuple[PublishedSum, ...], many(nested(PublishedSum), MAX_SUMS)]


@dataclass(frozen=True)
class Join(Fields):
    """The firm takes part in this attempt, on the global model with this hash.

    escrow: digest of the firm's escrow; in retry mode zeros.
    Signed: "dure join", transcript, (epoch, round, attempt), firm, model hash, escrow.
    """

    kind: ClassVar[int] = 10
    firm: Text
    epoch: U64
    round: U64
    attempt: U64
    model_hash: Hash
    escrow: Hash
    signature: Signature


@dataclass(frozen=True)
class Snapshot(Fields):
    """The global model for a firm that cannot compute it: it lost its state, or the tag keys of earlier epochs.

    vector_digest: SHA-256 of the array `ARRAY_SNAPSHOT` beside the message, which holds the global state.
    witnesses: other firms' joins of this very attempt, each signed over the hash of that state.
    """

    vector_digest: Hash
    witnesses: Annotated[tuple[Join, ...], many(nested(Join))]


@dataclass(frozen=True)
class Invitation(Fields):
    """Join this attempt of this round. sums: what the firm has not applied yet, oldest first, arrays beside it.

    snapshot: none or one; instead of sums.
    """

    kind: ClassVar[int] = 9
    job_digest: Hash
    epoch: U64
    round: U64
    attempt: U64
    sums: Sums
    snapshot: Annotated[tuple[Snapshot, ...], many(nested(Snapshot), 1)] = ()


@dataclass(frozen=True)
class SealedShares(Fields):
    """One firm's shares of a dealer's self seed and escrow key, sealed for it; and what anybody checks them by.

    box: both shares, 33 bytes each, in AES-256-GCM; the commitments are `escrow.commit_share` of either.
    """

    receiver: Text
    box: Annotated[bytes, fixed(SHARE_BOX_BYTES)]
    self_commitment: Hash
    escrow_commitment: Hash


@dataclass(frozen=True)
class Escrow(Fields):
    """Threshold mode: what the others need to open a sum when this firm vanishes (docs/protocol.md, section 6.5).

    self_commitment, key_commitment: of the self seed and the escrow key; sealed: the attempt keys with every other
    firm under the escrow key; key_commitments: of those attempt keys; shares: for every other firm. The last three in
    the order of the alphabet.
    """

    self_commitment: Hash
    key_commitment: Hash
    sealed: Annotated[bytes, blob(32 * MAX_FIRMS)]
    key_commitments: Annotated[tuple[bytes, ...], many(fixed(32))]
    shares: Annotated[tuple[SealedShares, ...], many(nested(SealedShares))]


@dataclass(frozen=True)
class EscrowedJoin(Fields):
    """A join in threshold mode."""

    kind: ClassVar[int] = 20
    join: Annotated[Join, nested(Join)]
    escrow: Annotated[Escrow, nested(Escrow)]

    @property
    def firm(self) -> str:
        """Who joins."""
        return self.join.firm


@dataclass(frozen=True)
class Delivery(Fields):
    """The part of a dealer's escrow that concerns one other firm."""

    dealer: Text
    key_commitment: Hash
    shares: Annotated[SealedShares, nested(SealedShares)]


@dataclass(frozen=True)
class Cohort(Fields):
    """Who joined this attempt, each with its signed Join: train and mask.

    deliveries: in threshold mode one from every other member; in retry mode none.
    """

    kind: ClassVar[int] = 11
    job_digest: Hash
    epoch: U64
    round: U64
    attempt: U64
    joins: Annotated[tuple[Join, ...], many(nested(Join))]
    deliveries: Annotated[tuple[Delivery, ...], many(nested(Delivery))] = ()


@dataclass(frozen=True)
class MaskedUpdate(Fields):
    """A receipt for the masked vector that travels beside it.

    context: the mask context of the attempt; vector_digest: SHA-256 of the masked vector's bytes; complaints: members
    whose escrow is not what it must be, as this firm says. Signed: "dure masked update", all fields.
    """

    kind: ClassVar[int] = 12
    firm: Text
    context: Hash
    vector_digest: Hash
    complaints: Names
    signature: Signature


@dataclass(frozen=True)
class VoteRequest(Fields):
    """Threshold mode: the receipts of those who uploaded, the survivors. Whose sum shall be opened?"""

    kind: ClassVar[int] = 21
    job_digest: Hash
    epoch: U64
    round: U64
    attempt: U64
    uploads: Annotated[tuple[MaskedUpdate, ...], many(nested(MaskedUpdate))]


@dataclass(frozen=True)
class Vote(Fields):
    """The one survivor set of this attempt whose sum the firm agrees to open.

    survivors: digest of their names. Signed: "dure vote", context, firm, survivors.
    """

    kind: ClassVar[int] = 22
    firm: Text
    context: Hash
    survivors: Hash
    signature: Signature


@dataclass(frozen=True)
class ReleaseRequest(Fields):
    """Open your part of the sum. Why it may be opened, in retry mode: every member's receipt; in threshold mode: as
    many votes for one survivor set as the threshold.
    """

    kind: ClassVar[int] = 13
    job_digest: Hash
    epoch: U64
    round: U64
    attempt: U64
    uploads: Annotated[tuple[MaskedUpdate, ...], many(nested(MaskedUpdate))]
    votes: Annotated[tuple[Vote, ...], many(nested(Vote))] = ()


SHARES = many(pair(TEXT, fixed(SHARE_BYTES)))
Shares = Annotated[tuple[tuple[str, bytes], ...], SHARES]


@dataclass(frozen=True, repr=False)
class Release(Fields):
    """A firm's own self-mask seed of this attempt; in threshold mode also its shares, by dealer.

    self_shares: of other survivors' self seeds; escrow_shares: of the escrow keys of members that dropped out. Never
    both of one dealer. Signed: "dure release", context, firm, seed, both lists.
    """

    kind: ClassVar[int] = 14
    firm: Text
    context: Hash
    seed: Seed
    self_shares: Shares
    escrow_shares: Shares
    signature: Signature

    def shares_bytes(self) -> bytes:
        """Both lists as they are signed."""
        writer = Writer()
        SHARES.write(writer, self.self_shares)
        SHARES.write(writer, self.escrow_shares)
        return bytes(writer)

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


class AbsenceReason(StrEnum):
    """Why a firm sits out."""

    PAUSED = "paused"
    MAINTENANCE = "maintenance"
    LIMIT = "limit"
    """It has trained as much as its shift allows."""


def _read_reason(reader: Reader) -> AbsenceReason:
    text = reader.text()
    try:
        return AbsenceReason(text)
    except ValueError as error:
        raise MessageError(f"unknown reason of absence {text!r}; is the agent newer than this server?") from error


@dataclass(frozen=True)
class Absence(Fields):
    """The firm takes part in no attempt for now. until: Unix time in seconds, 0 where nobody has said."""

    kind: ClassVar[int] = 23
    firm: Text
    reason: Annotated[AbsenceReason, Codec(Writer.text, _read_reason)]
    until: U64 = 0


@dataclass(frozen=True)
class Hello(Fields):
    """Which firm are you? Asked only on runtimes that do not know, which is why the answer is a claim."""

    kind: ClassVar[int] = 18


@dataclass(frozen=True)
class Present(Fields):
    """The firm that answers. Every later message of it is signed."""

    kind: ClassVar[int] = 19
    firm: Text


JobRequest = AskKeys | Roster | Establish | Invitation | Cohort | VoteRequest | ReleaseRequest | Finish
"""Requests of an approved job; each names it by `job_digest`."""
Request = Hello | Proposal | JobRequest
Reply = (
    Present
    | Approval
    | KeyAdvertisement
    | KeyCiphertexts
    | Established
    | Join
    | EscrowedJoin
    | MaskedUpdate
    | Vote
    | Release
    | Finished
    | Refusal
    | Absence
)
Message = Request | Reply

_CLASSES: dict[int, type[Message]] = {cls.kind: cls for cls in (*get_args(Request), *get_args(Reply))}


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
