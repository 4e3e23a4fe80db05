"""From float32 updates to ring elements and back (docs/protocol.md, section 5).

The ring is Z_2^64, word by word; `layout` says where everything lies. A field holds a clipped parameter of weight x
update, rounded stochastically to one of 2^bits - 1 steps between -c and c (`rows` has the formulae), and is wide
enough that a sum over all members cannot overflow it. Sums of such integers are exact, and the sum of the weights
travels in the same vector: the weighted mean needs no one to know a single count. Tag words let the firms check what
is published (`tags`).

Fixed-point words hold a number x as round(x · 2^24), halves to even.

With error feedback, what clipping and rounding lose of one update is kept by the firm and added to its next (Seide et
al. 2014; Karimireddy et al. 2019): the losses of all rounds then add up to the last one alone.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dure_protocols.errors import DureError, MessageError, MisuseError
from dure_protocols.secagg import rows, tags
from dure_protocols.secagg.keystream import KEY_BYTES
from dure_protocols.secagg.layout import TAG_WORDS, WORD_BYTES, VectorLayout, Words

__all__ = [
    "WORD_BYTES",
    "Contribution",
    "DecodedSum",
    "OutOfRangeError",
    "VectorLayout",
    "Words",
    "add_contribution",
    "carries_tag",
    "decode_sum",
    "warm_up",
]

FRACTION_BITS = 24
COMPILED_FROM = 1 << 17
"""Parameters from which on a vector is worth compiled arithmetic: a millisecond of numpy."""

_NO_UPDATE = np.zeros(0, np.float32)


class OutOfRangeError(DureError):
    """A count, metric or update is not what a sum can hold exactly."""


@dataclass(frozen=True, eq=False)
class Contribution:
    """What one firm gives in one round.

    update: (d,) float32, None where the layout has no parameters; weight: what the update counts for, in [0, 1];
    count: the sample count under the public cap; exact: (e,) float64, in the layout's order.
    """

    update: NDArray[np.float32] | None
    weight: float
    count: int
    exact: NDArray[np.float64]


def add_contribution(
    words: Words,
    layout: VectorLayout,
    contribution: Contribution,
    *,
    clip: float,
    rounding: int,
    tag: tags.OwnTag,
    residual: NDArray[np.float32] | None = None,
) -> None:
    """Add a firm's contribution and its tag to `words`, in place, modulo 2^64 and block by block.

    words: (layout.words,) uint64, holding the masks or zeros; clip: the bound c on each coordinate of weight x
    update; rounding: a fresh 64-bit seed for the rounding noise, which need not be secret; tag: the firm's;
    residual: (d,) float32, error feedback: it is added to weight x update and then holds, in place, what clipping and
    rounding lost. Raises MisuseError on wrong shapes. Raises OutOfRangeError for a count or exact value whose sum
    could reach 2^60, before anything is changed, and for NaN or infinity in update or residual, which is found on the
    way: `words` and `residual` are worthless then and must be thrown away.
    """
    update = _checked_update(words, layout, contribution, clip, rounding, residual)
    tail = _tail_values(layout, contribution)
    key = tags.TagKey.of(layout, tag.key)
    quantiser = rows.Quantiser.of(layout, contribution.weight, clip, rounding)
    packed = _arithmetic(layout).add_quantised(words[: layout.packed_words], layout, update, residual, quantiser, key)
    if packed is None:
        raise OutOfRangeError("the update holds NaN or infinity: training diverged; lower the learning rate")
    words[layout.tail] += tail.view(np.uint64)
    whole = (key.tag(packed, tail) + tags.constant_of(tag.key, [tag.firm])) % tags.PRIME
    words[-TAG_WORDS:] += tags.split(whole, tag.blinding)


def carries_tag(words: Words, layout: VectorLayout, tag_key: bytes, members: Collection[str]) -> bool:
    """Whether a published sum is that of the vectors that these firms tagged under `tag_key`, 32 bytes.

    False also for tail values of 2^60 or more and for set bits that belong to no field: no honest sum has them. Raises
    MessageError for a vector of another length.
    """
    _check_sum(words, layout)
    tail = words[layout.tail].view(np.int64)
    if not ((tail > -tags.TAIL_LIMIT) & (tail < tags.TAIL_LIMIT)).all():
        return False
    key = tags.TagKey.of(layout, tag_key)
    packed = _arithmetic(layout).tag_of(words[: layout.packed_words], layout, key)
    if packed is None:
        return False
    expected = key.tag(packed, tail) + tags.constant_of(tag_key, members)
    return expected % tags.PRIME == tags.joined(words[-TAG_WORDS:])


@dataclass(frozen=True, eq=False)
class DecodedSum:
    """What a published sum says.

    mean: (d,) float32, the weighted mean update; count: of all firms' rows, capped; members: how many vectors it holds;
    exact: (e,) float64 sums.
    """

    mean: NDArray[np.float32]
    count: int
    members: int
    exact: NDArray[np.float64]


def decode_sum(words: Words, layout: VectorLayout, clip: float, count_cap: int) -> DecodedSum:
    """Turn an unmasked sum into the weighted mean, the count and the exact sums.

    A field q of the sum of m vectors becomes float32(q - m · M) · float32((c / M) / (count / count_cap)), the factor
    computed in doubles, M as in `rows`: element-wise float32 without reductions, so every firm computes the same bits
    on every machine. Raises MessageError when the words cannot be such a sum.
    """
    _check_sum(words, layout)
    count, members = (int(word) for word in words[layout.tail][:2])
    if not 1 <= members <= layout.max_members:
        raise MessageError(f"the sum is over {members} vectors, where 1 to {layout.max_members} may be")
    if not 0 < count <= members * count_cap:
        raise MessageError(f"the sum's count of {count} is not between 1 and {members} firms' cap of {count_cap} each")
    middle = rows.middle_of(layout)
    factor = np.float32(clip / middle / (count / count_cap))
    mean = np.empty(layout.parameters, np.float32)
    _arithmetic(layout).unpack(words[: layout.packed_words], layout, mean, members * middle, factor)
    exact = words[layout.tail][2:].view(np.int64).astype(np.float64) / 2.0**FRACTION_BITS
    return DecodedSum(mean, count, members, exact)


class _Arithmetic(Protocol):
    """What `rows` and `kernels` both are."""

    def add_quantised(
        self,
        packed: Words,
        layout: VectorLayout,
        update: NDArray[np.float32],
        residual: NDArray[np.float32] | None,
        quantiser: rows.Quantiser,
        key: tags.TagKey,
    ) -> int | None: ...

    def tag_of(self, packed: Words, layout: VectorLayout, key: tags.TagKey) -> int | None: ...

    def unpack(
        self, packed: Words, layout: VectorLayout, mean: NDArray[np.float32], centre: int, factor: np.float32
    ) -> None: ...


def warm_up(layout: VectorLayout) -> None:
    """Compile what a vector of this layout needs, or load it from the cache on disk: up to three seconds, else 0.3 s.

    Called by agents and coordinators when a job begins, in a thread of its own, so that no round waits for it. Does
    nothing where numba is missing or the vector is small.
    """
    arithmetic = _arithmetic(layout)
    if arithmetic is rows:
        return
    small = replace(layout, parameters=layout.row_parameters + 1, exact=0)
    update, words = np.zeros(small.parameters, np.float32), np.zeros(small.words, np.uint64)
    key = bytes(KEY_BYTES)
    for residual in (None, np.zeros_like(update)):
        tag_key, quantiser = tags.TagKey.of(small, key), rows.Quantiser.of(small, 1.0, 1.0, 0)
        arithmetic.add_quantised(words[: small.packed_words], small, update, residual, quantiser, tag_key)
    arithmetic.tag_of(words[: small.packed_words], small, tag_key)
    arithmetic.unpack(words[: small.packed_words], small, update, 0, np.float32(1.0))


def _arithmetic(layout: VectorLayout) -> _Arithmetic:
    """Compiled arithmetic for vectors for which compiling pays, numpy for others. Both give the same bits."""
    if layout.parameters < COMPILED_FROM:
        return rows
    return _kernels() or rows


@cache
def _kernels() -> _Arithmetic | None:
    try:
        from dure_protocols.secagg import kernels  # noqa: PLC0415  # numba takes half a second to import
    except ImportError:
        return None
    return kernels


def _checked_update(
    words: Words,
    layout: VectorLayout,
    contribution: Contribution,
    clip: float,
    rounding: int,
    residual: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    update = _NO_UPDATE if contribution.update is None else contribution.update
    if words.shape != (layout.words,) or words.dtype != np.uint64:
        raise MisuseError(f"a vector {words.dtype}{words.shape} does not fit {layout}")
    for name, values in (("update", update), ("residual", residual)):
        if values is not None and (values.shape != (layout.parameters,) or values.dtype != np.float32):
            raise MisuseError(f"{name} {values.dtype}{values.shape} does not fit {layout}")
    if not 0.0 <= contribution.weight <= 1.0:
        raise MisuseError(f"a weight of {contribution.weight} is outside [0, 1]")
    if not 0.0 < clip < math.inf:
        raise MisuseError(f"a clip is a positive number, not {clip}")
    if not 0 <= rounding < 2**64:
        raise MisuseError("the seed of the rounding is a 64-bit integer")
    return update


def _tail_values(layout: VectorLayout, contribution: Contribution) -> NDArray[np.int64]:
    """The count and the exact values as the integers that are summed, (2 + e,)."""
    count, exact = contribution.count, contribution.exact
    if exact.shape != (layout.exact,):
        raise MisuseError(f"{exact.shape} exact values do not fit {layout}")
    limit = tags.TAIL_LIMIT // layout.max_members
    rounded = np.round(exact * 2.0**FRACTION_BITS)
    if not 0 <= count < limit or not np.all(np.abs(rounded) < limit):
        largest = limit / 2.0**FRACTION_BITS
        raise OutOfRangeError(f"a count reaches {limit:.3g} or a metric ±{largest:.3g}: an exact sum cannot hold them")
    tail = np.empty(layout.tail_words, np.int64)
    tail[0], tail[1], tail[2:] = count, 1, rounded
    return tail


def _check_sum(words: Words, layout: VectorLayout) -> None:
    if words.shape != (layout.words,) or words.dtype != np.uint64:
        raise MessageError(f"a sum of {layout.words} words was expected, {words.shape} {words.dtype} came")
