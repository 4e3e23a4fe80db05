"""Where a job stands: the global model and what belongs to it, advanced by published sums (docs/protocol.md, 7).

Coordinator and firms run this same pure code. Rounds of a job, in order:

    0            statistics over all firms, if the model asks for them: fixes the normalisation of inputs
    1 … R        training: the sum holds the mean update and the round metrics of the model *before* it
    R + 1        closing, if the job selects a model: round metrics of the last model only

The next model is the server step (`dure_protocols.server_step`), so that every firm gets the same bits as the server
and as every other firm, and nobody has to be told the model. What the step remembers from round to round, its moments,
and the codec's clip, where the job file moves it, are part of the state in the same way.
"""

import math
import struct
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dure_protocols.clip import next_clip
from dure_protocols.errors import MessageError, MisuseError, RefusalCode, RefusedError
from dure_protocols.job import JobFile
from dure_protocols.secagg.codec import DecodedSum, VectorLayout, Words, decode_sum
from dure_protocols.server_step import Moments, first_moments, num_moments, server_step, vector_digest
from dure_protocols.wire import digest

STATISTICS_ROUND = 0
_HEAD_WORDS = 5  # round, what follows, clip, the best model's round and value


def first_round(job: JobFile) -> int:
    """Round 0 if the model asks for statistics, else 1."""
    return STATISTICS_ROUND if job.model.statistics else 1


def last_round(job: JobFile) -> int:
    """The closing round if a model is selected, else the last training round."""
    return job.rounds + 1 if job.selection_metric else job.rounds


def is_training(job: JobFile, round_: int) -> bool:
    """Whether firms train in this round."""
    return STATISTICS_ROUND < round_ <= job.rounds


def moves_clip(job: JobFile, round_: int) -> bool:
    """Whether the sum of this round carries the firms' fills, by which the next training round's clip is chosen."""
    return job.codec.clip_rule == "rms" and is_training(job, round_) and round_ < job.rounds


def layout_of(job: JobFile, round_: int) -> VectorLayout:
    """Where everything lies in the vector of a round.

    The last exact word is the number of rows in the statistics' round and the fill in a round that moves the clip.
    """
    members = len(job.firms)
    if round_ == STATISTICS_ROUND:
        return VectorLayout(0, job.codec.bits, members, job.model.statistics + 1)
    exact = 2 * len(job.model.round_metrics) + moves_clip(job, round_)
    return VectorLayout(job.model.parameters if is_training(job, round_) else 0, job.codec.bits, members, exact)


def model_digest(model: NDArray[np.float32]) -> bytes:
    """SHA-256 of a model's little-endian float32 bytes."""
    return vector_digest(model)


@dataclass(frozen=True)
class Best:
    """The model that the job's selection metric prefers so far, its SHA-256, and the round it entered."""

    model: NDArray[np.float32]
    digest: bytes
    round: int
    value: float


@dataclass(frozen=True)
class RoundOutcome:
    """What a published sum told everyone: rows behind it (under the cap) and the round metrics' means."""

    count: int
    metrics: dict[str, float]


class GlobalState:
    """The global model before round `round`. Changed by `advance` only.

    model: (d,) float32, never written in place; normalisation: (S + 1,) float64 sums and rows, None before round 0 is
    over (and for models without statistics); best: None before a selection metric was published; clip: what updates of
    this round are clipped to; moments: what the server step remembers.
    """

    def __init__(self, job: JobFile, initial: NDArray[np.float32]) -> None:
        """Begin with the job's first model. Raises RefusedError if it is not the one the job file names."""
        if initial.shape != (job.model.parameters,) or model_digest(initial).hex() != job.model.initial_digest:
            raise RefusedError(
                RefusalCode.GLOBAL_MODEL,
                f"the first model has digest {model_digest(initial).hex()[:16]}…, the job file names"
                f" {job.model.initial_digest[:16]}…; are all sides of one version?",
            )
        self._job = job
        self.model = initial
        self.digest = model_digest(initial)
        self.normalisation: NDArray[np.float64] | None = None
        self.round = first_round(job)
        self.best: Best | None = None
        self.clip = job.codec.clip
        self.moments = first_moments(job.server_step, initial.size)

    def resume(
        self,
        round_: int,
        model: NDArray[np.float32],
        normalisation: NDArray[np.float64] | None,
        best: Best | None,
        clip: float,
        moments: Moments,
    ) -> None:
        """Go on from what this side itself stored before. Raises MessageError if that is no state of this job."""
        terms = self._job.model
        vectors = (model, *([] if best is None else [best.model]), *moments.vectors)
        fits = {part.shape for part in vectors} == {(terms.parameters,)}
        fits &= len(moments.vectors) == num_moments(self._job.server_step)
        fits &= first_round(self._job) <= round_ <= last_round(self._job) + 1
        if normalisation is not None:
            fits &= normalisation.shape == (terms.statistics + 1,) and bool(np.isfinite(normalisation).all())
        if not fits or not 0.0 < clip < math.inf:
            raise MessageError(f"what is stored before round {round_} is no global state of job {self._job.id!r}")
        self.round, self.model, self.digest = round_, model, model_digest(model)
        self.normalisation, self.best, self.clip, self.moments = normalisation, best, clip, moments

    @property
    def hash(self) -> bytes:
        """What firms bind into their masks as "the global model": all of this object, digested. 32 bytes."""
        normalisation = b"" if self.normalisation is None else np.ascontiguousarray(self.normalisation, "<f8").tobytes()
        best = self.best
        chosen = b"" if best is None else struct.pack(">Qd", best.round, best.value) + best.digest
        place = struct.pack(">Qd", self.round, self.clip)
        return digest("dure global state", place, self.digest, normalisation, chosen, *self.moments.digests)

    def to_words(self) -> Words:
        """Everything, as a vector that travels like a sum: for a firm that cannot compute it. See `standing_at`."""
        best = self.best
        head = np.zeros(_HEAD_WORDS, np.uint64)
        head[:2] = self.round, (self.normalisation is not None) + 2 * (best is not None)
        head[2:3].view(np.float64)[0] = self.clip
        parts = [head]
        if self.normalisation is not None:
            parts.append(np.ascontiguousarray(self.normalisation, "<f8").view(np.uint64))
        parts.append(_as_words(self.model))
        if best is not None:
            head[3] = best.round
            head[4:5].view(np.float64)[0] = best.value
            parts.append(_as_words(best.model))
        parts += map(_as_words, self.moments.vectors)
        return np.concatenate(parts)

    def standing_at(self, words: Words) -> "GlobalState":
        """The state of this job that `to_words` wrote. Raises MessageError if the words are no such thing.

        words: uint64, of any shape a peer may have sent. The caller MUST compare its `hash` with one that it trusts.
        """
        terms = self._job.model
        flags = int(words[1]) if words.ndim == 1 and words.size >= _HEAD_WORDS else 4
        has_normalisation, has_best = bool(flags & 1), bool(flags & 2)
        size = -(-terms.parameters // 2)
        normalised = _HEAD_WORDS + has_normalisation * (terms.statistics + 1)
        num_vectors = 1 + has_best + num_moments(self._job.server_step)
        if flags > 3 or words.size != normalised + num_vectors * size:
            raise MessageError(f"a vector of {words.shape} words is no global state of job {self._job.id!r}")
        numbers = words[2:5].view(np.float64)
        whole = [words[at : at + size].view(np.float32) for at in range(normalised, words.size, size)]
        unused = [] if has_best else [words[3:5]]
        unused += [part[terms.parameters :].view(np.uint32) for part in whole]
        if any(part.any() for part in unused):
            raise MessageError(f"a global state of job {self._job.id!r} has zeros where nothing stands")
        model, *others = (part[: terms.parameters].copy() for part in whole)
        best = Best(others[0], model_digest(others[0]), int(words[3]), float(numbers[2])) if has_best else None
        made = copy(self)
        made.resume(
            int(words[0]),
            model,
            words[_HEAD_WORDS:normalised].view(np.float64).copy() if has_normalisation else None,
            best,
            float(numbers[0]),
            Moments(tuple(others[has_best:])),
        )
        return made

    @property
    def key(self) -> bytes:
        """The model alone, in whatever round: by this a firm knows that it has contributed on it before. 32 bytes."""
        parts = [] if self.normalisation is None else [np.ascontiguousarray(self.normalisation, "<f8").tobytes()]
        return digest("dure global model", self.digest, *parts)

    @property
    def is_over(self) -> bool:
        """Whether the job has no further round."""
        return self.round > last_round(self._job)

    @property
    def final(self) -> NDArray[np.float32]:
        """The model that the job hands over: the selected one, or the last."""
        return self.model if self.best is None else self.best.model

    def advance(self, words: Words, members: int) -> RoundOutcome:
        """Apply the published sum of the current round and move to the next.

        words: the unmasked vector of `members` firms. Raises MessageError if it cannot be the sum of this round.
        """
        job, round_ = self._job, self.round
        if self.is_over:
            raise MisuseError(f"the job {job.id!r} ends with round {last_round(job)}")
        decoded = decode_sum(words, layout_of(job, round_), self.clip, job.codec.count_cap)
        if decoded.members != members:
            raise MessageError(f"the sum of round {round_} counts {decoded.members} vectors; {members} were announced")
        self.round = round_ + 1
        if round_ == STATISTICS_ROUND:
            self.normalisation = decoded.exact
            return RoundOutcome(decoded.count, {})
        metrics = _metrics(job, decoded)
        self._note_best(metrics, round_)
        if is_training(job, round_):
            mean = decoded.mean
            self.model, self.moments = server_step(job.server_step, self.model, mean, self.moments, out=mean)
            self.digest = model_digest(self.model)
        if moves_clip(job, round_):
            self.clip = next_clip(job.codec, self.clip, float(decoded.exact[-1]), members)
        return RoundOutcome(decoded.count, metrics)

    def _note_best(self, metrics: dict[str, float], round_: int) -> None:
        metric = self._job.selection_metric
        if metric is None or metric not in metrics:
            return
        if self.best is None or metrics[metric] < self.best.value:
            self.best = Best(self.model, self.digest, round_, metrics[metric])


def _as_words(model: NDArray[np.float32]) -> Words:
    """A model's bytes as whole words, zeros behind them."""
    words: Words = np.zeros(-(-model.size // 2), np.uint64)
    words.view(np.float32)[: model.size] = model
    return words


def _metrics(job: JobFile, decoded: DecodedSum) -> dict[str, float]:
    """Each round metric's mean: sum of values by sum of weights; left out where the weights are zero."""
    words = decoded.exact[: 2 * len(job.model.round_metrics)]
    pairs = zip(job.model.round_metrics, words[0::2], words[1::2], strict=True)
    return {name: float(total / weight) for name, total, weight in pairs if weight > 0}
