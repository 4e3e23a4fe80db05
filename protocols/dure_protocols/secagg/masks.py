"""From attempt keys to masks: what hides a vector, and what checks a sum (docs/protocol.md, section 4)."""

from dataclasses import dataclass

import numpy as np

from dure_protocols.secagg.codec import VectorLayout, Words
from dure_protocols.secagg.keystream import apply_keystreams, derive


@dataclass(frozen=True, repr=False)
class MaskKeys:
    """The keys of one attempt, 32 bytes each. Secret, used once. tag: all firms' key of the sum's tag."""

    add: tuple[bytes, ...]
    subtract: tuple[bytes, ...]
    tag: bytes

    def mask(self, layout: VectorLayout) -> Words:
        """A vector of nothing but masks, to which the update is added. Runs while the firm trains."""
        words: Words = np.zeros(layout.words, np.uint64)
        apply_keystreams(words, add=self.add, subtract=self.subtract)
        return words


def self_mask_key(seed: bytes, context: bytes) -> bytes:
    """The keystream key of a self mask, from the seed that a release opens."""
    return derive(seed, "dure self mask", context)


def mask_key(attempt_key: bytes, context: bytes) -> bytes:
    """The keystream key of a pair's mask, from the attempt key q_ij that an escrow may open."""
    return derive(attempt_key, "dure mask", context)


def tag_key(epoch_tag_key: bytes, context: bytes) -> bytes:
    """The key of one attempt's tag. Used for one sum."""
    return derive(epoch_tag_key, "dure tag", context)
