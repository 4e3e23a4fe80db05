"""The server step: from the last global model and the published mean to the next model (docs/protocol.md, section 7).

A pure, element-wise float32 function without reductions, so that every firm computes it for itself and gets the same
bits as the server and as every other firm. Nobody has to be told the model.
"""

from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from dure_protocols.errors import MisuseError
from dure_protocols.job import JobFile, ServerStepTerms
from dure_protocols.secagg.codec import DecodedSum, VectorLayout, Words, decode_sum
from dure_protocols.wire import digest

STATISTICS_ROUND = 0


def next_model(terms: ServerStepTerms, model: NDArray[np.float32], mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """The next global model. model, mean: (d,) float32. FedAvg (McMahan et al. 2017): model + learning rate x mean."""
    if model.shape != mean.shape or model.dtype != np.float32 or mean.dtype != np.float32:
        raise MisuseError(f"a model of {model.dtype}{model.shape} takes no mean of {mean.dtype}{mean.shape}")
    step = np.multiply(mean, np.float32(terms.learning_rate))
    np.add(step, model, out=step)
    return step


def layout_of(job: JobFile, round_: int) -> VectorLayout:
    """Where everything lies in the vector of a round: statistics in round 0, update and metrics in every other."""
    if round_ == STATISTICS_ROUND:
        return VectorLayout(0, job.codec.bits, len(job.firms), job.model.statistics)
    exact = 2 * len(job.model.round_metrics)
    return VectorLayout(job.model.parameters, job.codec.bits, len(job.firms), exact)


def first_round(job: JobFile) -> int:
    """Round 0 if the model asks for statistics, else 1."""
    return STATISTICS_ROUND if job.model.statistics else 1


def decode_round(job: JobFile, round_: int, words: Words, members: int) -> DecodedSum:
    """What the published sum of a round says. Raises MessageError if it cannot be one."""
    return decode_sum(words, layout_of(job, round_), members, job.codec.clip, job.codec.count_cap)


def round_metrics(job: JobFile, decoded: DecodedSum) -> dict[str, float]:
    """Each round metric's mean over the firms: sum of values by sum of weights; left out where the weights are zero."""
    sums, weights = decoded.exact[0::2], decoded.exact[1::2]
    pairs = zip(job.model.round_metrics, sums, weights, strict=True)
    return {name: float(total / weight) for name, total, weight in pairs if weight > 0}


def normalisation_of(decoded: DecodedSum) -> NDArray[np.float64]:
    """The statistics' sums over all firms, (S,) float64, as the statistics round published them."""
    return decoded.exact


def model_digest(model: NDArray[np.float32]) -> bytes:
    """SHA-256 of a model's little-endian float32 bytes."""
    return sha256(np.ascontiguousarray(model, "<f4").data).digest()


def state_hash(model: bytes, normalisation: NDArray[np.float64] | None) -> bytes:
    """What a firm binds into its masks as "the global model": the digest of the parameters and of the normalisation.

    Before the statistics round there is no normalisation yet, which gives that round a hash of its own.
    """
    statistics = b"" if normalisation is None else np.ascontiguousarray(normalisation, "<f8").tobytes()
    return digest("dure global state", model, b"\x00" if normalisation is None else b"\x01", statistics)
