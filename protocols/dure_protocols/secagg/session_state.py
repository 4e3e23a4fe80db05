"""What a firm's session remembers over a crash (docs/protocol.md, sections 3, 6 and 8). Secret: it holds keys."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated

from dure_protocols.errors import MessageError
from dure_protocols.fields import TEXT, U64, Codec, Fields, Hash, Names, Seed, fixed, many, nested, pair
from dure_protocols.messages import SHARE_BYTES
from dure_protocols.secagg.handshake import HandshakeState
from dure_protocols.wire import Reader, Writer

MAX_EPOCHS = 64
_ROOTS = many(pair(TEXT, fixed(32)))
NO_HASH = bytes(32)


class Phase(IntEnum):
    """How far the firm has gone in its newest attempt."""

    IDLE = 0
    JOINED = 1
    MASKED = 2
    UPLOADED = 3
    VOTED = 4
    RELEASED = 5
    RETIRED = 6


def _read_phase(reader: Reader) -> Phase:
    value = reader.u8()
    if value not in set(Phase):
        raise MessageError(f"a session has no phase {value}")
    return Phase(value)


@dataclass(frozen=True, repr=False)
class EpochMemory(Fields):
    """What stays of an epoch, so that its sums can be checked later."""

    epoch: U64
    transcript: Hash
    tag_key: Annotated[bytes, fixed(32)]


@dataclass(frozen=True, repr=False)
class HeldFrom(Fields):
    """A dealer's shares at this firm."""

    dealer: Annotated[str, TEXT]
    self_share: Annotated[bytes, fixed(SHARE_BYTES)]
    escrow_share: Annotated[bytes, fixed(SHARE_BYTES)]


@dataclass(repr=False)
class SessionState(Fields):
    """Everything a session must remember over a crash. Secret; written by `snapshot` only.

    released_members: to whom this firm released in `released_round`; empty before its first release.
    contributed_key, contributed_round: the model, by its key, and the round in which others may have opened its newest
    upload, or in which it released it itself; NO_HASH before the first.
    """

    phase: Annotated[Phase, Codec(Writer.u8, _read_phase)] = Phase.IDLE
    handshake: Annotated[HandshakeState, nested(HandshakeState)] = field(default_factory=HandshakeState)
    epochs: Annotated[tuple[EpochMemory, ...], many(nested(EpochMemory), MAX_EPOCHS)] = ()
    roots: Annotated[tuple[tuple[str, bytes], ...], _ROOTS] = ()
    root_round: U64 = 0
    round: U64 = 0
    attempt: U64 = 0
    model_hash: Hash = NO_HASH
    model_key: Hash = NO_HASH
    self_seed: Seed = NO_HASH
    members: Names = ()
    context: Hash = NO_HASH
    vector_digest: Hash = NO_HASH
    held: Annotated[tuple[HeldFrom, ...], many(nested(HeldFrom))] = ()
    survivors: Names = ()
    released_round: U64 = 0
    released_members: Names = ()
    contributed_key: Hash = NO_HASH
    contributed_round: U64 = 0
