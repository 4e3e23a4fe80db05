"""The codec's arithmetic over packed words, in numpy (docs/protocol.md, section 5). `codec` says what it is for.

This is what the compiled `kernels` must equal bit for bit: it reads like the specification, needs numpy alone, and
serves small vectors and machines without numba.

Quantising parameter b of an update, u_b, with the weight w and the residual e_b (0 without error feedback), all float32
and rounded after each operation (no fused multiply-add):

    M     = 2^(bits-1) - 1                                      the field of zero; a step is c / M, c the clip
    f     = 32 - bits                                           bits of rounding noise
    v_b   = w * u_b + e_b
    z_b   = min(max(v_b * float32(M / c 2^f), -M 2^f), M 2^f)   clipped, in units of 2^-f steps
    q_b   = (trunc(z_b) + M 2^f + n_b) >> f                     the field, in 32-bit integers: 0 <= q_b <= 2M
    e_b'  = v_b - float32(q_b - M) * float32(c / M)             the next residual: what clipping and rounding lost

n_b is rounding noise, uniform in [0, 2^f): the expectation of q_b - M is trunc(z_b) / 2^f exactly, and a parameter of
zero has the field M whatever the noise. Noise need not be secret. It is a hash of a 64-bit seed and the parameter's
number, n_b = hash(seed, b) >> bits, in 32-bit arithmetic (the mixer is Wellons' lowbias32):

    hash(seed, b):  h = b ^ (seed mod 2^32)
                    h ^= h >> 16;  h *= 0x7feb352d;  h ^= seed >> 32
                    h ^= h >> 15;  h *= 0x846ca68b;  h ^= h >> 16
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dure_protocols.secagg.layout import ROW_WORDS, VectorLayout, Words
from dure_protocols.secagg.tags import HASHES, TagKey, dot

_BLOCK_ROWS = 32

Integers = NDArray[np.uint32]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Quantiser:
    """The numbers by which one firm quantises one update; the names are those of the formulae above."""

    weight: np.float32
    scale: np.float32
    limit: np.float32
    step: np.float32
    seed: int
    noise_bits: int
    middle: int

    @classmethod
    def of(cls, layout: VectorLayout, weight: float, clip: float, seed: int) -> "Quantiser":
        """The numbers for a weight, a clip and a 64-bit seed of the rounding."""
        noise_bits, middle = 32 - layout.bits, middle_of(layout)
        return cls(
            np.float32(weight),
            np.float32(middle / clip * 2.0**noise_bits),
            np.float32(middle * 2.0**noise_bits),
            np.float32(clip / middle),
            seed,
            noise_bits,
            middle,
        )


def middle_of(layout: VectorLayout) -> int:
    """The field of a parameter of zero, M."""
    return (1 << layout.bits - 1) - 1


def rounding_hash(seed: int, numbers: Integers) -> Integers:
    """The hash of a 64-bit seed and 32-bit numbers."""
    h = numbers ^ np.uint32(seed & 0xFFFFFFFF)
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= np.uint32(seed >> 32)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return h


def add_quantised(
    packed: Words,
    layout: VectorLayout,
    update: Floats,
    residual: Floats | None,
    quantiser: Quantiser,
    key: TagKey,
) -> int | None:
    """Quantise an update, add it to packed words that hold masks or zeros, and return its part of the tag.

    packed: (layout.packed_words,); update, residual: (d,), the residual changed in place. Returns None, with everything
    changed in place worthless, if the update or residual holds NaN or infinity.
    """
    tag, finite = 0, True
    for rows in _blocks(layout):
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found below
            values = _padded(update, rows) * quantiser.weight
            if residual is not None:
                values += _padded(residual, rows)
        finite = finite and bool(np.isfinite(values).all())
        fields = _quantised(values, rows, quantiser)
        words = _packed(fields, layout)
        packed[rows.words] += words.ravel()
        tag += dot(key.rows[rows.rows], _row_sums(words, layout, key))
        if residual is not None:
            sent = (fields - np.uint32(quantiser.middle)).view(np.int32).astype(np.float32) * quantiser.step
            part = residual[rows.parameters]
            part[:] = (values - sent).ravel()[: part.size]
    return tag if finite else None


def tag_of(packed: Words, layout: VectorLayout, key: TagKey) -> int | None:
    """The packed words' part of a published sum's tag. None if bits that no field owns are set."""
    unowned = np.uint64((1 << 64) - (1 << layout.fields * layout.field_bits))
    tag, clean = 0, True
    for rows in _blocks(layout):
        words = packed[rows.words].reshape(rows.count, rows.width)
        clean = clean and not (words & unowned).any()
        tag += dot(key.rows[rows.rows], _row_sums(words, layout, key))
    return tag if clean else None


def unpack(packed: Words, layout: VectorLayout, mean: Floats, centre: int, factor: np.float32) -> None:
    """Fill mean, (d,), with float32(field - centre) * factor; the difference is a 32-bit integer with sign."""
    _unpack(packed, layout, mean, centre, factor, _blocks(layout))


def unpack_rest(packed: Words, layout: VectorLayout, mean: Floats, centre: int, factor: np.float32) -> None:
    """As `unpack`, for the last row alone."""
    *_, last = _blocks(layout)
    only = last if last.count == 1 else _Rows(last.first + last.count - 1, 1, last.width, last.fields)
    _unpack(packed, layout, mean, centre, factor, [only])


def _unpack(
    packed: Words, layout: VectorLayout, mean: Floats, centre: int, factor: np.float32, blocks: Iterable["_Rows"]
) -> None:
    mask = np.uint64(2**layout.field_bits - 1)
    shifts = np.arange(layout.fields, dtype=np.uint64)[:, None] * np.uint64(layout.field_bits)
    for rows in blocks:
        words = packed[rows.words].reshape(rows.count, 1, rows.width)
        fields = ((words >> shifts) & mask).astype(np.uint32)
        part = mean[rows.parameters]
        centred = (fields - np.uint32(centre)).view(np.int32).ravel()[: part.size]
        np.multiply(centred.astype(np.float32), factor, out=part)


@dataclass(frozen=True)
class _Rows:
    """Some rows of equal width, and their slices of packed words and of parameters (which may end before they do)."""

    first: int
    count: int
    width: int
    fields: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.count)

    @property
    def words(self) -> slice:
        start = self.first * ROW_WORDS
        return slice(start, start + self.count * self.width)

    @property
    def parameters(self) -> slice:
        return slice(self.words.start * self.fields, self.words.stop * self.fields)


def _blocks(layout: VectorLayout) -> Iterator[_Rows]:
    whole, rest = divmod(layout.packed_words, ROW_WORDS)
    for first in range(0, whole, _BLOCK_ROWS):
        yield _Rows(first, min(_BLOCK_ROWS, whole - first), ROW_WORDS, layout.fields)
    if rest:
        yield _Rows(whole, 1, rest, layout.fields)


def _padded(values: Floats, rows: _Rows) -> Floats:
    """The parameters of some rows as (rows, fields, words), zeros after the last."""
    part = values[rows.parameters]
    size = rows.count * rows.fields * rows.width
    if part.size < size:
        part = np.concatenate([part, np.zeros(size - part.size, np.float32)])
    return part.reshape(rows.count, rows.fields, rows.width)


def _quantised(values: Floats, rows: _Rows, quantiser: Quantiser) -> Integers:
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is clipped; NaN is refused by the caller
        steps = np.clip(values * quantiser.scale, -quantiser.limit, quantiser.limit).astype(np.int32)
    fields: Integers = steps.view(np.uint32)
    numbers = np.arange(rows.parameters.start, rows.parameters.stop, dtype=np.uint32).reshape(fields.shape)
    fields += rounding_hash(quantiser.seed, numbers) >> np.uint32(32 - quantiser.noise_bits)
    fields += np.uint32(quantiser.middle << quantiser.noise_bits)
    fields >>= np.uint32(quantiser.noise_bits)
    return fields


def _packed(fields: Integers, layout: VectorLayout) -> Words:
    words = np.zeros((fields.shape[0], fields.shape[2]), np.uint64)
    for field in range(layout.fields):
        words |= fields[:, field].astype(np.uint64) << np.uint64(field * layout.field_bits)
    return words


def _row_sums(words: Words, layout: VectorLayout, key: TagKey) -> Words:
    """The three keyed sums over the units of each row, (rows, 3); none reaches 2^64 (`tags`)."""
    sums = np.zeros((len(words), HASHES), np.uint64)
    unit_bits = layout.unit_fields * layout.field_bits
    for unit in range(layout.units):
        fields = min(layout.unit_fields, layout.fields - unit * layout.unit_fields)
        numbers = (words >> np.uint64(unit * unit_bits)) & np.uint64(2 ** (fields * layout.field_bits) - 1)
        for hash_ in range(HASHES):
            sums[:, hash_] += (numbers * key.units[unit + hash_, : words.shape[1]]).sum(axis=1, dtype=np.uint64)
    return sums
