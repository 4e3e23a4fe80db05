"""See the package's docstring. Training it takes no time because the benchmark's trainer does none."""

from typing import ClassVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from dure_models.interface import Examples, Metric, Model, ModelOptions, Purpose, RoundMetric, Statistics


class NoTrainingOptions(ModelOptions):
    """How many parameters travel, and how long the benchmark's trainer waits in place of training."""

    parameters: int = Field(gt=0, le=1 << 30)
    training_seconds: float = Field(default=0.0, ge=0, le=3600)


class NoTraining(Model):
    """One vector of parameters, used for nothing."""

    name: ClassVar[str] = "no-training"
    Options: ClassVar[type[ModelOptions]] = NoTrainingOptions
    primary_metric: ClassVar[Metric] = Metric("mean", higher_is_better=False)
    round_metrics: ClassVar[tuple[RoundMetric, ...]] = (RoundMetric("validation_loss", 1e6),)
    selection_metric: ClassVar[str] = "validation_loss"

    def build(self) -> nn.Module:
        """A module that holds the vector."""
        options = self.options
        if not isinstance(options, NoTrainingOptions):
            raise TypeError(f"NoTraining takes NoTrainingOptions, not {type(options).__name__}")
        module = nn.Module()
        module.bias = nn.Parameter(torch.zeros(options.parameters))
        return module

    @property
    def num_statistics(self) -> int:
        """None."""
        return 0

    def statistics(self, table: pl.DataFrame) -> Statistics:
        """None."""
        return Statistics(np.zeros(0), table.height)

    def examples(self, table: pl.DataFrame, statistics: Statistics, purpose: Purpose) -> Examples:
        """No inputs, a target of zero a row."""
        del statistics, purpose
        rows = table.height
        return Examples(torch.zeros(rows, 1), torch.arange(rows), torch.zeros(rows))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(targets) + 0 * outputs

    def predict(self, outputs: Tensor) -> Tensor:
        """The outputs."""
        return outputs

    def validation_sums(
        self, predictions: NDArray[np.float32], targets: NDArray[np.float32]
    ) -> dict[str, tuple[float, float]]:
        """Nothing beyond the loss."""
        del predictions, targets
        return {}

    def report(self, predictions: NDArray[np.float32], targets: NDArray[np.float32]) -> dict[str, float]:
        """The mean of nothing."""
        del predictions, targets
        return {"mean": 0.0}
