"""The model's one class."""

from typing import ClassVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dure_models import metrics
from dure_models.contract import NUMERIC, DataContract, Role
from dure_models.interface import Examples, Metric, Model, ModelOptions, Purpose, RoundMetric, Statistics


class Logit(Model):
    """Says for each row how likely the target is 1, from its numbers alone."""

    name: ClassVar[str] = "logit"
    Options: ClassVar[type[ModelOptions]] = ModelOptions
    primary_metric: ClassVar[Metric] = Metric("pr_auc", higher_is_better=True)
    round_metrics: ClassVar[tuple[RoundMetric, ...]] = (
        RoundMetric("train_loss", 64.0),
        RoundMetric("validation_loss", 64.0),
    )
    selection_metric: ClassVar[str] = "validation_loss"

    def __init__(self, contract: DataContract, options: ModelOptions) -> None:
        super().__init__(contract, options)
        self._numbers = [column for column in contract.by_role(Role.FEATURE) if column.type in NUMERIC]
        self._target = contract.single(Role.TARGET).name

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(len(self._numbers), 1), nn.Flatten(0))

    @property
    def num_statistics(self) -> int:
        return len(self._numbers)

    def statistics(self, table: pl.DataFrame) -> Statistics:
        return Statistics(self._scaled(table).sum(axis=0), table.height)

    def examples(self, table: pl.DataFrame, statistics: Statistics, purpose: Purpose) -> Examples:
        centred = self._scaled(table) - statistics.sums / max(statistics.count, 1)
        targets = table[self._target].to_numpy().astype(np.float32)
        return Examples(
            torch.from_numpy(centred.astype(np.float32)), torch.arange(table.height), torch.from_numpy(targets)
        )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")

    def predict(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(outputs)

    def validation_sums(
        self, predictions: NDArray[np.float32], targets: NDArray[np.float32]
    ) -> dict[str, tuple[float, float]]:
        return {}

    def report(self, predictions: NDArray[np.float32], targets: NDArray[np.float32]) -> dict[str, float]:
        return {"pr_auc": metrics.pr_auc(targets, predictions)}

    def _scaled(self, table: pl.DataFrame) -> NDArray[np.float64]:
        parts = []
        for column in self._numbers:
            low, high = column.range or (0.0, 1.0)
            parts.append((table[column.name].to_numpy().astype(np.float64) - low) / (high - low))
        return np.stack(parts, axis=1)
