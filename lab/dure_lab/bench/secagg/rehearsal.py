"""The protocol's sessions playing rounds without vectors: real messages, real keys, and the time they take one firm.

Every firm's session does its whole work; the first firm's is timed. Vectors come later and elsewhere: the keys and
receipts of a rehearsed round are what the arm `ours` masks and sums with.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import TypeVar

from dure_protocols.identity import Identity
from dure_protocols.job import MAX_RETRY_FIRMS, least_threshold
from dure_protocols.messages import (
    Cohort,
    EscrowedJoin,
    Invitation,
    Join,
    MaskedUpdate,
    Message,
    Release,
    ReleaseRequest,
    Roster,
    VoteRequest,
    encode,
)
from dure_protocols.secagg.disclosure import Disclosures
from dure_protocols.secagg.firm import FirmSession
from dure_protocols.secagg.masks import MaskKeys
from dure_protocols.secagg.server import Attempt, establish_for
from dure_protocols.secagg.terms import Terms

ROUNDS = 3
_EPOCH = 1
_VECTOR_DIGEST = sha256(b"a vector").digest()
T = TypeVar("T")
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, repr=False)
class RehearsedRound:
    """One round without drop-outs: what the server holds, the first firm's mask keys, time (s) and messages' bytes."""

    place: tuple[int, int, int]
    model_hash: bytes
    joins: tuple[Join, ...]
    escrows: tuple[EscrowedJoin, ...]
    receipts: tuple[MaskedUpdate, ...]
    releases: dict[str, Release]
    keys: MaskKeys
    seconds: float
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, repr=False)
class Rehearsal:
    """Several rounds of one consortium. Set-up: an epoch's keys, made once for many rounds."""

    mode: str
    names: tuple[str, ...]
    terms: Terms
    transcript: bytes
    set_up_seconds: float
    set_up_bytes_up: int
    set_up_bytes_down: int
    rounds: tuple[RehearsedRound, ...]

    def attempt(self, rehearsed: RehearsedRound) -> Attempt:
        """The server's side of a round, anew."""
        return Attempt(
            self.terms, self.transcript, rehearsed.place, rehearsed.joins, rehearsed.model_hash, rehearsed.escrows
        )


@cache
def name_of(firm: int) -> str:
    """A firm's name; in the order of the alphabet as of the numbers."""
    return f"firm-{firm:03d}"


def rehearse(firms: int, seed: int) -> Rehearsal:
    """Play an epoch's set-up and ROUNDS rounds: retry mode up to 16 firms, threshold mode above."""
    chance = random.Random(f"{seed}/{firms}")  # noqa: S311  # a rehearsal protects nobody
    names = tuple(map(name_of, range(firms)))
    identities = {name: Identity.from_seed(chance.randbytes(32)) for name in names}
    threshold = None if firms <= MAX_RETRY_FIRMS else least_threshold(firms)
    keys = {name: identity.public_bytes for name, identity in identities.items()}
    terms = Terms(sha256(b"benchmark").digest(), keys, 2, threshold=threshold)
    sessions = {
        name: FirmSession(name, identity, terms, chance.randbytes, Disclosures())
        for name, identity in identities.items()
    }
    company = _Company(sessions)

    roster = Roster(terms.job_digest, _EPOCH, company.answers(lambda session, _: session.advertise(_EPOCH)))
    company.receives(roster)
    sent = company.answers(lambda session, _: session.encapsulate(roster))
    requests = {name: establish_for(name, terms.job_digest, _EPOCH, sent) for name in names}
    company.receives(requests[company.first])
    transcript = company.do(lambda session, name: session.establish(requests[name]))[0]
    return Rehearsal(
        mode="retry" if threshold is None else "threshold",
        names=names,
        terms=terms,
        transcript=transcript,
        set_up_seconds=company.seconds,
        set_up_bytes_up=company.bytes_up,
        set_up_bytes_down=company.bytes_down,
        rounds=tuple(_round(terms, transcript, sessions, number) for number in range(1, ROUNDS + 1)),
    )


class _Company:
    """All sessions taking steps; the first firm's time and traffic are counted."""

    def __init__(self, sessions: dict[str, FirmSession]) -> None:
        self._sessions = sessions
        self.first = next(iter(sessions))
        self.seconds, self.bytes_up, self.bytes_down = 0.0, 0, 0

    def do(self, step: Callable[[FirmSession, str], T]) -> list[T]:
        """Let every session take a step."""
        begun = time.perf_counter()
        own = step(self._sessions[self.first], self.first)
        self.seconds += time.perf_counter() - begun
        return [own, *(step(self._sessions[name], name) for name in self._sessions if name != self.first)]

    def answers(self, step: Callable[[FirmSession, str], M]) -> tuple[M, ...]:
        """The same for a step that ends in a message to the server."""
        messages = self.do(step)
        self.bytes_up += len(encode(messages[0]))
        return tuple(messages)

    def receives(self, message: Message) -> None:
        """Count a message to the first firm."""
        self.bytes_down += len(encode(message))


def _round(terms: Terms, transcript: bytes, sessions: dict[str, FirmSession], number: int) -> RehearsedRound:
    company, place = _Company(sessions), (_EPOCH, number, 1)
    model_hash = sha256(f"model {number}".encode()).digest()

    invitation = Invitation(terms.job_digest, *place, ())
    company.receives(invitation)
    replies = company.answers(lambda session, _: session.join(invitation, model_hash, model_hash))
    joins = tuple(reply.join if isinstance(reply, EscrowedJoin) else reply for reply in replies)
    escrows = tuple(reply for reply in replies if isinstance(reply, EscrowedJoin))
    server = Attempt(terms, transcript, place, joins, model_hash, escrows)
    cohorts = {name: Cohort(terms.job_digest, *place, joins, server.deliveries_for(name)) for name in sessions}
    company.receives(cohorts[company.first])
    keys = company.do(lambda session, name: session.accept_cohort(cohorts[name]))[0]
    receipts = company.answers(lambda session, _: session.sign_upload(_VECTOR_DIGEST))
    if terms.threshold is None:
        request = ReleaseRequest(terms.job_digest, *place, receipts, ())
    else:
        survivors = VoteRequest(terms.job_digest, *place, receipts)
        company.receives(survivors)
        votes = company.answers(lambda session, _: session.vote(survivors))
        request = ReleaseRequest(terms.job_digest, *place, (), votes)
    company.receives(request)
    releases = company.answers(lambda session, _: session.release(request))
    return RehearsedRound(
        place=place,
        model_hash=model_hash,
        joins=joins,
        escrows=escrows,
        receipts=receipts,
        releases={release.firm: release for release in releases},
        keys=keys,
        seconds=company.seconds,
        bytes_up=company.bytes_up,
        bytes_down=company.bytes_down,
    )
