"""The job file, the global model and how published sums move it (docs/protocol.md, sections 3.1 and 7)."""

import json
import math
import struct

import numpy as np

from .codec import Layout, decode_sum
from .wire import Refused, digest, from_words, sha256, words


def canonical(values):
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def job_digest(data):
    """SHA-256 of a job file, which must be canonical. Raises Refused("malformed")."""
    try:
        values = json.loads(data)
    except ValueError:
        raise Refused("malformed") from None
    if canonical(values) != data:
        raise Refused("malformed")
    if isinstance(values, dict) and None in (values.get("purpose", ""), values.get("agreement", "")):
        raise Refused("malformed")  # left out where there is none
    return sha256(data)


class GlobalState:
    """The global model before a round. job: the job file's values."""

    def __init__(self, job, initial):
        self.job, self.model = job, initial
        self.round = 0 if job["model"]["statistics"] else 1
        self.normalisation, self.best, self.clip = None, None, job["codec"]["clip"]
        self.moments = first_moments(job["server_step"], len(initial))
        if digest_of(initial).hex() != job["model"]["initial_digest"]:
            raise Refused("global-model")

    @property
    def last_round(self):
        return self.job["rounds"] + (1 if self.job["selection_metric"] else 0)

    def trains(self, round_):
        return 1 <= round_ <= self.job["rounds"]

    def moves_clip(self, round_):
        return self.job["codec"]["clip_rule"] == "rms" and 1 <= round_ < self.job["rounds"]

    def layout(self, round_):
        model, bits, firms = self.job["model"], self.job["codec"]["bits"], len(self.job["firms"])
        if round_ == 0:
            return Layout(0, bits, firms, model["statistics"] + 1)
        exact = 2 * len(model["round_metrics"]) + self.moves_clip(round_)
        return Layout(model["parameters"] if self.trains(round_) else 0, bits, firms, exact)

    @property
    def hash(self):
        normalisation = (
            b"" if self.normalisation is None else struct.pack(f"<{len(self.normalisation)}d", *self.normalisation)
        )
        best = b""
        if self.best is not None:
            model, round_, value = self.best
            best = struct.pack(">Qd", round_, value) + digest_of(model)
        place = struct.pack(">Qd", self.round, self.clip)
        moments = [digest_of(moment) for moment in self.moments]
        return digest("dure global state", place, digest_of(self.model), normalisation, best, *moments)

    @property
    def key(self):
        parts = [] if self.normalisation is None else [struct.pack(f"<{len(self.normalisation)}d", *self.normalisation)]
        return digest("dure global model", digest_of(self.model), *parts)

    @property
    def final(self):
        return self.model if self.best is None else self.best[0]

    def advance(self, total, members):
        """Apply the words of a sum over so many members; what it told: count and metrics."""
        layout, round_ = self.layout(self.round), self.round
        mean, count, found, exact = decode_sum(layout, total, self.clip, self.job["codec"]["count_cap"])
        if found != members:
            raise Refused("malformed")
        self.round += 1
        if round_ == 0:
            self.normalisation = exact
            return count, {}
        listed = self.job["model"]["round_metrics"]
        metrics = {name: exact[2 * at] / exact[2 * at + 1] for at, name in enumerate(listed) if exact[2 * at + 1] > 0}
        chosen = metrics.get(self.job["selection_metric"])
        if chosen is not None and (self.best is None or chosen < self.best[2]):
            self.best = self.model, round_, chosen
        if self.trains(round_):
            self.model, self.moments = server_step(self.job["server_step"], self.model, mean, self.moments)
        if self.moves_clip(round_):
            self.clip = next_clip(self.job["codec"], self.clip, exact[-1], members)
        return count, metrics

    def to_words(self):
        """The snapshot's vector, as bytes."""
        parts = [from_words([self.round, (self.normalisation is not None) + 2 * (self.best is not None)])]
        parts.append(struct.pack("<d", self.clip))
        parts.append(bytes(16) if self.best is None else struct.pack("<Qd", *self.best[1:]))
        if self.normalisation is not None:
            parts.append(struct.pack(f"<{len(self.normalisation)}d", *self.normalisation))
        parts += [padded(self.model)] + ([] if self.best is None else [padded(self.best[0])])
        parts += [padded(moment) for moment in self.moments]
        return b"".join(parts)

    def standing_at(self, data):
        """The state that `to_words` wrote."""
        made = GlobalState.__new__(GlobalState)
        made.job, terms = self.job, self.job["model"]
        made.round, flags, _, best_round, _ = words(data[:40])
        (made.clip,), (value,) = struct.unpack("<d", data[16:24]), struct.unpack("<d", data[32:40])
        numbers = (flags & 1) * (terms["statistics"] + 1)
        size = 8 * -(-terms["parameters"] // 2)
        num_vectors = 1 + flags // 2 + len(first_moments(self.job["server_step"], 1))
        if flags > 3 or len(data) != 40 + 8 * numbers + size * num_vectors:
            raise Refused("malformed")
        at = 40 + 8 * numbers
        made.normalisation = list(struct.unpack(f"<{numbers}d", data[40:at])) if numbers else None
        parts = [data[start : start + size] for start in range(at, len(data), size)]
        filling = b"".join(part[4 * terms["parameters"] :] for part in parts)
        if any(filling) or (not flags & 2 and any(data[24:40])):
            raise Refused("malformed")
        models = [np.frombuffer(part, "<f4", terms["parameters"]) for part in parts]
        made.model, made.best = models[0], (models[1], best_round, value) if flags & 2 else None
        made.moments = models[1 + flags // 2 :]
        return made


def first_moments(terms, size):
    kind = terms["kind"]
    first = [] if kind in {"fedavg", "fedadagrad"} else [np.zeros(size, "<f4")]
    if kind in {"fedavg", "fedavgm"}:
        return first
    return [*first, np.full(size, terms["adaptivity"] * terms["adaptivity"], "<f4")]


def server_step(terms, model, mean, moments):
    """The next model and the next moments, one float32 operation after the other."""
    kind, rate = terms["kind"], np.float32(terms["learning_rate"])
    if kind == "fedavg":
        return mean * rate + model, []
    if kind == "fedavgm":
        first = np.float32(terms["momentum"]) * moments[0] + mean
        return rate * first + model, [first]
    first, second, square = mean, moments[-1], mean * mean
    if kind == "fedadagrad":
        second = second + square
    else:
        kept, new = np.float32(terms["momentum"]), np.float32(1.0 - terms["momentum"])
        first = kept * moments[0] + new * mean
        kept, new = np.float32(terms["decay"]), np.float32(1.0 - terms["decay"])
        yogi = second - new * square * np.sign(second - square)
        second = yogi if kind == "fedyogi" else kept * second + new * square
    step = rate * first / (np.sqrt(second) + np.float32(terms["adaptivity"]))
    return step + model, [second] if kind == "fedadagrad" else [first, second]


def next_clip(codec, clip, fills, members):
    mean = min(max(fills / members, 0.0), 1.0)
    ratio = min(max(codec["clip_factor"] * math.sqrt(mean), 0.25), 4.0)
    return min(max(clip * ratio, codec["clip"] / 2.0**20), codec["clip"] * 2.0**20)


def fill(update, weight, clip, residual=None):
    """The mean square of what is quantised, in units of the clip, after clipping."""
    lost = [0.0] * len(update) if residual is None else residual
    values = ((float(value) * weight + float(more)) / clip for value, more in zip(update, lost, strict=True))
    squares = [min(max(value, -1.0), 1.0) ** 2 for value in values]
    return sum(squares) / len(squares) if squares else 0.0


def digest_of(model):
    return sha256(model.astype("<f4").tobytes())


def padded(model):
    data = model.astype("<f4").tobytes()
    return data + bytes(-len(data) % 8)
