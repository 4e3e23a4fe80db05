"""The global state: every firm that applies the same sums holds the same model, bit for bit, and the same hash."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure_protocols.clip import next_clip
from dure_protocols.errors import MessageError, RefusedError
from dure_protocols.global_state import (
    GlobalState,
    first_round,
    last_round,
    layout_of,
    model_digest,
    moves_clip,
)
from dure_protocols.job import JobFile
from dure_protocols.secagg.codec import Contribution, add_contribution
from dure_protocols.secagg.tags import OwnTag
from tests.protocols.test_job import VALUES

INITIAL = np.linspace(-1, 1, 10, dtype=np.float32)


def a_job(statistics=0, **changes):
    model = VALUES["model"] | {"initial_digest": model_digest(INITIAL).hex(), "statistics": statistics}
    return JobFile.model_validate(VALUES | {"model": model} | changes)


def published(job, round_, value=0.05, *, members=3, loss=1.0, fill=0.0, clip=None):
    """A sum of `members` equal contributions; `fill` is each one's, `clip` the job's first unless given."""
    layout = layout_of(job, round_)
    words = np.zeros(layout.words, np.uint64)
    exact = np.full(layout.exact, loss) if round_ else np.arange(layout.exact, dtype=np.float64)
    if round_:
        exact[1::2] = 1.0
    if moves_clip(job, round_):
        exact[-1] = fill
    update = np.full(layout.parameters, value, np.float32) if layout.parameters else None
    contribution = Contribution(update, 1.0, job.codec.count_cap, exact)
    tag = OwnTag(bytes(32), "firm", bytes(32))
    for member in range(members):
        add_contribution(words, layout, contribution, clip=clip or job.codec.clip, rounding=member, tag=tag)
    return words


def a_moving_job(**changes):
    return a_job(codec={"clip": 0.1, "count_cap": 1000, "clip_rule": "rms"}, **changes)


def test_rounds_of_a_job():
    assert (first_round(a_job()), last_round(a_job())) == (1, 6)
    assert (first_round(a_job(statistics=2)), last_round(a_job(selection_metric=None))) == (0, 5)


def test_another_first_model_is_refused():
    with pytest.raises(RefusedError, match="job file names"):
        GlobalState(a_job(), INITIAL + 1)


@given(rates=st.floats(0.1, 2), values=st.lists(st.floats(-0.1, 0.1), min_size=1, max_size=4))
def test_two_sides_with_the_same_sums_agree_bit_for_bit(rates, values):
    job = a_job(server_step={"learning_rate": rates})
    one, other = GlobalState(job, INITIAL), GlobalState(job, INITIAL.copy())
    for number, value in enumerate(values, 1):
        words = published(job, number, value)
        for side in (one, other):
            side.advance(words, 3)
    assert np.array_equal(one.model, other.model)
    assert one.hash == other.hash


def test_the_hash_changes_with_model_round_and_normalisation():
    job = a_job(statistics=2)
    state = GlobalState(job, INITIAL)
    hashes = [state.hash]
    for round_, value in ((0, 0.0), (1, 0.0), (2, 0.05)):
        state.advance(published(job, round_, value), 3)
        hashes.append(state.hash)
    assert len(set(hashes)) == 4


def test_statistics_fix_the_normalisation_once():
    job = a_job(statistics=2)
    state = GlobalState(job, INITIAL)
    state.advance(published(job, 0), 3)
    assert state.normalisation.tolist() == [0.0, 3.0, 6.0]
    assert state.round == 1


def test_the_best_model_is_the_one_before_the_round_that_measured_it():
    job = a_job()
    state = GlobalState(job, INITIAL)
    models = [state.model]
    for round_, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
        outcome = state.advance(published(job, round_, loss=loss), 3)
        assert outcome.metrics == {"validation_loss": pytest.approx(loss)}
        models.append(state.model)
    assert np.array_equal(state.final, models[1])
    assert state.best.round == 2


def test_the_closing_round_leaves_the_model_and_may_choose_it():
    job = a_job(rounds=1)
    state = GlobalState(job, INITIAL)
    state.advance(published(job, 1, loss=2.0), 3)
    trained = state.model
    state.advance(published(job, 2, loss=1.0), 3)
    assert np.array_equal(state.model, trained)
    assert np.array_equal(state.final, trained)


def test_a_sum_of_another_round_s_size_is_refused():
    job = a_job(statistics=2)
    with pytest.raises(MessageError, match="words"):
        GlobalState(job, INITIAL).advance(published(job, 1), 3)


def test_only_training_rounds_before_the_last_carry_fills():
    job, fixed = a_moving_job(statistics=2, rounds=3), a_job(statistics=2, rounds=3)
    more = [layout_of(job, round_).exact - layout_of(fixed, round_).exact for round_ in range(5)]
    assert more == [0, 1, 1, 0, 0]


def test_the_clip_follows_the_published_fills_and_the_next_sum_is_decoded_by_it():
    job = a_moving_job()
    state = GlobalState(job, INITIAL)
    state.advance(published(job, 1, 0.0, fill=0.25), 3)
    assert state.clip == next_clip(job.codec, 0.1, 0.75, 3) == 0.4
    before = state.model
    outcome = state.advance(published(job, 2, 0.3, clip=0.4), 3)
    assert np.allclose(state.model - before, 0.3, atol=1e-3)
    assert outcome.metrics == {"validation_loss": pytest.approx(1.0)}


def test_a_fixed_clip_stays():
    job = a_job()
    state = GlobalState(job, INITIAL)
    state.advance(published(job, 1), 3)
    assert state.clip == job.codec.clip


def test_firms_with_the_same_model_and_another_clip_do_not_agree_on_the_hash():
    one, other = GlobalState(a_moving_job(), INITIAL), GlobalState(a_moving_job(), INITIAL)
    other.resume(one.round, one.model, one.normalisation, one.best, one.clip * 2, one.moments)
    assert one.hash != other.hash


def test_another_clip_does_not_make_a_model_new_to_a_firm_that_contributed_on_it():
    one, other = GlobalState(a_moving_job(), INITIAL), GlobalState(a_moving_job(), INITIAL)
    other.resume(one.round, one.model, one.normalisation, one.best, one.clip * 2, one.moments)
    assert one.key == other.key


@given(fills=st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_two_sides_with_the_same_fills_agree_on_every_clip(fills):
    job = a_moving_job()
    one, other = GlobalState(job, INITIAL), GlobalState(job, INITIAL.copy())
    for round_, part in enumerate(fills, 1):
        words = published(job, round_, 0.0, fill=part, clip=one.clip)
        for side in (one, other):
            side.advance(words, 3)
        assert one.clip.hex() == other.clip.hex()
        assert one.hash == other.hash


def test_a_sum_over_more_or_fewer_firms_than_announced_is_refused_and_changes_nothing():
    job = a_job()
    state = GlobalState(job, INITIAL)
    before = state.hash
    for members in (2, 4):
        with pytest.raises(MessageError, match="announced"):
            state.advance(published(job, 1, members=3), members)
    assert state.hash == before
