"""A model package for tests of the trainer process: a linear regression that can be told to fail while it trains.

Offered to the trainer as any other package is, by an entry point; see `installed_model` in test_trainer.py.
"""

import os
import time
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dure_models.contract import DataContract, Role
from dure_models.interface import Examples, Metric, Model, ModelOptions, Purpose, RoundMetric, Statistics


class Fault(StrEnum):
    """What happens in the first training step."""

    NONE = "none"
    RAISE = "raise"
    DIE = "die"
    SLEEP = "sleep"
    DIVERGE = "diverge"
    ATTACK = "attack"
    """Run what the scratch folder's attack.py says, if it is there."""


class Options(ModelOptions):
    """Which fault, and a file after whose appearance there is none."""

    fault: Fault = Fault.NONE
    unless_exists: str = ""


class LinearModel(Model):
    """y = w x + b over the contract's features, each brought to its mean by the consortium's statistics."""

    name: ClassVar[str] = "linear"
    Options: ClassVar[type[ModelOptions]] = Options
    primary_metric: ClassVar[Metric] = Metric("rmse", higher_is_better=False)
    round_metrics: ClassVar[tuple[RoundMetric, ...]] = (
        RoundMetric("train_loss", 1e6),
        RoundMetric("validation_loss", 1e6),
    )

    selection_metric: ClassVar[str] = "validation_loss"

    def __init__(self, contract: DataContract, options: ModelOptions) -> None:
        super().__init__(contract, options)
        self._features = [column.name for column in contract.by_role(Role.FEATURE)]
        self._target = contract.single(Role.TARGET).name
        self._seen: list[float] = []

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(len(self._features), 1), nn.Flatten(0))

    @property
    def num_statistics(self) -> int:
        return len(self._features)

    def statistics(self, table: pl.DataFrame) -> Statistics:
        columns = [self.contract.column(name) for name in self._features]
        sums = [float(table[c.name].sum()) / max(map(abs, c.range or (1, 1))) for c in columns]
        return Statistics(np.array(sums), table.height)

    def examples(self, table: pl.DataFrame, statistics: Statistics, purpose: Purpose) -> Examples:
        columns = [self.contract.column(name) for name in self._features]
        scaled = [table[c.name].to_numpy() / max(map(abs, c.range or (1, 1))) for c in columns]
        source = np.stack(scaled, axis=1) - statistics.sums / max(statistics.count, 1)
        targets = table[self._target].to_numpy().astype(np.float32)
        self._seen += targets.tolist()
        return Examples(
            torch.from_numpy(source.astype(np.float32)),
            torch.arange(table.height),
            torch.from_numpy(targets),
        )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        options = self.options
        assert isinstance(options, Options)
        if outputs.requires_grad and not (options.unless_exists and Path(options.unless_exists).exists()):
            self._fail(options.fault)
            if options.fault is Fault.DIVERGE:
                return outputs * float("nan")
        return (outputs - targets) ** 2

    def _fail(self, fault: Fault) -> None:
        if fault is Fault.RAISE:
            raise ValueError(f"cannot train on {self._seen}")
        if fault is Fault.DIE:
            os._exit(9)
        if fault is Fault.ATTACK and (attack := Path(os.environ["TMPDIR"], "attack.py")).exists():
            exec(attack.read_text(), {"rows": self._seen})
        if fault is Fault.SLEEP:
            time.sleep(60)

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs

    def validation_sums(
        self, predictions: NDArray[np.float32], targets: NDArray[np.float32]
    ) -> dict[str, tuple[float, float]]:
        return {}

    def report(self, predictions: NDArray[np.float32], targets: NDArray[np.float32]) -> dict[str, float]:
        rmse = float(np.sqrt(np.mean((predictions - targets) ** 2)))
        return {"rmse": rmse, "undefined_here": float("nan")}
