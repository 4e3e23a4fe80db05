"""The one function that runs all parties."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dure_protocols.errors import RefusedError
from dure_protocols.secagg.run import run_secure_aggregation


def run(updates, **options):
    return run_secure_aggregation(updates, randomness=random.Random(0).randbytes, **options)


def powers(num_firms, size=5):
    return {f"firm-{i}": np.full(size, 2.0**-i, np.float32) for i in range(num_firms)}


@settings(max_examples=25, deadline=None)
@given(
    num_firms=st.integers(3, 8),
    gone=st.sets(st.integers(0, 7), max_size=3),
    bits=st.integers(6, 20),
    size=st.integers(1, 40),
)
def test_the_mean_is_over_exactly_the_survivors(num_firms, gone, bits, size):
    updates = powers(num_firms, size)
    dropouts = [f"firm-{i}" for i in gone if i < num_firms][: num_firms - 2]
    result = run(updates, bits=bits, dropouts=dropouts)
    survivors = [firm for firm in updates if firm not in dropouts]
    assert result.members == tuple(survivors)
    assert result.count == len(survivors)
    expected = np.mean([updates[firm] for firm in survivors], axis=0)
    assert np.allclose(result.mean, expected, atol=2 / (2**bits - 2) + 1e-6)


def test_counts_weigh_the_mean():
    updates = powers(3)
    counts = {"firm-0": 10, "firm-1": 20, "firm-2": 70}
    result = run(updates, counts=counts, bits=16)
    assert result.count == 100
    assert np.allclose(result.mean, 0.1 * 1 + 0.2 * 0.5 + 0.7 * 0.25, atol=1e-3)


def test_the_same_randomness_gives_the_same_bits():
    """KEM ciphertexts draw from the operating system; the published sum does not depend on them."""
    first, second = run(powers(3)), run(powers(3))
    assert np.array_equal(first.integer_sum, second.integer_sum)


def test_fewer_than_the_minimum_cohort_is_refused():
    with pytest.raises(RefusedError, match="minimum"):
        run(powers(3), minimum_cohort=3, dropouts=["firm-1"])
