"""Summing on the bench: what the codec loses is bounded, feedback gives it back, and the clip finds its way."""

import numpy as np
import pytest

from dure_lab.summing import CodecSumming, FloatSumming
from dure_models.training import RoundResult
from dure_protocols.job import CodecTerms

CAP = 100
COUNTS = (100, 25, 400)


def results(scale, seed=0, size=500):
    random = np.random.default_rng(seed)
    return [RoundResult(random.normal(0, scale, size).astype(np.float32), count, {}) for count in COUNTS]


def codec_summing(**terms):
    terms = CodecTerms(**({"clip": 0.1, "count_cap": CAP, "bits": 12} | terms))
    return CodecSumming(terms, len(COUNTS), 500, np.random.default_rng(1))


def test_without_a_codec_the_mean_is_weighted_by_rows_under_the_cap():
    updates = [RoundResult(np.full(2, value, np.float32), n, {}) for value, n in zip((1, 2, 4), COUNTS, strict=True)]
    assert FloatSumming(CAP).mean(updates) == pytest.approx((100 + 50 + 400) / 225)


@pytest.mark.parametrize("bits", [6, 8, 12, 16])
@pytest.mark.parametrize("clip_rule", ["fixed", "rms"])
@pytest.mark.parametrize("error_feedback", [False, True])
def test_a_sum_is_within_one_step_a_firm_of_the_sum_without_a_codec(bits, clip_rule, error_feedback):
    updates = results(0.01)
    summing = codec_summing(bits=bits, clip_rule=clip_rule, error_feedback=error_feedback)
    step = 2 * summing.clip / (2**bits - 2)
    total_weight = sum(min(count, CAP) for count in COUNTS) / CAP
    error = np.abs(summing.mean(updates) - FloatSumming(CAP).mean(updates))
    assert error.max() <= 1.01 * len(COUNTS) * step / total_weight
    assert error.max() > 0


def drift(summing, rounds=60, scale=0.01):
    """How far the model is from where float32 would have led it, root mean square, after some rounds."""
    total = np.zeros(500)
    for round_ in range(rounds):
        updates = results(scale, seed=round_)
        total += summing.mean(updates).astype(np.float64) - FloatSumming(CAP).mean(updates)
    return float(np.sqrt(np.square(total).mean()))


def test_with_feedback_the_losses_of_all_rounds_add_up_to_the_last_one_alone():
    without, with_feedback = (drift(codec_summing(bits=6, error_feedback=feedback)) for feedback in (False, True))
    one_round = drift(codec_summing(bits=6), rounds=1)
    assert with_feedback < 2 * one_round
    assert without > 3 * with_feedback


def test_feedback_gives_back_what_a_narrow_first_clip_cut_off():
    narrow = {"bits": 12, "clip": 0.001, "clip_rule": "rms"}
    assert drift(codec_summing(**narrow)) > 20 * drift(codec_summing(**narrow, error_feedback=True))


@pytest.mark.parametrize("first", [1e-4, 0.08, 60.0])
def test_a_moving_clip_finds_its_place_from_any_first_one(first):
    summing = codec_summing(clip=first, clip_rule="rms")
    for round_ in range(8):
        summing.mean(results(0.01, seed=round_))
    pooled = np.sqrt(0.01**2 * np.mean([1.0, 0.25**2, 1.0]))
    assert summing.clip == pytest.approx(8 * pooled, rel=0.1)


def test_a_fixed_clip_stays():
    summing = codec_summing(clip_rule="fixed")
    summing.mean(results(0.01))
    assert summing.clip == 0.1
