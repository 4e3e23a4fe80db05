"""One function that runs all parties of the protocol, in order: the page to read first, and the oracle of the tests."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dure_protocols.errors import MisuseError
from dure_protocols.identity import Identity
from dure_protocols.job import least_threshold
from dure_protocols.messages import (
    Cohort,
    EscrowedJoin,
    Invitation,
    MaskedUpdate,
    PublishedSum,
    ReleaseRequest,
    Roster,
    Vote,
    VoteRequest,
)
from dure_protocols.secagg.codec import Contribution, VectorLayout, Words, add_contribution, decode_sum
from dure_protocols.secagg.disclosure import Disclosures
from dure_protocols.secagg.firm import FirmSession
from dure_protocols.secagg.handshake import Encapsulate, mlkem_encapsulate
from dure_protocols.secagg.server import Attempt, establish_for
from dure_protocols.secagg.tags import BLINDING_BYTES, OwnTag
from dure_protocols.secagg.terms import Randomness, Terms
from dure_protocols.wire import digest

Step = Literal["join", "update", "vote", "release"]

_EPOCH, _ROUND = 1, 1
_MODEL = digest("model")
_NO_METRICS: NDArray[np.float64] = np.zeros(0)


@dataclass(frozen=True)
class SecureAggregationResult:
    """What everyone knows afterwards.

    mean: (d,) float32; integer_sum: the ring words, tag included; count: summed sample counts; members: whose updates.
    """

    mean: NDArray[np.float32]
    integer_sum: Words
    count: int
    members: tuple[str, ...]


def run_secure_aggregation(
    updates: Mapping[str, NDArray[np.float32]],
    counts: Mapping[str, int] | None = None,
    *,
    mode: Literal["retry", "threshold"] = "retry",
    bits: int = 12,
    clip: float = 1.0,
    threshold: int | None = None,
    dropouts: Mapping[str, Step] | None = None,
    randomness: Randomness = os.urandom,
    minimum_cohort: int = 2,
    encapsulate: Encapsulate = mlkem_encapsulate,
) -> SecureAggregationResult:
    """Run one round over every firm's update and return what the server publishes and every firm has checked.

    updates: firm to (d,) float32, all of one size; counts: firm to sample count, 1 each unless told otherwise;
    threshold: in threshold mode, floor(2n/3) + 1 unless told otherwise; dropouts: firms that vanish for good just
    before they would answer a step. `randomness(n)` gives n bytes, the operating system's unless told otherwise;
    minimum_cohort: the fewest firms in a sum; encapsulate: see `FirmSession`.
    Raises RefusedError when fewer are left than the cohort needs, and MessageError when too few release.
    """
    if mode == "threshold" and threshold is None:
        threshold = least_threshold(len(updates))
    stage = _Stage(updates, counts, dropouts or {}, randomness, bits, clip)
    terms = Terms(stage.job, stage.keys(), minimum_cohort, threshold=threshold if mode == "threshold" else None)
    return stage.run(terms, encapsulate)


class _Stage:
    """The parties of one run. Each method is a step of docs/protocol.md; firms act in the order of the alphabet."""

    def __init__(
        self,
        updates: Mapping[str, NDArray[np.float32]],
        counts: Mapping[str, int] | None,
        dropouts: Mapping[str, Step],
        randomness: Randomness,
        bits: int,
        clip: float,
    ) -> None:
        sizes = {update.size for update in updates.values()}
        if len(sizes) != 1 or not set(dropouts) <= set(updates):
            raise MisuseError(f"updates of one size are summed, {sorted(sizes)} came; or a drop-out is no firm")
        self.job = digest("job")
        self._updates, self._counts = updates, dict(counts or dict.fromkeys(updates, 1))
        self._cap = max(self._counts.values())
        self._dropouts, self._randomness, self._clip = dropouts, randomness, clip
        self._layout = VectorLayout(sizes.pop(), bits, len(updates))
        self._identities = {firm: Identity.from_seed(randomness(32)) for firm in sorted(updates)}
        self._firms: dict[str, FirmSession] = {}

    def keys(self) -> dict[str, bytes]:
        return {firm: identity.public_bytes for firm, identity in self._identities.items()}

    def run(self, terms: Terms, encapsulate: Encapsulate) -> SecureAggregationResult:
        for firm, identity in self._identities.items():
            self._firms[firm] = FirmSession(firm, identity, terms, self._randomness, Disclosures(), encapsulate)
        transcript = self._agree_keys()
        present = [firm for firm in self._firms if self._dropouts.get(firm) != "join"]
        number = 1
        while True:
            attempt, receipts = self._upload(terms, transcript, number, present)
            if terms.threshold is not None or not attempt.missing:
                break
            present, number = list(attempt.survivors), number + 1  # retry mode: a fresh attempt, with fresh masks
        votes = self._vote(number, receipts) if terms.threshold is not None else ()
        request = ReleaseRequest(self.job, _EPOCH, _ROUND, number, () if votes else tuple(receipts.values()), votes)
        remaining = self._here(attempt.survivors, "vote", "release")
        total = attempt.unmask({firm: self._firms[firm].release(request) for firm in remaining})
        return self._published(attempt, total, remaining)

    def _agree_keys(self) -> bytes:
        roster = Roster(self.job, _EPOCH, tuple(firm.advertise(_EPOCH) for firm in self._firms.values()))
        sent = [firm.encapsulate(roster) for firm in self._firms.values()]
        requests = {name: establish_for(name, self.job, _EPOCH, sent) for name in self._firms}
        (transcript,) = {firm.establish(requests[name]) for name, firm in self._firms.items()}
        return transcript

    def _upload(
        self, terms: Terms, transcript: bytes, number: int, present: Sequence[str]
    ) -> tuple[Attempt, dict[str, MaskedUpdate]]:
        place = (_EPOCH, _ROUND, number)
        invitation = Invitation(self.job, *place, ())
        replies = [self._firms[firm].join(invitation, _MODEL, _MODEL) for firm in present]
        joins = tuple(reply.join if isinstance(reply, EscrowedJoin) else reply for reply in replies)
        escrows = [reply for reply in replies if isinstance(reply, EscrowedJoin)]
        attempt = Attempt(terms, transcript, place, joins, _MODEL, escrows)
        receipts: dict[str, MaskedUpdate] = {}
        for firm in self._here(present, "update"):
            cohort = Cohort(self.job, *place, joins, attempt.deliveries_for(firm))
            vector = self._masked(firm, cohort)
            receipts[firm] = self._firms[firm].sign_upload(sha256(vector.data).digest())
            attempt.add(receipts[firm], vector, self._layout)
        return attempt, receipts

    def _masked(self, firm: str, cohort: Cohort) -> Words:
        keys = self._firms[firm].accept_cohort(cohort)
        vector = keys.mask(self._layout)
        count = self._counts[firm]
        contribution = Contribution(self._updates[firm], count / self._cap, count, _NO_METRICS)
        rounding = int.from_bytes(self._randomness(8), "big")
        tag = OwnTag(keys.tag, firm, self._randomness(BLINDING_BYTES))
        add_contribution(vector, self._layout, contribution, clip=self._clip, rounding=rounding, tag=tag)
        return vector

    def _vote(self, number: int, receipts: Mapping[str, MaskedUpdate]) -> tuple[Vote, ...]:
        request = VoteRequest(self.job, _EPOCH, _ROUND, number, tuple(receipts.values()))
        return tuple(self._firms[firm].vote(request) for firm in self._here(receipts, "vote"))

    def _published(self, attempt: Attempt, total: Words, remaining: Sequence[str]) -> SecureAggregationResult:
        published = PublishedSum(*attempt.place, attempt.members, attempt.survivors, sha256(total.data).digest())
        for firm in remaining:
            self._firms[firm].check_sum(published, total, self._layout, _MODEL)
        decoded = decode_sum(total, self._layout, self._clip, self._cap)
        return SecureAggregationResult(decoded.mean, total, decoded.count, attempt.survivors)

    def _here(self, firms: Iterable[str], *steps: Step) -> list[str]:
        """Those of `firms` that have not vanished before any of these steps."""
        return [firm for firm in firms if self._dropouts.get(firm) not in steps]
