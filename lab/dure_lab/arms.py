"""The fair comparison: the same model trained alone, federated and on pooled data, and what federation gains.

Fair means that all three arms have the same model and inputs, as many local epochs (rounds x local epochs), and the
same tuning effort: each arm picks from the same `Grid` of settings by its own validation examples, and keeps its best
checkpoint by the same metric on the same validation examples. Test rows are touched once, at the end.

    alone      each firm's rows, normalised by its own statistics
    federated  the protocol's arithmetic without its encryption: `dure_lab.summing` with a job's default codec
    pooled     all firms' rows in one table; only possible where nothing is secret

The federated arm runs in this process; that its sums equal the encrypted ones is what the protocol's tests show.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import polars as pl
import torch
from torch import nn

from dure_lab.datasets.deal import FirmTables, Task
from dure_lab.summing import CodecSumming, Parameters, Summing
from dure_models import registry
from dure_models.interface import Examples, Metric, MetricSums, Model, Purpose, Statistics
from dure_models.parameters import initial_parameters, load
from dure_models.split import validation_split
from dure_models.training import (
    OwnResult,
    Selection,
    TrainingData,
    TrainingSettings,
    evaluate,
    train_own,
    train_round,
    validation_metrics,
)
from dure_models.validation import conform
from dure_protocols.errors import MisuseError
from dure_protocols.job import CodecTerms, FedAvgTerms
from dure_protocols.server_step import Moments, server_step


class Arm(StrEnum):
    """How a model came about."""

    ALONE = "alone"
    FEDERATED = "federated"
    POOLED = "pooled"


@dataclass(frozen=True)
class Grid:
    """Learning rates that each arm may choose from. One rate means that nothing is tuned."""

    learning_rates: tuple[float, ...]

    def settings(self, base: TrainingSettings) -> list[TrainingSettings]:
        """One setting a rate; `base` alone when there are none."""
        if not self.learning_rates:
            return [base]
        return [base.model_copy(update={"learning_rate": rate}) for rate in self.learning_rates]


NO_TUNING = Grid(())


@dataclass(frozen=True)
class FirmResult:
    """One firm's test metrics in one seed, each a mapping of metric to value, and its number of training rows."""

    name: str
    seed: int
    num_rows: int
    metrics: dict[Arm, dict[str, float]]


@dataclass(frozen=True)
class Gain:
    """One firm over the seeds: how much better federated is than alone, in the primary metric.

    `mean_gain` and `sd_gain` are of the *paired* differences, one a seed, positive when federated is better; each seed
    has its own deal, split, first model and batch order. `share_of_pooled` is mean federated skill over mean pooled
    skill (for errors the inverse: pooled over federated).
    """

    name: str
    mean: dict[Arm, float]
    sd: dict[Arm, float]
    mean_gain: float
    sd_gain: float
    num_seeds: int
    num_won: int
    share_of_pooled: float

    @property
    def standard_error(self) -> float:
        """Of the mean gain."""
        return self.sd_gain / float(np.sqrt(self.num_seeds))

    @property
    def beats_noise(self) -> bool:
        """Whether the mean gain is over what one seed's difference scatters by, and over two standard errors."""
        return self.mean_gain > max(self.sd_gain, 2 * self.standard_error)


def compare(
    task: Task, deal: Callable[[int], list[FirmTables]], seeds: Iterable[int], grid: Grid = NO_TUNING
) -> list[FirmResult]:
    """All three arms on `deal(seed)` for each seed; one result a firm and seed. What `dure bench gain` calls."""
    return [result for seed in seeds for result in run_arms(task, deal(seed), seed, grid)]


def run_arms(task: Task, firms: Sequence[FirmTables], seed: int, grid: Grid = NO_TUNING) -> list[FirmResult]:
    """The three arms on one deal. Deterministic in `seed`."""
    bench = Bench(task, firms, seed)
    candidates = grid.settings(task.training)
    pooled = bench.pooled(candidates)
    federated = bench.federated(candidates)
    return [
        FirmResult(
            firm.name,
            seed,
            firm.train.height,
            {
                Arm.ALONE: bench.alone(at, candidates),
                Arm.FEDERATED: bench.test(at, federated.parameters),
                Arm.POOLED: bench.test(at, pooled.parameters),
            },
        )
        for at, firm in enumerate(firms)
    ]


def pooled_scores(task: Task, firms: Sequence[FirmTables], seed: int) -> list[dict[str, float]]:
    """Each firm's test metrics of a model trained on everyone's rows: what `dure demo` shows and no consortium can."""
    bench = Bench(task, firms, seed)
    pooled = bench.pooled([task.training])
    return [bench.test(at, pooled.parameters) for at in range(len(firms))]


class Bench:
    """One deal made ready: the firms' split tables, the consortium's statistics, the first model."""

    def __init__(self, task: Task, firms: Sequence[FirmTables], seed: int) -> None:
        """Split each firm's rows into training and validation by the contract; all of it follows from `seed`."""
        contract, fraction = task.contract, task.training.validation_fraction
        self.seed = seed
        self.model = registry.create(task.model, contract, task.model_options)
        self.parts = [validation_split(contract, conform(contract, firm.train), fraction, seed) for firm in firms]
        self.tests = [conform(contract, firm.test) for firm in firms]
        self.own_statistics = [self.model.statistics(train) for train, _ in self.parts]
        self.statistics = sum(self.own_statistics[1:], start=self.own_statistics[0])
        self.module = self.model.build()
        self.initial = initial_parameters(self.module, seed)

    def _data(self, train: pl.DataFrame, validation: pl.DataFrame, statistics: Statistics) -> TrainingData:
        return TrainingData(
            self.model.examples(train, statistics, Purpose.TRAIN),
            self.model.examples(validation, statistics, Purpose.VALIDATION),
        )

    def test(self, at: int, parameters: Parameters, statistics: Statistics | None = None) -> dict[str, float]:
        """Test metrics of firm `at`, inputs normalised by the statistics that the parameters were trained with."""
        examples = self.model.examples(self.tests[at], statistics or self.statistics, Purpose.TEST)
        return evaluate(self.model, self.module, parameters, examples)

    def alone(self, at: int, candidates: list[TrainingSettings]) -> dict[str, float]:
        """Firm `at` on its own rows and statistics."""
        statistics = self.own_statistics[at]
        data = self._data(*self.parts[at], statistics)
        return self.test(at, self._best_own(data, candidates).parameters, statistics)

    def data(self) -> list[TrainingData]:
        """Each firm's examples, normalised by the consortium's statistics: what it trains on in a federation."""
        return [self._data(train, validation, self.statistics) for train, validation in self.parts]

    def pooled(self, candidates: list[TrainingSettings]) -> OwnResult:
        """All firms' rows in one table. Groups keep apart because each firm's rows are windowed on their own."""
        return self._best_own(join(self.data()), candidates)

    def federated(self, candidates: list[TrainingSettings]) -> OwnResult:
        """The firms together."""
        data = self.data()
        results = [
            train_federated(self.model, self.module, data, self.initial, settings, self.seed) for settings in candidates
        ]
        return min(results, key=_score)

    def _best_own(self, data: TrainingData, candidates: list[TrainingSettings]) -> OwnResult:
        results = [
            train_own(self.model, self.module, data, self.initial, settings, seed=self.seed) for settings in candidates
        ]
        return min(results, key=_score)


def _score(result: OwnResult) -> float:
    return min(result.selection)


def join(parts: Sequence[TrainingData]) -> TrainingData:
    """The examples of several firms as if they were one's."""
    return TrainingData(_joined([part.train for part in parts]), _joined([part.validation for part in parts]))


def _joined(parts: Sequence[Examples]) -> Examples:
    starts = np.cumsum([0, *(len(part.source) for part in parts[:-1])])
    return Examples(
        source=torch.cat([part.source for part in parts]),
        rows=torch.cat([part.rows + int(start) for part, start in zip(parts, starts, strict=True)]),
        targets=torch.cat([part.targets for part in parts]),
    )


def train_federated(
    model: Model,
    module: nn.Module,
    firms: Sequence[TrainingData],
    initial: Parameters,
    settings: TrainingSettings,
    seed: int,
    summing: Summing | None = None,
) -> OwnResult:
    """FedAvg or FedProx. Updates are added by `summing`, by the protocol's arithmetic with default terms if None.

    The seed orders each firm's batches and draws the rounding.
    """
    if summing is None:
        terms = CodecTerms(clip=settings.update_clip, count_cap=settings.count_cap)
        summing = CodecSumming(terms, len(firms), initial.size, np.random.default_rng([seed, 1]))
    parameters = initial
    selection = Selection(model)
    for round_number in range(1, settings.num_rounds + 1):
        results = [
            train_round(model, module, data, parameters, settings, round_number=round_number, seed=seed * 1000 + at)
            for at, data in enumerate(firms)
        ]
        selection.note(parameters, _added([result.metrics for result in results]))
        parameters, _ = server_step(FedAvgTerms(), parameters, summing.mean(results), Moments())
    # The protocol's closing round: metrics of the last model, no training.
    load(module, parameters)
    selection.note(parameters, _added([validation_metrics(model, module, data.validation) for data in firms]))
    return OwnResult(selection.best, selection.best_round, tuple(selection.values))


def _added(parts: Sequence[MetricSums]) -> dict[str, tuple[float, float]]:
    return {name: (sum(p[name][0] for p in parts), sum(p[name][1] for p in parts)) for name in parts[0]}


def gains(model: type[Model] | Model, results: Sequence[FirmResult]) -> list[Gain]:
    """One summary a firm, in order of first appearance. Raises MisuseError for fewer than two seeds."""
    names = list(dict.fromkeys(result.name for result in results))
    return [_gain(model.primary_metric, name, [r for r in results if r.name == name]) for name in names]


def _gain(metric: Metric, name: str, results: Sequence[FirmResult]) -> Gain:
    if len(results) < 2:
        raise MisuseError(f"{name} has {len(results)} results; noise can be told from two seeds on")
    skill = {arm: np.array([result.metrics[arm][metric.name] for result in results]) for arm in Arm}
    won = skill[Arm.FEDERATED] - skill[Arm.ALONE]
    if not metric.higher_is_better:
        won = -won
    federated, pooled = float(skill[Arm.FEDERATED].mean()), float(skill[Arm.POOLED].mean())
    return Gain(
        name=name,
        mean={arm: float(values.mean()) for arm, values in skill.items()},
        sd={arm: float(values.std(ddof=1)) for arm, values in skill.items()},
        mean_gain=float(won.mean()),
        sd_gain=float(won.std(ddof=1)),
        num_seeds=len(results),
        num_won=int((won > 0).sum()),
        share_of_pooled=federated / pooled if metric.higher_is_better else pooled / federated,
    )
