"""The compiled arithmetic equals its numpy twin bit for bit."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dure_protocols.secagg import codec, rows, tags
from dure_protocols.secagg.layout import ROW_WORDS, VectorLayout

kernels = pytest.importorskip("dure_protocols.secagg.kernels", reason="numba is missing: pip install numba")

WIDTHS = [(bits, members) for bits in (16, 12, 8, 6, 3, 24) for members in (3, 16, 100)]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.9999999, 1e-30, -1e-38, 1e30, -3e38, 1.4e-45]


def around_rows(fields):
    """Sizes about whole rows, where the last row begins, ends or is missing."""
    row = ROW_WORDS * fields
    near = [multiple * row + extra for multiple in (0, 1, 2) for extra in (-fields, -1, 0, 1, fields + 1, 7)]
    return st.one_of(st.integers(0, 3 * row), st.sampled_from([size for size in near if size >= 0]))


@st.composite
def cases(draw):
    bits, members = draw(st.sampled_from(WIDTHS))
    if bits + (members - 1).bit_length() > 32:
        members = 3
    layout = VectorLayout(draw(around_rows(VectorLayout(1, bits, members).fields)), bits, members)
    return layout, draw(st.integers(0, 2**64 - 1)), draw(st.floats(0, 1)), draw(st.booleans())


def values_of(layout, seed, scale=0.5):
    rng = np.random.default_rng(seed)
    values = rng.normal(0, scale, layout.parameters).astype(np.float32)
    values[rng.random(values.size) < 0.05] = rng.choice(np.array(SPECIAL, np.float32))
    return values


@settings(max_examples=120, deadline=None)
@given(cases())
def test_quantising_packing_tagging_and_residuals_are_equal_bit_for_bit(case):
    layout, seed, weight, feedback = case
    update = values_of(layout, seed)
    kept = np.clip(values_of(layout, seed ^ 1, 0.01), -1e30, 1e30)  # with an update of 3e38 it must not overflow
    quantiser = rows.Quantiser.of(layout, weight, 0.3, seed)
    key = tags.TagKey.of(layout, seed.to_bytes(32, "big"))
    masks = np.random.default_rng(seed).integers(0, 2**64, layout.packed_words, np.uint64)
    results = []
    for arithmetic in (rows, kernels):
        words, residual = masks.copy(), kept.copy() if feedback else None
        tag = arithmetic.add_quantised(words, layout, update, residual, quantiser, key)
        assert tag is not None
        results.append((words.tobytes(), b"" if residual is None else residual.tobytes(), tag % tags.PRIME))
    assert results[0] == results[1]


def test_the_arithmetic_without_a_tag_packs_the_same_words():
    layout, quantised = VectorLayout(9000, 12, 16), []
    for tagged in (True, False):
        words = np.zeros(layout.packed_words, np.uint64)
        update, key = values_of(layout, 5), tags.TagKey.of(layout, bytes(32))
        quantiser = rows.Quantiser.of(layout, 1.0, 0.3, 5)
        quantised.append((words, kernels.add_quantised(words, layout, update, None, quantiser, key, tagged=tagged)))
    (one, tag), (other, no_tag) = quantised
    assert np.array_equal(one, other)
    assert no_tag == 0 != tag


@settings(max_examples=120, deadline=None)
@given(cases())
def test_the_tag_of_a_sum_and_its_means_are_equal_bit_for_bit(case):
    layout, seed, _, stray = case
    owned = layout.fields * layout.field_bits
    words = np.random.default_rng(seed).integers(0, 2**64, layout.packed_words, np.uint64)
    if not stray and owned < 64:
        words &= np.uint64(2**owned - 1)
    key = tags.TagKey.of(layout, seed.to_bytes(32, "big"))
    one, other = rows.tag_of(words, layout, key), kernels.tag_of(words, layout, key)
    assert (one is None) == (other is None)
    assert one is None or one % tags.PRIME == other % tags.PRIME
    means = [np.empty(layout.parameters, np.float32) for _ in range(2)]
    for arithmetic, mean in zip((rows, kernels), means, strict=True):
        arithmetic.unpack(words, layout, mean, 7 * rows.middle_of(layout), np.float32(0.125))
    assert means[0].tobytes() == means[1].tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 1500, -1])
@pytest.mark.parametrize("where", ["update", "residual"])
def test_what_is_not_finite_is_found_wherever_it_stands(bad, at, where):
    layout = VectorLayout(3000, 12, 16)
    given_values = {"update": np.zeros(3000, np.float32), "residual": np.zeros(3000, np.float32)}
    given_values[where][at] = bad
    quantiser, key = rows.Quantiser.of(layout, 1.0, 1.0, 0), tags.TagKey.of(layout, bytes(32))
    for arithmetic in (rows, kernels):
        words = np.zeros(layout.packed_words, np.uint64)
        residual = given_values["residual"].copy()
        assert arithmetic.add_quantised(words, layout, given_values["update"], residual, quantiser, key) is None


def test_large_vectors_take_the_compiled_way_and_small_ones_do_not():
    assert codec._arithmetic(VectorLayout(codec.COMPILED_FROM, 12, 16)) is kernels
    assert codec._arithmetic(VectorLayout(codec.COMPILED_FROM - 1, 12, 16)) is rows


def test_importing_the_protocols_imports_no_numba():
    code = "import sys, dure_protocols.secagg.run; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_warming_up_compiles_what_a_round_needs():
    layout = VectorLayout(codec.COMPILED_FROM, 7, 5)
    codec.warm_up(layout)
    assert kernels._quantising(layout.fields, layout.bits, False, True).signatures
    assert kernels._unpacking(layout.fields).signatures
