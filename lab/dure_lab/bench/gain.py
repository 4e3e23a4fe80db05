"""`dure bench gain`: what federation is worth to each firm, over several seeds, so that noise can be told from gain.

Fair arms (`dure_lab.arms`): alone, federated and pooled get the same model, the same number of local epochs, and the
same grid of learning rates to choose from, each on its own validation rows. No processes: the sums are the protocol's,
the encryption is left out, which changes no bit of a sum.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from dure_lab import arms
from dure_lab.datasets import catalogue
from dure_models import registry

GRID_FACTORS = (0.5, 1.0, 2.0)
"""Learning rates each arm chooses from, as multiples of the task's own."""


class FirmGain(BaseModel):
    """One firm over the seeds, in the primary metric on held-out rows; see `arms.Gain`."""

    model_config = ConfigDict(frozen=True)

    name: str
    alone: tuple[float, float]
    federated: tuple[float, float]
    pooled: tuple[float, float]
    gain: tuple[float, float]
    """Mean and standard deviation over the seeds, as the three above."""
    seeds_won: int
    beats_noise: bool
    share_of_pooled: float


class GainBenchmark(BaseModel):
    """What `dure bench gain --json` prints."""

    model_config = ConfigDict(frozen=True)

    data: str
    simulated: bool
    metric: str
    higher_is_better: bool
    seeds: int
    learning_rates: tuple[float, ...]
    firms: tuple[FirmGain, ...]
    every_seed: tuple[Mapping[str, str | int | float], ...]


def bench_gain(
    source: Path | None, num_seeds: int, num_firms: int | None = None, *, tune: bool = True
) -> GainBenchmark:
    """Run it. Raises DataSetError, MisuseError for fewer than two seeds."""
    torch.set_num_threads(1)
    data = catalogue.find(source, num_firms)
    rate = data.task.training.learning_rate
    grid = arms.Grid(tuple(rate * factor for factor in GRID_FACTORS)) if tune else arms.NO_TUNING
    results = arms.compare(
        data.task, lambda seed: data.tables(np.random.default_rng(seed)), range(1, num_seeds + 1), grid
    )
    model = registry.create(data.task.model, data.task.contract, data.task.model_options)
    metric = model.primary_metric
    return GainBenchmark(
        data=data.task.title,
        simulated=data.task.simulated,
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        seeds=num_seeds,
        learning_rates=grid.learning_rates or (rate,),
        firms=tuple(_firm(gain) for gain in arms.gains(model, results)),
        every_seed=tuple(_seed(result, metric.name) for result in results),
    )


def _seed(result: arms.FirmResult, metric: str) -> dict[str, str | int | float]:
    scores = {arm.value: round(values[metric], 4) for arm, values in result.metrics.items()}
    return {"firm": result.name, "seed": result.seed, **scores}


def _firm(gain: arms.Gain) -> FirmGain:
    def spread(arm: arms.Arm) -> tuple[float, float]:
        return round(gain.mean[arm], 4), round(gain.sd[arm], 4)

    return FirmGain(
        name=gain.name,
        alone=spread(arms.Arm.ALONE),
        federated=spread(arms.Arm.FEDERATED),
        pooled=spread(arms.Arm.POOLED),
        gain=(round(gain.mean_gain, 4), round(gain.sd_gain, 4)),
        seeds_won=gain.num_won,
        beats_noise=gain.beats_noise,
        share_of_pooled=round(gain.share_of_pooled, 4),
    )
