"""One function that runs all parties of the protocol, in order: the page to read first, and the oracle of the tests."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from dure_protocols.errors import MisuseError
from dure_protocols.identity import Identity
from dure_protocols.messages import Cohort, Establish, Invitation, ReleaseRequest, Roster
from dure_protocols.secagg.codec import VectorLayout, Words, add_exact, add_update, decode_sum
from dure_protocols.secagg.disclosure import Disclosures
from dure_protocols.secagg.firm import FirmSession, Randomness
from dure_protocols.secagg.server import Attempt
from dure_protocols.secagg.terms import Terms
from dure_protocols.wire import digest

_EPOCH, _ROUND = 1, 1
_NO_METRICS: NDArray[np.float64] = np.zeros(0)


@dataclass(frozen=True)
class SecureAggregationResult:
    """What everyone knows afterwards. mean: (d,) float32; integer_sum: the ring words; count: summed sample counts."""

    mean: NDArray[np.float32]
    integer_sum: Words
    count: int
    members: tuple[str, ...]


def run_secure_aggregation(
    updates: Mapping[str, NDArray[np.float32]],
    counts: Mapping[str, int] | None = None,
    *,
    randomness: Randomness,
    bits: int = 12,
    clip: float = 1.0,
    minimum_cohort: int = 2,
    dropouts: Collection[str] = (),
) -> SecureAggregationResult:
    """Run one round of retry mode over every firm's update and return what the server publishes.

    updates: firm to (d,) float32, all of one size; counts: firm to sample count, 1 each unless told otherwise;
    dropouts: firms that vanish after joining and before uploading, so that the others start a fresh attempt.
    `randomness(n)` gives n bytes. Raises RefusedError when fewer than the minimum cohort are left.
    """
    counts = counts or dict.fromkeys(updates, 1)
    cap = max(counts.values())
    (size,) = {update.size for update in updates.values()}
    layout = VectorLayout(size, bits, len(updates))

    identities = {firm: Identity.from_seed(randomness(32)) for firm in sorted(updates)}
    terms = Terms(digest("job"), {firm: key.public_bytes for firm, key in identities.items()}, minimum_cohort)
    firms = {firm: FirmSession(firm, key, terms, randomness, Disclosures()) for firm, key in identities.items()}

    roster = Roster(terms.job_digest, _EPOCH, tuple(firm.advertise(_EPOCH) for firm in firms.values()))
    ciphertexts = tuple(firm.encapsulate(roster) for firm in firms.values())
    establish = Establish(terms.job_digest, _EPOCH, ciphertexts)
    (transcript,) = {firm.establish(establish) for firm in firms.values()}

    def masked(firm: str, cohort: Cohort) -> Words:
        vector = firms[firm].accept_cohort(cohort).mask(layout)
        rounding = np.random.Generator(np.random.PCG64(int.from_bytes(randomness(16))))
        add_update(vector, layout, updates[firm], counts[firm] / cap, clip, rounding)
        add_exact(vector, layout, counts[firm], _NO_METRICS)
        return vector

    def attempt(number: int, present: Sequence[str], gone: Collection[str]) -> Words | None:
        place = (_EPOCH, _ROUND, number)
        model_hash = digest("model")
        joins = tuple(
            firms[firm].join(Invitation(terms.job_digest, *place, ()), model_hash, model_hash) for firm in present
        )
        server = Attempt(terms, transcript, place, joins, model_hash)
        cohort, receipts = Cohort(terms.job_digest, *place, joins), []
        for firm in present:
            if firm not in gone:
                vector = masked(firm, cohort)
                receipts.append(firms[firm].sign_upload(sha256(vector.data).digest()))
                server.add(receipts[-1], vector, layout)
        if server.missing:
            return None
        request = ReleaseRequest(terms.job_digest, *place, tuple(receipts))
        return server.unmask({firm: firms[firm].release(request) for firm in present})

    survivors = [firm for firm in firms if firm not in dropouts]
    total = attempt(1, list(firms), dropouts) if dropouts else None
    if total is None:
        total = attempt(2, survivors, ())
    if total is None:
        raise MisuseError("an attempt without drop-outs did not complete")
    decoded = decode_sum(total, layout, len(survivors), clip, cap)
    return SecureAggregationResult(decoded.mean, total, decoded.count, tuple(survivors))
