"""The clip: fills say how far a field is used, and the next clip follows from public numbers, the same everywhere."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure_protocols.clip import fill, next_clip
from dure_protocols.errors import MisuseError
from dure_protocols.job import CodecTerms

TERMS = CodecTerms(clip=0.1, count_cap=1000, clip_rule="rms", clip_factor=8.0)


def constant(value, size=100):
    return np.full(size, value, np.float32)


@pytest.mark.parametrize(
    ("value", "weight", "residual", "expected"),
    [
        (0.0, 1.0, None, 0.0),
        (0.5, 1.0, None, 1 / 16),
        (-0.5, 0.5, None, 1 / 64),
        (0.5, 0.5, 0.25, 1 / 16),
        (0.5, 1.0, -0.5, 0.0),
        (9.0, 1.0, None, 1.0),
    ],
)
def test_a_fill_is_the_mean_square_of_what_is_quantised_in_units_of_the_clip(value, weight, residual, expected):
    residual = None if residual is None else constant(residual)
    assert fill(constant(value), weight, 2.0, residual) == pytest.approx(expected)


def test_a_large_update_is_judged_by_runs_from_all_its_parts():
    size = 5_000_000
    random = np.random.default_rng(1)
    update = random.normal(0, 0.01, size).astype(np.float32)
    update[size // 2 :] *= 3
    everything = float(np.square(np.clip(update.astype(np.float64) / 0.1, -1, 1)).mean())
    assert fill(update, 1.0, 0.1) == pytest.approx(everything, rel=0.01)


def test_of_a_large_update_the_residual_is_taken_from_the_same_places():
    update = np.random.default_rng(1).normal(0, 0.01, 3_000_000).astype(np.float32)
    assert fill(update, 1.0, 0.1, -update) == 0.0


@pytest.mark.parametrize(("weight", "clip"), [(1.5, 1.0), (-0.1, 1.0), (0.5, 0.0), (float("nan"), 1.0)])
def test_an_impossible_weight_or_clip_is_a_misuse(weight, clip):
    with pytest.raises(MisuseError):
        fill(constant(0.1), weight, clip)


@pytest.mark.parametrize(
    ("clip", "fills", "members", "expected"),
    [
        (0.1, 3 / 64, 3, 0.1),  # the root mean square is an eighth of the clip: just right
        (0.1, 12 / 64, 3, 0.2),
        (0.1, 3 / 256, 3, 0.05),
        (0.1, 3.0, 3, 0.4),  # all of it clipped: four times wider
        (0.1, 0.0, 3, 0.025),  # nothing to be seen: four times narrower
        (0.1, -5.0, 3, 0.025),  # what no honest sum holds
        (0.1, 1e30, 3, 0.4),
    ],
)
def test_the_next_clip_is_the_factor_times_the_root_mean_square_within_bounds(clip, fills, members, expected):
    assert next_clip(TERMS, clip, fills, members) == pytest.approx(expected)


def test_the_clip_stays_within_a_million_of_the_first():
    narrow = wide = TERMS.clip
    for _ in range(100):
        narrow, wide = next_clip(TERMS, narrow, 0.0, 3), next_clip(TERMS, wide, 3.0, 3)
    assert (narrow, wide) == (0.1 / 2**20, 0.1 * 2**20)


@given(fills=st.integers(-(2**63), 2**63 - 1), members=st.integers(1, 1000), start=st.floats(-20, 20))
def test_whatever_the_sum_holds_the_clip_is_finite_and_positive(fills, members, start):
    clip = next_clip(TERMS, TERMS.clip * 2.0**start, fills / 2**24, members)
    assert math.isfinite(clip)
    assert clip > 0


def test_a_sum_without_members_is_a_misuse():
    with pytest.raises(MisuseError):
        next_clip(TERMS, 0.1, 0.0, 0)


def test_the_clip_follows_updates_that_shrink_a_hundredfold():
    clip, rms = TERMS.clip, 0.02
    random = np.random.default_rng(3)
    for _ in range(30):
        updates = random.normal(0, rms, (3, 1000)).astype(np.float32)
        clip = next_clip(TERMS, clip, sum(fill(update, 1.0, clip) for update in updates), 3)
        assert 4 < clip / rms < 12
        rms *= 0.85


def rounded(exact):
    """The double nearest to a rational number, as IEEE 754 demands of every operation."""
    return Fraction(float(exact))


def root(value):
    with localcontext(prec=80):
        return rounded(Fraction((Decimal(value.numerator) / Decimal(value.denominator)).sqrt()))


@given(fills=st.lists(st.floats(0.01, 3), min_size=1, max_size=4))
def test_each_operation_rounds_once_so_that_all_machines_agree(fills):
    clip = exact = TERMS.clip
    for part in fills:
        clip = next_clip(TERMS, clip, part, 3)
        ratio = rounded(Fraction(TERMS.clip_factor) * root(rounded(Fraction(part) / 3)))
        exact = float(Fraction(exact) * min(max(ratio, Fraction(1, 4)), Fraction(4)))
    assert clip == exact
