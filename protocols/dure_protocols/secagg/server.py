"""The server's side: it relays, adds and removes self masks. It holds no secret (docs/protocol.md, section 6).

What it checks protects the firms' work, not their secrets: a firm that sends the wrong thing is named, and does not
spoil the sum for the others. Secrecy never depends on this side.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from dure_protocols.errors import MessageError, RefusalCode, RefusedError
from dure_protocols.messages import Join, MaskedUpdate, Release
from dure_protocols.secagg.codec import VectorLayout, Words
from dure_protocols.secagg.firm import self_mask_key
from dure_protocols.secagg.keystream import apply_keystreams
from dure_protocols.secagg.terms import Terms, mask_context, numbers


class Attempt:
    """One attempt of one round at the server: joins in, masked vectors added one by one, then unmasked.

    `model_hash` is what the server itself computed; `transcript` what the firms established.
    """

    def __init__(
        self, terms: Terms, transcript: bytes, place: tuple[int, int, int], joins: Sequence[Join], model_hash: bytes
    ) -> None:
        self._terms, self.place = terms, place
        self.members = tuple(sorted(join.firm for join in joins))
        self.context = mask_context(terms, transcript, *place, self.members, model_hash)
        self._sum: Words | None = None
        self._added: set[str] = set()

    def add(self, receipt: MaskedUpdate, vector: Words, layout: VectorLayout) -> None:
        """Add one member's masked vector. The caller MUST have checked that its bytes hash to the receipt's digest.

        Raises RefusedError, naming the firm, when the receipt is not this attempt's or the vector has another size.
        """
        check_receipt(self._terms, self.context, receipt)
        if receipt.firm not in self.members or receipt.firm in self._added:
            raise RefusedError(RefusalCode.REPLAY, f"{receipt.firm} is no member, or has uploaded already")
        if vector.shape != (layout.words,):
            raise RefusedError(
                RefusalCode.MALFORMED, f"{receipt.firm} sent {vector.size} words where {layout.words} were expected"
            )
        if self._sum is None:
            self._sum = np.array(vector)
        else:
            np.add(self._sum, vector, out=self._sum)
        self._added.add(receipt.firm)

    @property
    def missing(self) -> tuple[str, ...]:
        """Members that have not uploaded yet."""
        return tuple(name for name in self.members if name not in self._added)

    def unmask(self, releases: Mapping[str, Release]) -> Words:
        """Remove every self mask. Returns the exact integer sum in ring words; call it once.

        Raises RefusedError for a release of another attempt and MessageError if one is missing.
        """
        if self._sum is None or self.missing or set(releases) != set(self.members):
            raise MessageError("every member must have uploaded and released before the sum can be unmasked")
        for firm, release in releases.items():
            check_release(self._terms, self.context, firm, release)
        keys = [self_mask_key(release.seed, self.context) for release in releases.values()]
        apply_keystreams(self._sum, subtract=keys)
        total, self._sum = self._sum, None
        return total


def check_join(terms: Terms, transcript: bytes, place: tuple[int, int, int], join: Join) -> None:
    """Check that a Join is signed for this attempt. Raises RefusedError naming the firm."""
    if (join.epoch, join.round, join.attempt) != place:
        raise RefusedError(RefusalCode.REPLAY, f"{join.firm} joined another attempt than {place}")
    terms.check(
        join.firm, join.signature, "dure join", transcript, numbers(*place), join.firm.encode(), join.model_hash
    )


def check_receipt(terms: Terms, context: bytes, receipt: MaskedUpdate) -> None:
    """Check a masked update's receipt. Raises RefusedError naming the firm."""
    if receipt.context != context:
        raise RefusedError(RefusalCode.REPLAY, f"{receipt.firm} masked for another attempt, member set or model")
    parts = context, receipt.firm.encode(), receipt.vector_digest
    terms.check(receipt.firm, receipt.signature, "dure masked update", *parts)


def check_release(terms: Terms, context: bytes, firm: str, release: Release) -> None:
    """Check a release. Raises RefusedError naming the firm."""
    if release.firm != firm or release.context != context:
        raise RefusedError(RefusalCode.REPLAY, f"{firm} released for another attempt")
    terms.check(firm, release.signature, "dure release", context, firm.encode(), release.seed)
