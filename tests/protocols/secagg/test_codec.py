"""The codec: sums of ring elements are exact, rounding is unbiased, and nothing overflows into its neighbour."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure_protocols.errors import MessageError, MisuseError
from dure_protocols.secagg.codec import Contribution, OutOfRangeError, VectorLayout, add_contribution, decode_sum
from dure_protocols.secagg.tags import OwnTag

LAYOUTS = st.builds(
    VectorLayout,
    parameters=st.integers(0, 300),
    bits=st.integers(2, 24),
    max_members=st.integers(1, 100),
    exact=st.integers(0, 5),
)


TAG_KEY = bytes(range(32))


def a_seed(rng):
    return int(rng.integers(2**64, dtype=np.uint64))


def encoded(layout, update, rng, *, weight=1.0, clip=1.0, count=1, exact=None, mask=None, residual=None):
    words = np.zeros(layout.words, np.uint64) if mask is None else mask.copy()
    contribution = Contribution(update, weight, count, np.zeros(layout.exact) if exact is None else exact)
    tag = OwnTag(TAG_KEY, "firm", rng.bytes(32))
    add_contribution(words, layout, contribution, clip=clip, rounding=a_seed(rng), tag=tag, residual=residual)
    return words


@given(layout=LAYOUTS, members=st.integers(1, 100), seed=st.integers(0, 2**32 - 1))
def test_the_mean_of_the_sum_is_within_one_step_of_the_true_mean(layout, members, seed):
    members = min(members, layout.max_members, 8)
    rng = np.random.default_rng(seed)
    updates = rng.uniform(-1.5, 1.5, (members, layout.parameters)).astype(np.float32)
    total = sum(encoded(layout, update, rng) for update in updates)
    decoded = decode_sum(total, layout, 1.0, 1)
    step = 2.0 / (2**layout.bits - 2)
    error = np.abs(decoded.mean - np.clip(updates, -1, 1).mean(axis=0))
    assert (error <= step + 2e-6).all()
    assert decoded.count == members


@given(layout=LAYOUTS, seed=st.integers(0, 2**32 - 1))
def test_masks_of_any_value_cancel_exactly(layout, seed):
    """Masked and plain sums are equal bit for bit: carries between fields of a masked word must not matter."""
    rng = np.random.default_rng(seed)
    update = rng.uniform(-2, 2, layout.parameters).astype(np.float32)
    mask = rng.integers(0, 2**64, layout.words, np.uint64)
    masked, plain = (
        encoded(
            layout,
            update,
            np.random.default_rng(seed),
            weight=0.7,
            count=3,
            exact=np.full(layout.exact, -1.25),
            mask=under,
        )
        for under in (mask, None)
    )
    assert np.array_equal(masked - mask, plain)


def test_a_full_cohort_of_largest_updates_overflows_no_field():
    layout = VectorLayout(parameters=9, bits=12, max_members=16)
    rng = np.random.default_rng(0)
    highest = np.full(9, 5.0, np.float32)
    lowest = -highest
    for pattern in (highest, lowest, np.where(np.arange(9) % 2, highest, lowest)):
        total = sum(encoded(layout, pattern, rng) for _ in range(16))
        assert np.allclose(decode_sum(total, layout, 1.0, 1).mean, np.clip(pattern, -1, 1), atol=1e-3)


def test_rounding_is_unbiased():
    layout = VectorLayout(parameters=200_000, bits=4, max_members=1)
    value = np.float32(0.1)  # 7.7 steps above -1: rounding down always would show as -0.1
    words = encoded(layout, np.full(layout.parameters, value), np.random.default_rng(1))
    mean = decode_sum(words, layout, 1.0, 1).mean
    assert len(np.unique(mean)) == 2
    assert abs(float(mean.mean()) - value) < 5 * (2 / 14) / np.sqrt(layout.parameters)


def test_the_weighted_mean_needs_nobody_to_know_a_count():
    layout = VectorLayout(parameters=4, bits=16, max_members=3)
    rng = np.random.default_rng(2)
    counts = {0.5: 100, -0.25: 300}
    total = sum(
        encoded(layout, np.full(4, value, np.float32), rng, weight=count / 1000, count=count)
        for value, count in counts.items()
    )
    decoded = decode_sum(total, layout, 1.0, 1000)
    assert decoded.count == 400
    assert np.allclose(decoded.mean, (0.5 * 100 - 0.25 * 300) / 400, atol=1e-3)


@given(values=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=5))
def test_metrics_sum_exactly_as_fixed_point_numbers(values):
    layout = VectorLayout(0, 12, 16, exact=1)
    rng = np.random.default_rng(0)
    total = sum(encoded(layout, None, rng, exact=np.array([v])) for v in values)
    expected = sum(round(v * 2**24) for v in values) / 2**24
    assert decode_sum(total, layout, 1.0, 1).exact[0] == expected


def test_two_bytes_a_parameter_up_to_sixteen_firms():
    for members in range(2, 17):
        assert VectorLayout(10_000, 12, members).size_bytes == 2 * 10_000 + 8 + 8 + 32  # count, firms, tag


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"update": np.zeros(4, np.float64)}, MisuseError),
        ({"update": np.zeros(5, np.float32)}, MisuseError),
        ({"update": np.array([0, np.nan, 0, 0], np.float32)}, OutOfRangeError),
        ({"update": np.array([0, np.inf, 0, 0], np.float32)}, OutOfRangeError),
        ({"weight": 1.5}, MisuseError),
        ({"weight": -0.1}, MisuseError),
        ({"count": -1}, OutOfRangeError),
        ({"count": 2**62}, OutOfRangeError),
        ({"exact": np.array([1e30])}, OutOfRangeError),
        ({"exact": np.array([np.nan])}, OutOfRangeError),
        ({"exact": np.zeros(2)}, MisuseError),
    ],
)
def test_what_does_not_fit_is_refused(change, error):
    layout = VectorLayout(4, 12, 4, exact=1)
    arguments = {"update": np.zeros(4, np.float32), "rng": np.random.default_rng(0)} | change
    with pytest.raises(error):
        encoded(layout, **arguments)


@pytest.mark.parametrize("count", [0, 4001])
def test_a_sum_with_an_impossible_count_is_refused(count):
    layout = VectorLayout(4, 12, 4)
    words = np.zeros(layout.words, np.uint64)
    words[layout.tail] = count, 4
    with pytest.raises(MessageError, match="count"):
        decode_sum(words, layout, clip=1.0, count_cap=1000)


@pytest.mark.parametrize("members", [0, 5, 2**63])
def test_a_sum_over_an_impossible_number_of_vectors_is_refused(members):
    layout = VectorLayout(4, 12, 4)
    words = np.zeros(layout.words, np.uint64)
    words[layout.tail] = 10, members
    with pytest.raises(MessageError, match="vectors"):
        decode_sum(words, layout, clip=1.0, count_cap=1000)


@given(layout=LAYOUTS, seed=st.integers(0, 2**32 - 1))
def test_error_feedback_keeps_exactly_what_was_not_sent(layout, seed):
    """Over many rounds the sum of what arrived differs from the sum of what was meant by the last residual alone."""
    rng = np.random.default_rng(seed)
    residual = np.zeros(layout.parameters, np.float32)
    meant, arrived = np.zeros(layout.parameters), np.zeros(layout.parameters)
    for _ in range(5):
        update = rng.uniform(-2, 2, layout.parameters).astype(np.float32)
        words = encoded(layout, update, rng, weight=0.5, residual=residual)
        meant += update * 0.5
        arrived += decode_sum(words, layout, 1.0, 1).mean
    assert np.allclose(meant - arrived, residual, atol=1e-4)


def test_a_sum_of_another_length_is_refused():
    layout = VectorLayout(4, 12, 4)
    with pytest.raises(MessageError, match="words"):
        decode_sum(np.zeros(layout.words + 1, np.uint64), layout, 1.0, 1)
