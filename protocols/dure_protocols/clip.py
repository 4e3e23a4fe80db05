"""The codec's clip from round to round, from public quantities only (docs/protocol.md, section 5).

A clip that is too narrow cuts updates off, one that is too wide wastes the field's bits, and updates shrink as training
goes on. So each member adds one number to the masked vector, its *fill*: the mean square of what it quantises, in units
of the clip, after clipping, hence in [0, 1]. The sum over members is published as every sum is, and the next clip is a
pure function of it.
"""

import math

import numpy as np
from numpy.typing import NDArray

from dure_protocols.errors import MisuseError
from dure_protocols.job import CodecTerms

_FASTEST = 4.0
_FARTHEST = 2.0**20
_RUN = 64
_SAMPLE = 1 << 20


def fill(update: NDArray[np.float32], weight: float, clip: float, residual: NDArray[np.float32] | None = None) -> float:
    """The mean of (clip(w·u + e, ±c) / c)^2 over the parameters, in [0, 1]. What a firm adds to the sum.

    update: (d,) float32, u; weight in [0, 1], w; clip: c > 0; residual: (d,) float32, e, zeros if None. Above a million
    parameters evenly spaced runs of 64 stand for all, so that it costs no second pass over the memory.
    """
    if not 0.0 <= weight <= 1.0 or not clip > 0.0:
        raise MisuseError(f"a weight of {weight} and a clip of {clip} were given; [0, 1] and more than 0 are possible")
    values = _sample(update).astype(np.float64) * weight
    if residual is not None:
        values += _sample(residual)
    values /= clip
    np.clip(values, -1.0, 1.0, out=values)
    return float(np.square(values, out=values).mean()) if values.size else 0.0


def _sample(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values, or runs of them at even distances, (n,) with n at most about two million."""
    distance = values.size // _SAMPLE
    if distance <= 1:
        return values
    return values[: values.size // _RUN * _RUN].reshape(-1, _RUN)[::distance].reshape(-1)


def next_clip(terms: CodecTerms, clip: float, fills: float, members: int) -> float:
    """The clip of the round after one whose `members` had a clip of `clip` and fills that sum to `fills`.

    `clip_factor` times the root mean square of all that was quantised, but at most 4 times wider or narrower than
    before, and within 2^20 of the job's first clip. Multiplications, divisions and one square root of IEEE doubles,
    each correctly rounded: every firm computes the same bits on every machine. Whatever a member put into the sum, the
    result is a finite, positive number.
    """
    if members < 1:
        raise MisuseError("a sum has at least one member")
    mean = min(max(fills / members, 0.0), 1.0)
    ratio = min(max(terms.clip_factor * math.sqrt(mean), 1.0 / _FASTEST), _FASTEST)
    return min(max(clip * ratio, terms.clip / _FARTHEST), terms.clip * _FARTHEST)
