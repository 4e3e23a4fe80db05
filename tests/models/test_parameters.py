"""Flat parameters: the first model is the same bytes everywhere, and vectors go in and out of modules unchanged."""

import hashlib

import numpy as np
import pytest
from torch import nn

from dure_models.parameters import (
    ParameterShape,
    flatten,
    initial_from_layout,
    initial_parameters,
    layout_of,
    load,
    num_parameters,
)
from dure_protocols.errors import MisuseError

LAYOUT = (ParameterShape("a.weight", (3, 4)), ParameterShape("a.bias", (3,)), ParameterShape("norm.weight", (3,)))


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Conv1d(2, 2, 3))


def test_the_first_model_is_these_very_bytes():
    vector = initial_from_layout(LAYOUT, 7)
    assert vector.dtype == np.float32
    expected = "9ae269e09e8febf4a02d0bd61c520428a3acc44fbbd9a3a965b72857a9aacc38"
    assert hashlib.sha256(vector.tobytes()).hexdigest() == expected


def test_biases_start_at_zero_gains_at_one_and_matrices_within_their_bound():
    vector = initial_from_layout(LAYOUT, 7)
    assert (vector[12:15] == 0).all()
    assert (vector[15:] == 1).all()
    assert np.abs(vector[:12]).max() < np.sqrt(3 / 4)


def test_matrices_have_variance_one_over_fan_in_and_mean_zero():
    vector = initial_from_layout((ParameterShape("w", (1000, 25)),), 1)
    assert vector.mean() == pytest.approx(0, abs=0.01)
    assert vector.var() == pytest.approx(1 / 25, rel=0.05)


def test_another_seed_name_or_shape_is_another_stream():
    vectors = [
        initial_from_layout((ParameterShape(name, shape),), seed).tobytes()
        for name, shape, seed in [("w", (2, 6), 0), ("w", (2, 6), 1), ("v", (2, 6), 0), ("w", (3, 6), 0)]
    ]
    assert len({vector[:32] for vector in vectors}) == 4


def test_what_is_loaded_is_flattened_again():
    module = network()
    vector = initial_parameters(module, 3)
    assert vector.shape == (num_parameters(layout_of(module)),)
    load(module, vector)
    assert flatten(module).tobytes() == vector.tobytes()


def test_a_vector_of_another_length_is_refused():
    with pytest.raises(MisuseError, match="parameters, a vector of shape"):
        load(network(), np.zeros(3, np.float32))


def test_a_module_with_state_outside_its_parameters_is_refused():
    with pytest.raises(MisuseError, match="LayerNorm or GroupNorm"):
        layout_of(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
