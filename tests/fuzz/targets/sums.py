"""Targets of vectors: sums that are decoded, checked and applied, and snapshots. Words, little-endian."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dure_protocols.errors import MessageError
from dure_protocols.global_state import GlobalState
from dure_protocols.secagg.codec import DecodedSum, VectorLayout, Words, carries_tag, decode_sum
from tests.fuzz.target import Target
from tests.fuzz.targets.recorded import cases_of
from tests.protocols.test_global_state import INITIAL, a_job, a_moving_job, published

REFUSED = (MessageError,)
COUNT_CAP = 1000


def words_of(data: bytes) -> Words:
    """The words that bytes are."""
    if len(data) % 8:
        raise MessageError("an array has whole words")
    return np.frombuffer(data, "<u8").view(np.uint64)


def sum_targets() -> Iterator[Target]:
    """One for each function that reads words from a peer, over several layouts."""
    tags = cases_of("tags", "tag")
    seeds = tuple(dict.fromkeys(bytes.fromhex(inputs["vector"]) for inputs in tags))
    layouts = {tuple(sorted(inputs["layout"].items())): VectorLayout(**inputs["layout"]) for inputs in tags}
    of_layout = list(layouts.values())
    yield Target("sum/decode", _each(of_layout, _decoded), REFUSED, seeds, 32, check=_check_decoded)
    keys = {tuple(sorted(inputs["layout"].items())): bytes.fromhex(inputs["key"]) for inputs in tags}
    tagged = [(layouts[each], keys[each]) for each in layouts]
    base = 512 << 10  # a tag key, spread out for rows of 512 words
    yield Target("sum/tag", _each(tagged, _carries), REFUSED, seeds, 48, base_bytes=base)
    jobs = a_job(statistics=2), a_moving_job(statistics=2)
    sums = tuple(published(job, round_).tobytes() for job in jobs for round_ in (0, 1, 2, 6))
    yield Target("sum/apply", _each(jobs, _advanced), REFUSED, sums, 64, check=_check_state)
    snapshots = tuple(bytes.fromhex(inputs["vector"]) for inputs in cases_of("model", "snapshot"))
    yield Target(
        "snapshot", _each(jobs, _standing), REFUSED, (*_snapshots(jobs), *snapshots), 64, _words_again, _check_state
    )


def _each(variants: Any, read: Callable[[Words, Any], Any]) -> Callable[[bytes], Any]:
    """A decoder that reads the words by each of several layouts or jobs; the value is the last that was read."""

    def decode(data: bytes) -> Any:
        words, values, refused = words_of(data), [], None
        for variant in variants:
            for odd in (words.reshape(1, -1), words.reshape(-1, 1), words[:1].reshape(())) if words.size else ():
                _must_refuse(read, odd, variant)
            try:
                values.append(read(words, variant))
            except MessageError as error:
                refused = error
        if not values and refused is not None:
            raise refused
        return values[-1]

    return decode


def _must_refuse(read: Callable[[Words, Any], Any], words: Words, variant: Any) -> None:
    try:
        read(words, variant)
    except MessageError:
        return
    raise AssertionError(f"an array of shape {words.shape} was taken for a vector")


def _decoded(words: Words, layout: VectorLayout) -> DecodedSum:
    return decode_sum(words, layout, 1.0, COUNT_CAP)


def _check_decoded(decoded: DecodedSum) -> None:
    assert np.isfinite(decoded.mean).all(), "the mean holds NaN or infinity"
    assert np.isfinite(decoded.exact).all(), "an exact sum is NaN or infinity"
    assert decoded.members >= 1
    assert decoded.count >= 1


def _carries(words: Words, tagged: tuple[VectorLayout, bytes]) -> bool:
    layout, key = tagged
    return carries_tag(words, layout, key, ("firm-a", "firm-b"))


def _advanced(words: Words, job: Any) -> GlobalState:
    """The words as the sum of each round of a job in turn; the state after the last that took them."""
    state, refused = GlobalState(job, INITIAL), None
    taken = 0
    for _ in range(4):
        try:
            state.advance(words, 3)
            taken += 1
        except MessageError as error:
            refused = error
            state.round += 1
            if state.is_over:
                break
    if not taken and refused is not None:
        raise refused
    return state


def _check_state(state: GlobalState) -> None:
    assert len(state.hash) == 32
    state.to_words()


def _snapshots(jobs: Any) -> Iterator[bytes]:
    for job in jobs:
        state = GlobalState(job, INITIAL)
        for _ in range(3):
            yield state.to_words().tobytes()
            state.advance(published(job, state.round, clip=state.clip), 3)


def _standing(words: Words, job: Any) -> GlobalState:
    return GlobalState(job, INITIAL).standing_at(words)


def _words_again(state: GlobalState) -> bytes:
    return state.to_words().tobytes()
