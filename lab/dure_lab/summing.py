"""What firms' updates come to when they are added: by the protocol's arithmetic, or without any loss for comparison.

The masks are left out, because they cancel: a published sum is the same integers with and without them, as the
protocol's tests show. Tags are summed, but nobody checks them. Everything else is the protocol's own: weights under the
cap, the clip of the round, stochastic rounding to integers, exact sums over all firms, the residuals that firms keep,
and the rule for the next clip.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dure_models.training import RoundResult
from dure_protocols.clip import fill, next_clip
from dure_protocols.job import CodecTerms
from dure_protocols.secagg import codec
from dure_protocols.secagg.tags import OwnTag

Parameters = NDArray[np.float32]

_NO_SECRET = bytes(32)


class Summing(Protocol):
    """Turns the updates of a round into their weighted mean; may keep state from round to round."""

    def mean(self, results: Sequence[RoundResult]) -> Parameters:
        """The mean update of a round, (d,) float32; one result a firm, always in the same order."""


class FloatSumming:
    """Plain weighted means of float32 updates: nothing is clipped or rounded. What the codec is measured against."""

    def __init__(self, count_cap: int) -> None:
        self._count_cap = count_cap

    def mean(self, results: Sequence[RoundResult]) -> Parameters:
        """See `Summing`."""
        weights = np.array([min(result.count, self._count_cap) for result in results], np.float64)
        updates = np.stack([result.update for result in results])
        return np.asarray(weights @ updates / weights.sum(), np.float32)


class CodecSumming:
    """The protocol's arithmetic on the words that would travel."""

    def __init__(self, terms: CodecTerms, num_firms: int, num_parameters: int, rounding: np.random.Generator) -> None:
        """terms: the job's codec; rounding: draws the stochastic rounding."""
        exact = 1 if terms.clip_rule == "rms" else 0
        self._layout = codec.VectorLayout(num_parameters, terms.bits, num_firms, exact)
        self._terms, self._rounding = terms, rounding
        self._residuals = (
            [np.zeros(num_parameters, np.float32) for _ in range(num_firms)] if terms.error_feedback else None
        )
        self.clip = terms.clip

    def mean(self, results: Sequence[RoundResult]) -> Parameters:
        """See `Summing`. Moves the residuals and the clip on."""
        total = np.zeros(self._layout.words, np.uint64)
        for at, result in enumerate(results):
            self._add(total, at, result)
        decoded = codec.decode_sum(total, self._layout, self.clip, self._terms.count_cap)
        if self._terms.clip_rule == "rms":
            self.clip = next_clip(self._terms, self.clip, float(decoded.exact[0]), decoded.members)
        return decoded.mean

    def _add(self, total: codec.Words, at: int, result: RoundResult) -> None:
        """Add what firm `at` puts under its masks. Replaces its residual by what is lost now."""
        count = min(result.count, self._terms.count_cap)
        weight = count / self._terms.count_cap
        residual = self._residuals[at] if self._residuals else None
        exact = [fill(result.update, weight, self.clip, residual)] if self._layout.exact else []
        codec.add_contribution(
            total,
            self._layout,
            codec.Contribution(result.update, weight, count, np.array(exact)),
            clip=self.clip,
            rounding=int(self._rounding.integers(2**64, dtype=np.uint64)),
            tag=OwnTag(_NO_SECRET, "", _NO_SECRET),
            residual=residual,
        )
