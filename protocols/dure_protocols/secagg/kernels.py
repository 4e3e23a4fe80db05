"""The arithmetic of `rows`, compiled: the same functions, the same bits, one pass over memory.

A round costs a firm little more than copying its update once. What makes it so:

- a row's parameters, fields and keys stay in the first-level cache from the first read to the last addition;
- the loops that quantise are 32 bits wide throughout, so that a vector register holds as many parameters as it can
  (numba widens unsigned arithmetic to 64 bits; the small functions below do not);
- the number of fields, their bits and the bits of noise are constants of the machine code, one version for each.

Floats are added and multiplied in the order written, without fused operations: every machine computes the same bits.
Machine code is kept in numba's cache on disk where a directory can be written; `codec.warm_up` compiles ahead of a
round.
Only this module imports numba; `codec` imports it late and does without where it is missing.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import float32, int32, int64, types, uint32, uint64
from numba.extending import intrinsic

from dure_protocols.secagg import rows
from dure_protocols.secagg.layout import ROW_WORDS, VectorLayout, Words
from dure_protocols.secagg.rows import Floats, Quantiser
from dure_protocols.secagg.tags import PRIME, TagKey

_Function = TypeVar("_Function", bound=Callable[..., object])
_INFINITY = 0x7F800000  # as bits; NaN lies above
_NO_RESIDUAL = np.zeros(0, np.float32)


def _compile(signature: Any) -> Callable[[_Function], _Function]:
    """Compile when called the first time in a process, or load from the cache on disk."""

    def compiled(function: _Function) -> _Function:
        try:
            return cast(_Function, numba.njit(signature, nogil=True, error_model="numpy", cache=True)(function))
        except RuntimeError:  # no directory for the cache can be written
            return cast(_Function, numba.njit(signature, nogil=True, error_model="numpy")(function))

    return compiled


def _inline(function: _Function) -> _Function:
    return cast(_Function, numba.njit(inline="always")(function))


def _narrow(operation: str) -> Callable[[int, int], int]:
    """An operation on two 32-bit integers that stays 32 bits wide."""

    def build(_context: object, _one: object, _other: object) -> object:
        def generate(_target: object, builder: object, _signature: object, arguments: tuple[object, object]) -> object:
            return getattr(builder, operation)(*arguments)

        return types.uint32(types.uint32, types.uint32), generate

    return cast("Callable[[int, int], int]", intrinsic(build))


_add, _sub, _mul, _or, _and, _xor = (_narrow(name) for name in ("add", "sub", "mul", "or_", "and_", "xor"))
_left, _right = _narrow("shl"), _narrow("lshr")


@intrinsic
def _bits(_context: object, _value: object) -> object:
    """The bits of a float32 as an integer."""

    def generate(context: Any, builder: Any, _signature: object, arguments: tuple[object]) -> object:
        return builder.bitcast(arguments[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


_FLOATS = types.Array(types.float32, 1, "C")
_FLOATS_READ = types.Array(types.float32, 1, "C", readonly=True)
_INTEGERS = types.Array(types.uint32, 1, "C")
_KEYS = types.Array(types.uint32, 2, "C", readonly=True)
_WORDS = types.Array(types.uint64, 1, "C")
_WORDS_READ = types.Array(types.uint64, 1, "C", readonly=True)
_ROW_KEYS = types.Array(types.uint64, 2, "C", readonly=True)


@_inline
def _noise(number, low, high):
    h = _xor(number, low)
    h = _mul(_xor(h, _right(h, uint32(16))), uint32(0x7FEB352D))
    h = _xor(h, high)
    h = _mul(_xor(h, _right(h, uint32(15))), uint32(0x846CA68B))
    return _xor(h, _right(h, uint32(16)))


@_inline
def _clipped(steps, limit):
    steps = steps if steps > -limit else -limit  # NaN becomes -limit: to convert it to an integer would be undefined
    return steps if steps < limit else limit


@_inline
def _quantise_field(
    update, residual, feedback, unit, fresh, shift, number, weight, scale, limit, step, bits, low, high
):
    """Quantise the parameters of one field of a row's words into `unit`. Returns the bits of the largest |value|."""
    largest = uint32(0)
    noise_bits = _sub(uint32(32), bits)
    middle = _sub(_left(uint32(1), _sub(bits, uint32(1))), uint32(1))
    lifted = _left(middle, noise_bits)
    for w in range(update.size):
        value = update[w] * weight
        if feedback:
            value += residual[w]
        size = _and(_bits(value), uint32(0x7FFFFFFF))
        largest = size if size > largest else largest
        field = _add(uint32(int32(_clipped(value * scale, limit))), lifted)
        field = _right(_add(field, _right(_noise(_add(number, uint32(w)), low, high), bits)), noise_bits)
        if feedback:
            residual[w] = value - float32(int32(_sub(field, middle))) * step
        unit[w] = _left(field, shift) if fresh else _or(unit[w], _left(field, shift))
    return largest


@_inline
def _times(one, other):
    """A product modulo p, below 2^63. one: up to 2^61; other: any 64 bits. `tags.dot` explains it."""
    other = (other & uint64(PRIME)) + (other >> uint64(61))
    a1, a0 = one >> uint64(32), one & uint64(0xFFFFFFFF)
    b1, b0 = other >> uint64(32), other & uint64(0xFFFFFFFF)
    middle, lowest = a1 * b0 + a0 * b1, a0 * b0
    product = uint64(8) * a1 * b1 + (middle >> uint64(29)) + ((middle & uint64(0x1FFFFFFF)) << uint64(32))
    return product + (lowest & uint64(PRIME)) + (lowest >> uint64(61))


@_inline
def _tagged(tag, row_keys, s0, s1, s2):
    for key, row_sum in ((row_keys[0], s0), (row_keys[1], s1), (row_keys[2], s2)):
        tag += _times(key, row_sum)
        tag = (tag & uint64(PRIME)) + (tag >> uint64(61))
    return tag


@lru_cache
def _quantising(fields: int, bits: int, feedback: bool, tagged: bool):
    """The kernel of `add_quantised`: whole rows of `width` words, `first` the number of their first parameter."""
    field_bits = 64 // fields
    unit_fields = 32 // field_bits
    units = -(-fields // unit_fields)

    def kernel(update, residual, packed, first, width, weight, scale, limit, step, low, high, keys, row_keys, unit):
        tag, largest = uint64(0), uint32(0)
        for row in range(packed.size // width):
            words = packed[row * width : (row + 1) * width]
            s0, s1, s2 = uint64(0), uint64(0), uint64(0)
            for g in range(units):
                for k in range(min(unit_fields, fields - g * unit_fields)):
                    start = (row * fields + g * unit_fields + k) * width
                    values, kept = update[start : start + width], residual[start : start + width]
                    shift, number = uint32(k * field_bits), uint32(first + start)
                    top = _quantise_field(
                        values,
                        kept,
                        feedback,
                        unit,
                        k == 0,
                        shift,
                        number,
                        weight,
                        scale,
                        limit,
                        step,
                        uint32(bits),
                        low,
                        high,
                    )
                    largest = top if top > largest else largest
                shift = uint64(g * unit_fields * field_bits)
                for w in range(width):
                    number = uint64(unit[w])
                    words[w] += number << shift
                    if tagged:
                        s0 += number * uint64(keys[g, w])
                        s1 += number * uint64(keys[g + 1, w])
                        s2 += number * uint64(keys[g + 2, w])
            if tagged:
                tag = _tagged(tag, row_keys[row], s0, s1, s2)
        return tag, largest

    numbers = (float32, float32, float32, float32, uint32, uint32)
    signature = types.Tuple((uint64, uint32))(
        _FLOATS_READ, _FLOATS, _WORDS, int64, int64, *numbers, _KEYS, _ROW_KEYS, _INTEGERS
    )
    return _compile(signature)(kernel)


@lru_cache
def _tagging(fields: int):
    """The kernel of `tag_of`: the tag of whole rows, and all bits that no field owns."""
    field_bits = 64 // fields
    unit_fields = 32 // field_bits
    units = -(-fields // unit_fields)
    unit_bits = unit_fields * field_bits
    owned = fields * field_bits

    def kernel(packed, width, keys, row_keys):
        tag, stray = uint64(0), uint64(0)
        for row in range(packed.size // width):
            words = packed[row * width : (row + 1) * width]
            s0, s1, s2 = uint64(0), uint64(0), uint64(0)
            for g in range(units):
                here = min(unit_bits, owned - g * unit_bits)
                mask = (uint64(1) << uint64(here)) - uint64(1)
                for w in range(width):
                    number = (words[w] >> uint64(g * unit_bits)) & mask
                    s0 += number * uint64(keys[g, w])
                    s1 += number * uint64(keys[g + 1, w])
                    s2 += number * uint64(keys[g + 2, w])
            if owned < 64:
                for w in range(width):
                    stray |= words[w] >> uint64(owned)
            tag = _tagged(tag, row_keys[row], s0, s1, s2)
        return tag, stray

    signature = types.Tuple((uint64, uint64))(_WORDS_READ, int64, _KEYS, _ROW_KEYS)
    return _compile(signature)(kernel)


@lru_cache
def _unpacking(fields: int):
    """The kernel of `unpack`, over whole rows."""
    field_bits = 64 // fields
    mask = (1 << field_bits) - 1

    def kernel(packed, mean, centre, factor):
        for row in range(packed.size // ROW_WORDS):
            words = packed[row * ROW_WORDS : (row + 1) * ROW_WORDS]
            for k in range(fields):
                start = (row * fields + k) * ROW_WORDS
                part = mean[start : start + ROW_WORDS]
                for w in range(ROW_WORDS):
                    field = uint32((words[w] >> uint64(k * field_bits)) & uint64(mask))
                    part[w] = float32(int32(_sub(field, centre))) * factor

    return _compile(types.void(_WORDS_READ, _FLOATS, uint32, float32))(kernel)


def add_quantised(
    packed: Words,
    layout: VectorLayout,
    update: Floats,
    residual: Floats | None,
    quantiser: Quantiser,
    key: TagKey,
    *,
    tagged: bool = True,
) -> int | None:
    """As `rows.add_quantised`. Without `tagged` it returns 0: what the tag costs is measured so."""
    kernel, q = _quantising(layout.fields, layout.bits, residual is not None, tagged), quantiser
    seed = np.uint32(q.seed & 0xFFFFFFFF), np.uint32(q.seed >> 32)
    numbers = (q.weight, q.scale, q.limit, q.step, *seed)
    scratch = np.empty(ROW_WORDS, np.uint32)
    words, split, rest = _whole_rows(layout)
    kept = _NO_RESIDUAL if residual is None else residual[:split]
    tag, largest = kernel(update[:split], kept, packed[:words], 0, ROW_WORDS, *numbers, key.units, key.rows, scratch)
    if not rest:
        return None if largest >= _INFINITY else int(tag)
    last, lost = (np.zeros(rest * layout.fields, np.float32) for _ in range(2))
    last[: update.size - split] = update[split:]
    if residual is not None:
        lost[: update.size - split] = residual[split:]
    last_keys = key.rows[layout.rows - 1 :]
    last_tag, last_largest = kernel(last, lost, packed[words:], split, rest, *numbers, key.units, last_keys, scratch)
    if residual is not None:
        residual[split:] = lost[: update.size - split]
    return None if max(largest, last_largest) >= _INFINITY else int(tag) + int(last_tag)


def tag_of(packed: Words, layout: VectorLayout, key: TagKey) -> int | None:
    """As `rows.tag_of`."""
    kernel = _tagging(layout.fields)
    words, _, rest = _whole_rows(layout)
    tag, stray = kernel(packed[:words], ROW_WORDS, key.units, key.rows)
    if rest:
        last_tag, last_stray = kernel(packed[words:], rest, key.units, key.rows[layout.rows - 1 :])
        tag, stray = int(tag) + int(last_tag), int(stray) | int(last_stray)
    return None if stray else int(tag)


def unpack(packed: Words, layout: VectorLayout, mean: Floats, centre: int, factor: np.float32) -> None:
    """As `rows.unpack`."""
    words, split, rest = _whole_rows(layout)
    _unpacking(layout.fields)(packed[:words], mean[:split], np.uint32(centre), factor)
    if rest:
        rows.unpack_rest(packed, layout, mean, centre, factor)


def _whole_rows(layout: VectorLayout) -> tuple[int, int, int]:
    """Words and parameters in whole rows, and the words of the row behind them.

    The last row may end inside its last word; if it does, it is not counted among the whole ones.
    """
    whole = layout.parameters // layout.row_parameters
    return whole * ROW_WORDS, whole * layout.row_parameters, layout.packed_words - whole * ROW_WORDS
