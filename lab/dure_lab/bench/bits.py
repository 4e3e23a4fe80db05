"""`dure bench bits`: what the codec costs in accuracy, against plain float32, seed by seed.

Every arm of a seed has the same deal, split, first model and order of batches; only the sum differs. The sums are the
protocol's own integers over the real number of firms (`dure_lab.summing`); masks are left out, they cancel. Nothing is
tuned: one learning rate, the task's own; the checkpoint is chosen on validation rows; test rows are touched once.

Training amplifies any difference, however small. What such a difference may come to, the control arm shows: it is
float32 with another order of each firm's batches. A difference counts as more than noise if its mean is larger than its
own standard deviation over the seeds, than two standard errors, and than what the control's differences come to (root
mean square): what the order of batches decides as well, no codec need be judged by.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dure_lab import arms
from dure_lab.datasets import catalogue
from dure_lab.summing import CodecSumming, FloatSumming, Summing
from dure_models import registry
from dure_models.interface import Metric
from dure_models.training import OwnResult, TrainingData, TrainingSettings
from dure_protocols.errors import MisuseError
from dure_protocols.job import CodecTerms

WIDTHS = (16, 12, 8, 6)
FLOAT = "float32"
CONTROL = "float32, other batches"
CLIP_ERRORS = {"÷ 16": 1 / 16, "× 16": 16.0}
"""First clips that are wrong by this factor, at the default width: what an operator may do who has to guess."""

_OTHER_BATCHES = 500
_RULES = {"fixed": "fixed clip", "rms": "moving clip"}


class BitsArm(BaseModel):
    """One way to add updates, over the seeds.

    Pairs are mean and standard deviation over the seeds. score: the primary metric's mean over firms; difference: of
    the score to float32's, within a seed, positive when this arm is better; smallest_firm: the same for the firm with
    the fewest rows; validation: the same of the selection metric, a loss, at the best checkpoint, as a part of
    float32's.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    bits: int | None
    clip_rule: str | None
    error_feedback: bool | None
    first_clip: float | None
    score: tuple[float, float]
    difference: tuple[float, float]
    seeds_better: int
    more_than_noise: bool
    smallest_firm: tuple[float, float]
    validation: tuple[float, float]
    validation_more_than_noise: bool


class BitsBenchmark(BaseModel):
    """What `dure bench bits --json` prints. every_seed: each firm's score and the selection metric, by arm and seed."""

    model_config = ConfigDict(frozen=True)

    data: str
    simulated: bool
    metric: str
    higher_is_better: bool
    seeds: int
    rounds: int
    firms: int
    smallest_firm: str
    arms: tuple[BitsArm, ...]
    every_seed: tuple[Mapping[str, str | int | float], ...]


@dataclass(frozen=True)
class _Arm:
    """An arm's name, its codec (None: float32) and what is added to the seed of the batches."""

    name: str
    terms: CodecTerms | None
    other_batches: int = 0

    def summing(self, settings: TrainingSettings, firms: int, parameters: int, seed: int) -> Summing:
        if self.terms is None:
            return FloatSumming(settings.count_cap)
        return CodecSumming(self.terms, firms, parameters, np.random.default_rng([seed, 1]))


@dataclass(frozen=True)
class _Outcome:
    """One arm in one seed: the primary metric of each firm on its test rows, and the best selection metric."""

    arm: str
    seed: int
    scores: tuple[float, ...]
    selection: float


def bench_bits(
    source: Path | None,
    num_seeds: int,
    num_rounds: int | None = None,
    widths: Sequence[int] = WIDTHS,
    clip_errors: Mapping[str, float] = CLIP_ERRORS,
    progress: Callable[[str], None] = lambda _: None,
) -> BitsBenchmark:
    """Run it in this process. num_rounds: the task's own unless given; progress: is told of each arm that is done.

    Raises DataSetError, MisuseError for fewer than two seeds.
    """
    if num_seeds < 2:
        raise MisuseError("noise can be told from two seeds on")
    torch.set_num_threads(1)
    data = catalogue.find(source)
    settings = data.task.training.model_copy(update={"num_rounds": num_rounds or data.task.training.num_rounds})
    model = registry.create(data.task.model, data.task.contract, data.task.model_options)
    metric = model.primary_metric
    plan = tuple(_plan(settings, widths, clip_errors))
    outcomes: list[_Outcome] = []
    for seed in range(1, num_seeds + 1):
        tables = data.tables(np.random.default_rng(seed))
        bench = arms.Bench(data.task, tables, seed)
        examples = bench.data()
        for arm in plan:
            result = _train(bench, examples, settings, arm, seed)
            scores = tuple(bench.test(at, result.parameters)[metric.name] for at in range(len(tables)))
            outcomes.append(_Outcome(arm.name, seed, scores, min(result.selection)))
            progress(f"seed {seed}/{num_seeds}  {arm.name:44} {metric.name} {np.mean(scores):.4f}")
    names = [firm.name for firm in tables]
    smallest = min(range(len(tables)), key=lambda at: tables[at].train.height)
    return BitsBenchmark(
        data=data.task.title,
        simulated=data.task.simulated,
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        seeds=num_seeds,
        rounds=settings.num_rounds,
        firms=len(tables),
        smallest_firm=names[smallest],
        arms=tuple(_summary(arm, outcomes, metric, smallest) for arm in plan),
        every_seed=tuple(
            {"arm": one.arm, "seed": one.seed, "selection": one.selection, **dict(zip(names, one.scores, strict=True))}
            for one in outcomes
        ),
    )


def _plan(settings: TrainingSettings, widths: Sequence[int], clip_errors: Mapping[str, float]) -> Iterator[_Arm]:
    """float32, its control, every width with each rule, and the wrong first clips at the default width."""
    yield _Arm(FLOAT, None)
    yield _Arm(CONTROL, None, _OTHER_BATCHES)
    base = CodecTerms(clip=settings.update_clip, count_cap=settings.count_cap)
    changes = [{"clip_rule": rule, "error_feedback": feedback} for rule in _RULES for feedback in (False, True)]

    def arm(change: Mapping[str, object], note: str = "") -> _Arm:
        terms = base.model_copy(update=change)
        feedback = ", feedback" if terms.error_feedback else ""
        return _Arm(f"{terms.bits} bits, {_RULES[terms.clip_rule]}{feedback}{note}", terms)

    for bits in widths:
        for change in changes:
            yield arm({"bits": bits, **change})
    for error, factor in clip_errors.items():
        for change in changes:
            if factor < 1 or not change["error_feedback"]:  # too wide a clip cuts nothing off to give back
                yield arm({"clip": base.clip * factor, **change}, f", first clip {error}")


def _train(
    bench: arms.Bench, examples: Sequence[TrainingData], settings: TrainingSettings, arm: _Arm, seed: int
) -> OwnResult:
    summing = arm.summing(settings, len(examples), bench.initial.size, seed)
    return arms.train_federated(
        bench.model, bench.module, examples, bench.initial, settings, seed + arm.other_batches, summing
    )


def _summary(arm: _Arm, outcomes: Sequence[_Outcome], metric: Metric, smallest: int) -> BitsArm:
    own = [one for one in outcomes if one.arm == arm.name]
    won, validation = _differences(arm.name, outcomes, metric)
    control, control_validation = _differences(CONTROL, outcomes, metric)
    scores = np.array([one.scores for one in own])
    difference = won.mean(axis=1)
    return BitsArm(
        name=arm.name,
        bits=arm.terms.bits if arm.terms else None,
        clip_rule=arm.terms.clip_rule if arm.terms else None,
        error_feedback=arm.terms.error_feedback if arm.terms else None,
        first_clip=arm.terms.clip if arm.terms else None,
        score=_spread(scores.mean(axis=1)),
        difference=_spread(difference),
        seeds_better=int((difference > 0).sum()),
        more_than_noise=more_than_noise(difference, control.mean(axis=1)),
        smallest_firm=_spread(won[:, smallest]),
        validation=_spread(validation),
        validation_more_than_noise=more_than_noise(validation, control_validation),
    )


def _differences(
    name: str, outcomes: Sequence[_Outcome], metric: Metric
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """An arm's differences to float32, positive when it is better: scores (seeds, firms), relative losses (seeds,)."""
    pairs = list(zip(*([one for one in outcomes if one.arm == arm] for arm in (name, FLOAT)), strict=True))
    sign = 1.0 if metric.higher_is_better else -1.0
    scores = np.array([np.subtract(own.scores, reference.scores) for own, reference in pairs])
    return sign * scores, np.array([1 - own.selection / reference.selection for own, reference in pairs])


def _spread(values: NDArray[np.float64]) -> tuple[float, float]:
    return round(float(values.mean()), 6), round(float(values.std(ddof=1)), 6)


def more_than_noise(differences: NDArray[np.float64], control: NDArray[np.float64]) -> bool:
    """The rule at the top of this file; both (seeds,), differences to float32."""
    scatter = float(differences.std(ddof=1))
    noise = max(scatter, 2 * scatter / math.sqrt(differences.size), math.sqrt(float(np.square(control).mean())))
    return abs(float(differences.mean())) > noise


def table(result: BitsBenchmark) -> str:
    """The result as a Markdown table, one line an arm; bold is what is more than noise."""
    lines = [
        f"| sum | {result.metric} | difference | better | {result.smallest_firm} | validation loss |",
        "|---|---|---|---|---|---|",
    ]
    for arm in result.arms:
        difference = "" if arm.name == FLOAT else _cell(arm.difference, bold=arm.more_than_noise)
        better = "" if arm.name == FLOAT else f"{arm.seeds_better}/{result.seeds}"
        smallest = "" if arm.name == FLOAT else _cell(arm.smallest_firm)
        validation = "" if arm.name == FLOAT else _percent(arm.validation, bold=arm.validation_more_than_noise)
        score = f"{arm.score[0]:.4f} ± {arm.score[1]:.4f}"
        lines.append(f"| {arm.name} | {score} | {difference} | {better} | {smallest} | {validation} |")
    return "\n".join(lines)


def _cell(spread: tuple[float, float], *, bold: bool = False) -> str:
    text = f"{spread[0]:+.4f} ± {spread[1]:.4f}"
    return f"**{text}**" if bold else text


def _percent(spread: tuple[float, float], *, bold: bool) -> str:
    text = f"{100 * spread[0]:+.2f} ± {100 * spread[1]:.2f} %"
    return f"**{text}**" if bold else text
