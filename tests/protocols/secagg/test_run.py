"""The one function that runs all parties, compared with plain sums of integers."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dure_protocols.errors import MessageError, MisuseError, RefusedError
from dure_protocols.job import least_threshold
from dure_protocols.secagg.codec import Contribution, VectorLayout, add_contribution
from dure_protocols.secagg.run import run_secure_aggregation
from dure_protocols.secagg.tags import OwnTag

MODES = pytest.mark.parametrize("mode", ["retry", "threshold"])


def run(updates, *, seed=0, **options):
    return run_secure_aggregation(updates, randomness=random.Random(seed).randbytes, **options)


def powers(num_firms, size=5):
    return {f"firm-{i}": np.full(size, 2.0**-i, np.float32) for i in range(num_firms)}


def plain_mean(updates, counts, members):
    weights = np.array([counts[firm] for firm in members], float)
    return np.average([updates[firm] for firm in members], axis=0, weights=weights)


@st.composite
def rounds(draw):
    """Firms with updates and counts, mode and threshold, and as many drop-outs as the mode can bear."""
    mode = draw(st.sampled_from(["retry", "threshold"]))
    num = draw(st.integers(3 if mode == "retry" else 4, 9))
    names = [f"firm-{i}" for i in range(num)]
    threshold = None if mode == "retry" else draw(st.integers(least_threshold(num), num - 1))
    most_gone = num - 2 if threshold is None else num - threshold
    gone = draw(st.lists(st.sampled_from(names), max_size=most_gone, unique=True))
    steps = ["join", "update"] if mode == "retry" else ["join", "update", "vote", "release"]
    size, seed = draw(st.integers(1, 40)), draw(st.integers(0, 2**32))
    values = np.random.default_rng(seed).uniform(-1, 1, (num, size)).astype(np.float32)
    return {
        "updates": dict(zip(names, values, strict=True)),
        "counts": {name: draw(st.integers(1, 1000)) for name in names},
        "mode": mode,
        "threshold": threshold,
        "dropouts": {firm: draw(st.sampled_from(steps)) for firm in gone},
        "bits": draw(st.integers(4, 20)),
    }


@settings(max_examples=60, deadline=None)
@given(rounds())
def test_the_sum_is_over_exactly_those_that_uploaded_whoever_drops_out_when(options):
    result = run(**options)
    uploaded = [f for f in options["updates"] if options["dropouts"].get(f) not in ("join", "update")]
    assert result.members == tuple(uploaded)
    assert result.count == sum(options["counts"][firm] for firm in uploaded)
    cap = max(options["counts"].values())
    a_step = 2 / (2 ** options["bits"] - 2) * len(uploaded) / (result.count / cap)
    assert np.allclose(result.mean, plain_mean(options["updates"], options["counts"], uploaded), atol=a_step + 1e-5)


@MODES
@pytest.mark.parametrize("bits", [2, 6, 12, 16, 24])
def test_the_ring_words_are_the_plain_sums_of_the_firms_integers(mode, bits):
    """Masks leave nothing behind: the same contributions added without any give the same words, tags aside."""
    updates = powers(5, size=30)
    counts = {f"firm-{i}": i + 1 for i in range(5)}
    result = run(updates, counts=counts, mode=mode, bits=bits)
    layout = VectorLayout(30, bits, 5)
    low, high = (np.zeros(layout.words, np.uint64) for _ in range(2))
    for firm, update in updates.items():
        given = Contribution(update, counts[firm] / 5, counts[firm], np.zeros(0))
        for words, rounding in ((low, 0), (high, 1)):
            tag = OwnTag(bytes(32), firm, bytes(32))
            add_contribution(words, layout, given, clip=1.0, rounding=rounding, tag=tag)
    assert np.array_equal(result.integer_sum[layout.tail], low[layout.tail])

    def fields(words):
        columns = [(words[: layout.packed_words] >> np.uint64(i * layout.field_bits)) for i in range(layout.fields)]
        return np.stack(columns, -1) & np.uint64(2**layout.field_bits - 1)

    apart = fields(result.integer_sum).astype(float) - fields(low).astype(float)
    assert np.abs(apart).max() <= 5  # one step of rounding a firm


@MODES
def test_equal_weights_unless_told_otherwise(mode):
    result = run(powers(4), mode=mode, bits=16)
    assert result.count == 4
    assert np.allclose(result.mean, (1 + 0.5 + 0.25 + 0.125) / 4, atol=1e-3)


def test_counts_weigh_the_mean():
    counts = {"firm-0": 10, "firm-1": 20, "firm-2": 70}
    result = run(powers(3), counts=counts, bits=16)
    assert result.count == 100
    assert np.allclose(result.mean, 0.1 * 1 + 0.2 * 0.5 + 0.7 * 0.25, atol=1e-3)


@MODES
@pytest.mark.parametrize("clip", [0.25, 0.01, 8.0])
def test_the_clip_bounds_each_coordinate(mode, clip):
    result = run(powers(4), mode=mode, bits=16, clip=clip)
    expected = np.mean([min(2.0**-i, clip) for i in range(4)])
    assert np.allclose(result.mean, expected, atol=clip * 1e-3)


@MODES
def test_the_same_randomness_gives_the_same_words(mode):
    """KEM ciphertexts draw from the operating system; what is published does not depend on them."""
    first, second, other = (run(powers(4), mode=mode, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.integer_sum, second.integer_sum)
    assert not np.array_equal(first.integer_sum[-2:], other.integer_sum[-2:])


@pytest.mark.parametrize("step", ["join", "update"])
def test_in_retry_mode_fewer_than_the_minimum_cohort_is_refused(step):
    with pytest.raises(RefusedError, match="minimum"):
        run(powers(3), minimum_cohort=3, dropouts={"firm-1": step})


@pytest.mark.parametrize("step", ["vote", "release"])
def test_in_retry_mode_a_member_that_uploaded_and_vanished_leaves_nothing_to_open(step):
    with pytest.raises(MessageError, match="2 members released where 3 are needed"):
        run(powers(3), dropouts={"firm-1": step})


@pytest.mark.parametrize(
    ("step", "error"),
    [("join", RefusedError), ("update", RefusedError), ("vote", RefusedError), ("release", MessageError)],
)
def test_in_threshold_mode_fewer_than_the_threshold_open_nothing(step, error):
    with pytest.raises(error, match=r"below the minimum|are needed"):
        run(powers(5), mode="threshold", dropouts={"firm-1": step, "firm-3": step})


def test_in_threshold_mode_the_threshold_is_two_thirds_and_one_unless_told_otherwise():
    gone = {"firm-0": "update", "firm-1": "update"}
    assert len(run(powers(7), mode="threshold", dropouts=gone).members) == 5
    with pytest.raises(RefusedError):
        run(powers(7), mode="threshold", threshold=6, dropouts=gone)


@pytest.mark.parametrize("threshold", [2, 3, 5])
def test_a_threshold_that_does_not_fit_the_firms_is_our_own_mistake(threshold):
    with pytest.raises(MisuseError, match="threshold"):
        run(powers(5), mode="threshold", threshold=threshold)


def test_three_firms_have_no_threshold_mode():
    with pytest.raises(MisuseError, match="threshold"):
        run(powers(3), mode="threshold")


def test_updates_of_different_sizes_are_our_own_mistake():
    with pytest.raises(MisuseError, match="one size"):
        run(powers(3) | {"firm-2": np.zeros(4, np.float32)})


def test_a_drop_out_that_is_no_firm_is_our_own_mistake():
    with pytest.raises(MisuseError, match="drop-out"):
        run(powers(3), dropouts={"firm-9": "join"})
