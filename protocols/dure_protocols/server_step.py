"""The server step: from the last model and the published mean to the next model (docs/protocol.md, 7.3).

Coordinator and firms compute it, each for itself, so it is pure and element-wise float32: every operation is rounded on
its own (IEEE 754, subnormals kept), none is fused, nothing is reduced, and no function is called whose last bit a
library may choose. Square roots and divisions are correctly rounded by IEEE 754.

An algorithm is its terms (`dure_protocols.job`), `first_moments` and `server_step`. The adaptive ones are those of
Reddi et al. 2021 (Adaptive Federated Optimization): no bias correction, the second moment begins at τ². It is taken of
the mean itself, as in Adam, and not of the first moment.
"""

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from dure_protocols.errors import MisuseError
from dure_protocols.job import FedAdagradTerms, FedAdamTerms, FedAvgMTerms, FedAvgTerms, FedYogiTerms, ServerStepTerms

Vector = NDArray[np.float32]


def vector_digest(vector: Vector) -> bytes:
    """SHA-256 of a vector's little-endian float32 bytes."""
    return sha256(np.ascontiguousarray(vector, "<f4").data).digest()


@dataclass(frozen=True, eq=False)
class Moments:
    """What a server step remembers from round to round: (d,) float32 vectors, never written in place.

    FedAvg none · FedAvgM (first,) · FedAdagrad (second,) · FedAdam and FedYogi (first, second).
    """

    vectors: tuple[Vector, ...] = ()

    @cached_property
    def digests(self) -> tuple[bytes, ...]:
        """SHA-256 of each vector, computed once."""
        return tuple(vector_digest(vector) for vector in self.vectors)


def num_moments(terms: ServerStepTerms) -> int:
    """How many vectors of the model's size the step remembers."""
    return {"fedavg": 0, "fedavgm": 1, "fedadagrad": 1, "fedadam": 2, "fedyogi": 2}[terms.kind]


def first_moments(terms: ServerStepTerms, parameters: int) -> Moments:
    """The moments before the first training round: zeros, and τ² for the second one."""
    first = () if isinstance(terms, FedAvgTerms | FedAdagradTerms) else (np.zeros(parameters, np.float32),)
    if isinstance(terms, FedAvgTerms | FedAvgMTerms):
        return Moments(first)
    floor = np.float32(terms.adaptivity * terms.adaptivity)
    return Moments((*first, np.full(parameters, floor, np.float32)))


@np.errstate(over="ignore", invalid="ignore")  # a job that runs away is stopped by its coordinator, with a reason
def server_step(
    terms: ServerStepTerms, model: Vector, mean: Vector, moments: Moments, out: Vector | None = None
) -> tuple[Vector, Moments]:
    """The next global model and the next moments. model, mean: (d,) float32, neither is changed but for `out`.

    out: (d,) float32 that FedAvg's next model may be written to, such as the mean itself where nobody needs it any
    more: a large array costs more to get than to fill.

    Raises MisuseError for other shapes, or for moments of another algorithm.
    """
    vectors = (model, mean, *moments.vectors)
    if any(vector.shape != model.shape or vector.dtype != np.float32 for vector in vectors):
        raise MisuseError(f"a model of {model.dtype}{model.shape} takes no mean of {mean.dtype}{mean.shape}")
    if len(moments.vectors) != num_moments(terms):
        raise MisuseError(f"{terms.kind} has {num_moments(terms)} moments; {len(moments.vectors)} were given")
    rate = np.float32(terms.learning_rate)
    match terms:
        case FedAvgTerms():  # McMahan et al. 2017
            target = np.empty_like(mean) if out is None else out
            # Times one is the same number, and one pass over a large model less.
            step = mean if rate == 1 else np.multiply(mean, rate, out=target)
            return np.add(step, model, out=target), moments
        case FedAvgMTerms():  # Hsu et al. 2019
            (first,) = moments.vectors
            first = np.multiply(first, np.float32(terms.momentum))
            np.add(first, mean, out=first)
            return _moved(model, np.multiply(first, rate)), Moments((first,))
        case FedAdagradTerms():
            (second,) = moments.vectors
            second = np.add(second, np.multiply(mean, mean))
            return _moved(model, _adapted(mean, second, rate, terms.adaptivity)), Moments((second,))
        case FedAdamTerms() | FedYogiTerms():
            first, second = moments.vectors
            first = _mixed(first, mean, terms.momentum)
            square = np.multiply(mean, mean)
            second = _mixed(second, square, terms.decay) if terms.kind == "fedadam" else _yogi(second, square, terms)
            return _moved(model, _adapted(first, second, rate, terms.adaptivity)), Moments((first, second))


def _mixed(old: Vector, new: Vector, kept: float) -> Vector:
    """kept · old + (1 - kept) · new."""
    mixed = np.multiply(old, np.float32(kept))
    return np.add(mixed, np.multiply(new, np.float32(1.0 - kept)), out=mixed)


def _yogi(second: Vector, square: Vector, terms: FedYogiTerms) -> Vector:
    """v - (1 - decay) · square · sign(v - square): it moves by what is new, in whichever direction."""
    sign = np.subtract(second, square)
    np.sign(sign, out=sign)
    change = np.multiply(square, np.float32(1.0 - terms.decay))
    np.multiply(change, sign, out=change)
    return np.subtract(second, change, out=change)


def _adapted(direction: Vector, second: Vector, rate: np.float32, adaptivity: float) -> Vector:
    """rate · direction / (sqrt(second) + adaptivity)."""
    divisor = np.sqrt(second)
    np.add(divisor, np.float32(adaptivity), out=divisor)
    step = np.multiply(direction, rate)
    return np.divide(step, divisor, out=step)


def _moved(model: Vector, step: Vector) -> Vector:
    return np.add(step, model, out=step)
