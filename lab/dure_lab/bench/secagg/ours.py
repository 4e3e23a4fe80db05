"""Dure's own protocol: masks that are made while the firm trains, the online work, the server, the sum at the firm."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from dure_lab.bench.secagg.arm import CLIP, COUNT_CAP, Arm, Case, Stopwatch
from dure_lab.bench.secagg.rehearsal import name_of, rehearse
from dure_protocols.global_state import model_digest
from dure_protocols.job import FedAvgTerms
from dure_protocols.secagg import kernels
from dure_protocols.secagg.codec import (
    WORD_BYTES,
    Contribution,
    VectorLayout,
    Words,
    add_contribution,
    carries_tag,
    decode_sum,
)
from dure_protocols.secagg.keystream import apply_keystreams
from dure_protocols.secagg.masks import self_mask_key
from dure_protocols.secagg.rows import Quantiser
from dure_protocols.secagg.tags import BLINDING_BYTES, OwnTag, TagKey
from dure_protocols.server_step import Moments, server_step

BITS = 12
WAIT = ("online", "digest", "session")
"""What a firm does after training, before its answers can leave."""
WITHOUT_TAG = "online without tag"
_TAG_KEY = bytes(32)
_STEP = FedAvgTerms()
_NO_METRICS: NDArray[np.float64] = np.zeros(0)


def layout_of(case: Case) -> VectorLayout:
    """The default codec for this many firms, without metrics."""
    return VectorLayout(case.parameters, BITS, case.firms)


def contribute(words: Words, case: Case, firm: int, tag_key: bytes) -> None:
    """Quantise a firm's weighted update, add it, its count and its tag."""
    contribution = Contribution(case.update(firm), case.weight(firm), case.count(firm), _NO_METRICS)
    rounding = case.seed << 32 | firm
    tag = OwnTag(tag_key, name_of(firm), bytes(BLINDING_BYTES))
    add_contribution(words, layout_of(case), contribution, clip=CLIP, rounding=rounding, tag=tag)


class OursArm(Arm):
    """`masks` runs while the firm trains; `online` is what it waits for afterwards."""

    client_parts = ("masks", *WAIT)
    server_parts = ("add", "unmask")

    def __init__(self, case: Case) -> None:
        self._case, self._layout = case, layout_of(case)
        self.rehearsal = rehearse(case.firms, case.seed)
        self._round = self.rehearsal.rounds[-1]
        self._turns = 0
        self.sum = np.zeros(0, np.uint64)
        self.is_checked = False
        self._tag_key = self._round.keys.tag
        self._scratch = np.ones(self._layout.words, np.uint64)
        self._model = np.ones(self._layout.parameters, np.float32)
        context = self.rehearsal.attempt(self._round).context
        # Pairwise masks cancel, so the vectors to be summed carry self masks only.
        self._vectors = []
        for firm, name in enumerate(self.rehearsal.names):
            words = np.zeros(self._layout.words, np.uint64)
            apply_keystreams(words, add=[self_mask_key(self._round.releases[name].seed, context)])
            contribute(words, case, firm, self._tag_key)
            self._vectors.append(words)

    def client(self, watch: Stopwatch) -> None:
        """One firm's round. The sessions' part was timed when they were rehearsed."""
        with watch("masks"):
            words = self._round.keys.mask(self._layout)
        with watch("online"):
            contribute(words, self._case, 0, self._tag_key)
        self._contribute_without_tag(watch)
        with watch("digest"):
            hashlib.sha256(words.data).digest()
        watch.seconds["session"] = self.rehearsal.rounds[self._turns % len(self.rehearsal.rounds)].seconds
        self._turns += 1

    def _contribute_without_tag(self, watch: Stopwatch) -> None:
        """The same arithmetic without a tag, on other words: no part of a round, but it shows what the tag costs."""
        case, layout = self._case, self._layout
        key = TagKey.of(layout, self._tag_key)
        with watch(WITHOUT_TAG):
            quantiser = Quantiser.of(layout, case.weight(0), CLIP, case.seed)
            words = self._scratch[: layout.packed_words]
            kernels.add_quantised(words, layout, case.update(0), None, quantiser, key, tagged=False)

    def server(self, watch: Stopwatch) -> None:
        """The server's attempt."""
        attempt = self.rehearsal.attempt(self._round)
        with watch("add"):
            for receipt, vector in zip(self._round.receipts, self._vectors, strict=True):
                attempt.add(receipt, vector, self._layout)
        with watch("unmask"):
            self.sum = attempt.unmask(self._round.releases)

    def decode(self, watch: Stopwatch) -> NDArray[np.float32]:
        """What a firm does with the published sum: check the tag, take the mean, compute and digest the next model."""
        with watch("check"):
            self.is_checked = carries_tag(self.sum, self._layout, self._tag_key, self.rehearsal.names)
        with watch("decode"):
            mean = decode_sum(self.sum, self._layout, CLIP, COUNT_CAP).mean
        with watch("step"):
            model, _ = server_step(_STEP, self._model, mean, Moments())
        with watch("model digest"):
            model_digest(model)
        return mean

    @property
    def vector_bytes(self) -> int:
        """Packed words and the few behind them."""
        return self._layout.size_bytes

    @property
    def packed_bytes(self) -> int:
        """Bytes of the vector that hold parameters."""
        return self._layout.packed_words * WORD_BYTES

    def integers_equal(self, words: Words) -> bool:
        """Whether the last sum holds the same integers, tags apart, as one that was never masked."""
        end = self._layout.tail.stop
        return bool(np.array_equal(self.sum[:end], words[:end]))

    @property
    def keystream_bytes(self) -> int:
        """Bytes of keystream that the server removes."""
        return self._case.firms * self._layout.size_bytes


class UnmaskedArm(Arm):
    """The same codec in the clear: quantised, packed and added without masks and tags."""

    client_parts = ("online",)
    server_parts = ("add",)

    def __init__(self, case: Case) -> None:
        self._case, self._layout = case, layout_of(case)
        self._vectors = [self._vector(firm) for firm in range(case.firms)]
        self._words = np.ones(self._layout.words, np.uint64)
        self.sum = np.ones(self._layout.words, np.uint64)

    def client(self, watch: Stopwatch) -> None:
        """Quantise into words that were touched before."""
        self._words.fill(0)
        with watch("online"):
            contribute(self._words, self._case, 0, _TAG_KEY)

    def server(self, watch: Stopwatch) -> None:
        """Add one vector after the other."""
        with watch("add"):
            np.copyto(self.sum, self._vectors[0])
            for vector in self._vectors[1:]:
                self.sum += vector

    def decode(self, watch: Stopwatch) -> NDArray[np.float32]:
        """What a firm does with the published sum."""
        with watch("decode"):
            return decode_sum(self.sum, self._layout, CLIP, COUNT_CAP).mean

    @property
    def vector_bytes(self) -> int:
        """As under masks."""
        return self._layout.size_bytes

    def _vector(self, firm: int) -> Words:
        words = np.zeros(self._layout.words, np.uint64)
        contribute(words, self._case, firm, _TAG_KEY)
        return words
