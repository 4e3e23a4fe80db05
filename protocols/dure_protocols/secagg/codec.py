"""From float32 updates to ring elements and back (docs/protocol.md, section 5).

The ring is Z_2^64, word by word. A vector has three parts:

    packed words   d parameters in F fields a word, each field wide enough that a sum over all firms cannot overflow it
    count word     the firm's sample count under the public cap, as an integer
    exact words    metrics or statistics as signed fixed-point numbers, one a word

A parameter's field holds floor((clip(w·u, ±c) + c) · s + r) with s = (2^bits - 2) / 2c, where w is the firm's weight
in [0, 1] and r is uniform in [0, 1): rounding is stochastic and so unbiased. Sums of such integers are exact, and the
sum of the weights travels in the same vector: the weighted mean needs no one to know a single count.
"""

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dure_protocols.errors import DureError, MessageError, MisuseError

if sys.byteorder != "little":  # the views below read words as the narrow fields they hold
    raise ImportError("Dure's codec runs on little-endian machines only")

Words = NDArray[np.uint64]

WORD_BYTES = 8
FRACTION_BITS = 24
_BLOCK = 1 << 16
_NARROW: dict[int, type[np.unsignedinteger]] = {8: np.uint8, 16: np.uint16, 32: np.uint32}


class OutOfRangeError(DureError):
    """A count or metric is too large for the sum to hold it exactly."""


@dataclass(frozen=True)
class VectorLayout:
    """Where everything lies in a vector. Equal for all firms of a round.

    parameters: d, float32 parameters (0 in the statistics round); bits: a field's bits before headroom;
    max_members: the most firms that may enter the sum; exact: number of fixed-point words.
    """

    parameters: int
    bits: int
    max_members: int
    exact: int = 0

    def __post_init__(self) -> None:
        if self.parameters < 0 or self.exact < 0 or self.max_members < 1 or not 2 <= self.bits <= 32:
            raise MisuseError(f"no such vector layout: {self}")

    @property
    def fields(self) -> int:
        """Parameters in one 64-bit word, F."""
        return 64 // (self.bits + (self.max_members - 1).bit_length())

    @property
    def field_bits(self) -> int:
        """Bits from one field to the next; what a whole number of fields leaves over widens them."""
        return 64 // self.fields

    @property
    def packed_words(self) -> int:
        """Words that hold the parameters."""
        return -(-self.parameters // self.fields)

    @property
    def words(self) -> int:
        """Words of the whole vector: packed, count, exact."""
        return self.packed_words + 1 + self.exact

    @property
    def size_bytes(self) -> int:
        """Bytes of the vector on the wire."""
        return self.words * WORD_BYTES


def add_update(
    words: Words,
    layout: VectorLayout,
    update: NDArray[np.float32],
    weight: float,
    clip: float,
    rounding: np.random.Generator,
) -> None:
    """Quantise `weight * update` and add it to the packed part of `words`, in place and block by block.

    words: (layout.words,) uint64, holding the masks or zeros; update: (d,) float32; weight in [0, 1]; clip: the bound c
    on each coordinate of the product. `rounding` need not be secret. Raises MisuseError on wrong shapes and
    OutOfRangeError if the update holds NaN or infinity.
    """
    if update.shape != (layout.parameters,) or update.dtype != np.float32 or words.shape != (layout.words,):
        raise MisuseError(f"update {update.dtype}{update.shape} does not fit {layout}")
    if not 0.0 <= weight <= 1.0:
        raise MisuseError(f"a weight of {weight} is outside [0, 1]")
    scale, bound = np.float32(_scale(layout.bits, clip)), np.float32(clip)
    step = _BLOCK // layout.fields * layout.fields
    for start in range(0, layout.parameters, step):
        values = update[start : start + step] * np.float32(weight)
        if not np.isfinite(values).all():
            raise OutOfRangeError("the update holds NaN or infinity: training diverged; lower the learning rate")
        np.clip(values, -bound, bound, out=values)
        values += bound
        values *= scale
        values += rounding.random(values.size, np.float32)
        # float32 rounding may lift the largest value by one unit; the field has room for exactly that unit
        _add_fields(words, layout, start, values.astype(np.uint32))


def add_exact(words: Words, layout: VectorLayout, count: int, exact: NDArray[np.float64]) -> None:
    """Add the sample count and the fixed-point words to `words`, in place. exact: (layout.exact,) float64."""
    if exact.shape != (layout.exact,):
        raise MisuseError(f"{exact.shape} exact values do not fit {layout}")
    limit = 2.0 ** (63 - FRACTION_BITS) / layout.max_members
    if not 0 <= count < 2**63 // layout.max_members or not np.all(np.abs(exact) < limit):
        raise OutOfRangeError(f"a count or metric exceeds what an exact sum holds (±{limit:.3g})")
    tail = words[layout.packed_words :]
    tail[0] += np.uint64(count)
    tail[1:] += np.round(exact * 2.0**FRACTION_BITS).astype(np.int64).view(np.uint64)


@dataclass(frozen=True)
class DecodedSum:
    """What a published sum says. mean: (d,) float32, the weighted mean update; exact: (e,) float64 sums."""

    mean: NDArray[np.float32]
    count: int
    exact: NDArray[np.float64]


def decode_sum(words: Words, layout: VectorLayout, members: int, clip: float, count_cap: int) -> DecodedSum:
    """Turn the unmasked sum of `members` vectors into the weighted mean, the count and the exact sums.

    Element-wise float32 without reductions: every firm computes the same bits on every machine. Raises MessageError
    when the words cannot be such a sum.
    """
    if words.shape != (layout.words,) or words.dtype != np.uint64:
        raise MessageError(f"a sum of {layout.words} words was expected, {words.shape} {words.dtype} came")
    count = int(words[layout.packed_words])
    if not 0 < count <= members * count_cap:
        raise MessageError(f"the sum's count of {count} is not between 1 and {members} firms' cap of {count_cap} each")
    total_weight = count / count_cap
    factor = np.float32(1.0 / (_scale(layout.bits, clip) * total_weight))
    offset = np.float32(-members * clip / total_weight)
    mean = np.empty(layout.parameters, np.float32)
    step = _BLOCK // layout.fields * layout.fields
    for start in range(0, layout.parameters, step):
        block = mean[start : start + step]
        np.multiply(_fields(words, layout, start, block.size), factor, out=block, casting="unsafe")
        block += offset
    exact = words[layout.packed_words + 1 :].view(np.int64).astype(np.float64) / 2.0**FRACTION_BITS
    return DecodedSum(mean, count, exact)


def _scale(bits: int, clip: float) -> float:
    return (2.0**bits - 2.0) / (2.0 * clip)


def _add_fields(words: Words, layout: VectorLayout, start: int, values: NDArray[np.uint32]) -> None:
    """Add integers to the fields from parameter `start` (a multiple of F) on, modulo 2^64 word by word.

    Whole words are added, never single fields: `words` may hold masks, whose carries run from field to field.
    """
    first = start // layout.fields
    block = words[first : first + -(-values.size // layout.fields)]
    if narrow := _NARROW.get(layout.field_bits):  # fields are aligned: the words are an array of them
        packed = np.zeros(block.size * layout.fields, narrow)
        packed[: values.size] = values
        block += packed.view(np.uint64)
        return
    for field in range(layout.fields):
        part = values[field :: layout.fields].astype(np.uint64)
        block[: part.size] += part << np.uint64(field * layout.field_bits)


def _fields(words: Words, layout: VectorLayout, start: int, size: int) -> NDArray[np.unsignedinteger]:
    """The integers in `size` fields from parameter `start` (a multiple of F) on."""
    if narrow := _NARROW.get(layout.field_bits):
        return words[: layout.packed_words].view(narrow)[start : start + size]
    values = np.empty(size, np.uint64)
    first, mask = start // layout.fields, np.uint64(2**layout.field_bits - 1)
    for field in range(layout.fields):
        part = values[field :: layout.fields]
        np.copyto(part, (words[first : first + part.size] >> np.uint64(field * layout.field_bits)) & mask)
    return values
