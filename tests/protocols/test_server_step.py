"""The server step: each algorithm by hand and against its formula in doubles; nothing written in place; job files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dure_protocols.errors import MisuseError
from dure_protocols.global_state import GlobalState, model_digest
from dure_protocols.job import FedAdagradTerms, FedAdamTerms, FedAvgMTerms, FedAvgTerms, FedYogiTerms, JobFile
from dure_protocols.server_step import Moments, first_moments, num_moments, server_step
from tests.protocols.test_global_state import INITIAL, a_job, published
from tests.protocols.test_job import VALUES

TERMS = (
    FedAvgTerms(learning_rate=1.0),
    FedAvgTerms(learning_rate=0.7),
    FedAvgMTerms(learning_rate=0.7, momentum=0.9),
    FedAdagradTerms(learning_rate=0.1),
    FedAdamTerms(learning_rate=0.01),
    FedYogiTerms(learning_rate=0.01),
)
ADAPTIVE = {"learning_rate": 1.0, "momentum": 0.5, "decay": 0.5, "adaptivity": 0.5}
by_kind = pytest.mark.parametrize("terms", TERMS, ids=lambda terms: terms.kind)


def run(terms, model, means):
    moments = first_moments(terms, model.size)
    for mean in means:
        model, moments = server_step(terms, model, mean, moments)
    return model, moments


def in_doubles(terms, model, means):
    """The formulae of docs/protocol.md, 7.3, without regard to how float32 rounds."""
    model, first, second = model.astype(np.float64), 0.0, getattr(terms, "adaptivity", 0.0) ** 2
    for mean in (each.astype(np.float64) for each in means):
        if terms.kind == "fedavg":
            model = model + terms.learning_rate * mean
            continue
        if terms.kind == "fedavgm":
            first = terms.momentum * first + mean
            model = model + terms.learning_rate * first
            continue
        beta = getattr(terms, "momentum", 0.0)
        first = beta * first + (1 - beta) * mean
        if terms.kind == "fedadagrad":
            second = second + mean**2
        elif terms.kind == "fedadam":
            second = terms.decay * second + (1 - terms.decay) * mean**2
        else:
            second = second - (1 - terms.decay) * mean**2 * np.sign(second - mean**2)
        model = model + terms.learning_rate * first / (np.sqrt(second) + terms.adaptivity)
    return model


@by_kind
@given(
    values=st.lists(
        st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3),
        min_size=1,
        max_size=8,
    )
)
def test_the_step_is_its_formula_up_to_float32(terms, values):
    model = np.array([1.0, -0.5, 0.0], np.float32)
    means = [np.array(row, np.float32) for row in values]
    got, _ = run(terms, model, means)
    assert got.dtype == np.float32
    assert np.allclose(got, in_doubles(terms, model, means), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("terms", "models", "moments"),
    [
        (FedAvgTerms(learning_rate=0.5), [2.0, 3.0], []),
        (FedAvgMTerms(learning_rate=1.0, momentum=0.5), [3.0, 6.0], [3.0]),
        (FedAdamTerms(**(ADAPTIVE | {"decay": 0.0})), [1.4, 2.0], [1.5, 4.0]),
        (FedYogiTerms(**(ADAPTIVE | {"decay": 0.0})), None, [1.5, 0.25]),
    ],
    ids=["fedavg", "fedavgm", "fedadam", "fedyogi"],
)
def test_two_steps_with_a_mean_of_two_by_hand(terms, models, moments):
    model, mean, memory = np.ones(1, np.float32), np.full(1, 2.0, np.float32), first_moments(terms, 1)
    after = []
    for _ in range(2):
        model, memory = server_step(terms, model, mean, memory)
        after.append(float(model[0]))
    assert models is None or after == pytest.approx(models)
    assert [float(vector[0]) for vector in memory.vectors] == moments


def test_yogi_moves_down_by_the_square_where_adam_forgets_in_proportion():
    """Second moment 16, mean 2: Yogi takes 0.5 · 4 off, Adam goes half of the way."""
    vectors = (np.zeros(1, np.float32), np.full(1, 16.0, np.float32))
    mean = np.full(1, 2.0, np.float32)
    seconds = [
        float(server_step(kind(**ADAPTIVE), np.zeros(1, np.float32), mean, Moments(vectors))[1].vectors[1][0])
        for kind in (FedYogiTerms, FedAdamTerms)
    ]
    assert seconds == [14.0, 10.0]


def test_the_second_moment_begins_at_the_square_of_the_adaptivity():
    assert [v.tolist() for v in first_moments(FedAdamTerms(adaptivity=0.5), 2).vectors] == [[0, 0], [0.25, 0.25]]
    assert [v.tolist() for v in first_moments(FedAdagradTerms(adaptivity=0.5), 1).vectors] == [[0.25]]


@by_kind
def test_a_step_changes_nothing_that_it_was_given(terms):
    given_ = [np.full(4, value, np.float32) for value in (1.0, 0.25)]
    moments = first_moments(terms, 4)
    before = [vector.copy() for vector in (*given_, *moments.vectors)]
    server_step(terms, *given_, moments)
    assert all(np.array_equal(*pair) for pair in zip(before, (*given_, *moments.vectors), strict=True))


@by_kind
def test_the_next_model_may_take_the_mean_s_place(terms):
    model, mean, moments = np.float32([1, -0.0]), np.float32([0.25, -0.0]), first_moments(terms, 2)
    expected, remembered = server_step(terms, model, mean, moments)
    got, again = server_step(terms, model, mean, moments, out=mean)
    assert got.tobytes() == expected.tobytes()
    assert remembered.digests == again.digests


@by_kind
def test_every_element_goes_its_own_way(terms):
    """No reductions, and the same bits wherever an element stands: vector registers and the scalars behind them."""
    chance = np.random.default_rng(1)
    means = [chance.normal(0, 3, 37).astype(np.float32) for _ in range(3)]
    model = chance.normal(0, 1, 37).astype(np.float32)
    whole, _ = run(terms, model, means)
    alone = [run(terms, model[at : at + 1], [mean[at : at + 1] for mean in means])[0] for at in range(37)]
    assert whole.tobytes() == np.concatenate(alone).tobytes()


@by_kind
def test_moments_of_another_algorithm_or_size_are_refused(terms):
    ones = np.ones(2, np.float32)
    other = FedAvgTerms() if num_moments(terms) else FedAdamTerms()
    with pytest.raises(MisuseError, match="moments"):
        server_step(terms, ones, ones, first_moments(other, 2))
    with pytest.raises(MisuseError, match="takes no mean"):
        server_step(terms, ones, np.ones(3, np.float32), first_moments(terms, 2))


def test_a_fedavg_job_s_bytes_say_what_they_always_said():
    assert b'"server_step":{"kind":"fedavg","learning_rate":1.0}' in a_job().to_bytes()


@by_kind
def test_a_job_file_keeps_its_server_step(terms):
    job = a_job(server_step=terms.model_dump())
    assert JobFile.from_bytes(job.to_bytes()).server_step == terms


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "fedavg", "momentum": 0.9},
        {"kind": "fedavgm", "momentum": 1.0},
        {"kind": "fedadam", "decay": -0.1},
        {"kind": "fedyogi", "adaptivity": 0.0},
        {"kind": "adam"},
    ],
)
def test_a_step_that_is_none_is_refused(table):
    with pytest.raises(ValidationError):
        JobFile.model_validate(VALUES | {"server_step": table})


@by_kind
def test_the_state_s_hash_and_snapshot_hold_the_moments(terms):
    job = a_job(server_step=terms.model_dump())
    state = GlobalState(job, INITIAL)
    for round_, value in ((1, 0.05), (2, -0.03)):
        state.advance(published(job, round_, value), 3)
    words = state.to_words()
    taken = GlobalState(job, INITIAL).standing_at(words)
    assert taken.hash == state.hash
    for side in (state, taken):
        side.advance(published(job, 3, 0.02), 3)
    assert taken.model.tobytes() == state.model.tobytes()
    assert taken.hash == state.hash
    for at in range(num_moments(terms)):
        changed = GlobalState(job, INITIAL).standing_at(words)
        vectors = [vector.copy() for vector in changed.moments.vectors]
        vectors[at][-1] += 1
        changed.resume(
            changed.round, changed.model, changed.normalisation, changed.best, changed.clip, Moments(tuple(vectors))
        )
        assert changed.hash != taken.hash
        assert changed.key == GlobalState(job, INITIAL).standing_at(words).key


def test_a_fedavg_state_s_words_and_hash_hold_nothing_new():
    state = GlobalState(a_job(), INITIAL)
    assert state.moments.vectors == ()
    assert state.to_words().size == 5 + INITIAL.size // 2
    assert model_digest(state.model) == state.digest
