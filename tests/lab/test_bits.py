"""`dure bench bits`, small: arms differ in nothing but the sum, and noise is told by pairs and by the control."""

import json

import numpy as np
import pytest

from dure_lab.bench import bits
from dure_protocols.errors import MisuseError


@pytest.fixture(scope="module")
def small():
    return bits.bench_bits(None, 2, num_rounds=1, widths=(16, 2), clip_errors={"÷ 16": 1 / 16})


def test_every_width_is_measured_with_each_clip_rule_with_and_without_feedback(small):
    found = {(arm.bits, arm.clip_rule, arm.error_feedback) for arm in small.arms}
    assert found == {
        (None, None, None),
        *((width, rule, feedback) for width in (16, 12, 2) for rule in ("fixed", "rms") for feedback in (False, True)),
    }
    assert {arm.first_clip for arm in small.arms if arm.bits == 12} == {0.1 / 16}


def arm_of(result, name):
    (arm,) = (arm for arm in result.arms if arm.name == name)
    return arm


def test_sixteen_bits_are_closer_to_float32_than_two(small):
    fine, coarse = (abs(arm_of(small, f"{width} bits, fixed clip").validation[0]) for width in (16, 2))
    assert fine < coarse


def test_float32_is_its_own_measure_and_the_control_differs_in_its_batches_alone(small):
    reference, control = small.arms[:2]
    assert (reference.name, reference.difference, reference.seeds_better) == (bits.FLOAT, (0.0, 0.0), 0)
    assert control.name == bits.CONTROL
    assert control.validation[1] > 0


def test_the_differences_follow_from_what_is_printed_for_every_seed(small):
    firms = [name for name in small.every_seed[0] if name not in ("arm", "seed", "selection")]
    score = {(one["arm"], one["seed"]): np.mean([one[firm] for firm in firms]) for one in small.every_seed}
    for arm in small.arms:
        differences = [score[arm.name, seed] - score[bits.FLOAT, seed] for seed in (1, 2)]
        assert arm.difference == pytest.approx((np.mean(differences), np.std(differences, ddof=1)), abs=1e-6)


def test_the_table_has_a_line_an_arm_and_json_holds_it_all(small):
    lines = bits.table(small).splitlines()
    assert len(lines) == 2 + len(small.arms)
    assert len({line.count("|") for line in lines}) == 1
    assert json.loads(small.model_dump_json())["seeds"] == 2


def test_a_seed_repeats_exactly_whatever_other_arms_there_are(small):
    again = bits.bench_bits(None, 2, num_rounds=1, widths=(2,), clip_errors={})
    assert len(again.arms) == 6
    assert all(arm == arm_of(small, arm.name) for arm in again.arms)


def test_one_seed_tells_nothing_about_noise():
    with pytest.raises(MisuseError, match="two seeds"):
        bits.bench_bits(None, 1)


@pytest.mark.parametrize(
    ("differences", "control", "verdict"),
    [
        ([0.3, 0.4, 0.5], [0.1, -0.1, 0.1], True),
        ([0.3, -0.4, 0.5], [0.1, -0.1, 0.1], False),  # scatters more than it amounts to
        ([0.03, 0.04, 0.05], [0.1, -0.1, 0.1], False),  # steady, and less than another order of batches makes
        ([-0.3, -0.4, -0.5], [0.1, -0.1, 0.1], True),
    ],
)
def test_a_difference_is_more_than_noise_if_it_beats_its_scatter_and_the_control(differences, control, verdict):
    assert bits.more_than_noise(np.array(differences), np.array(control)) is verdict
