"""The remaining-useful-life regressor: a small convolutional network over windows of standardised sensors."""

from typing import ClassVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dure_models import metrics
from dure_models.contract import NUMERIC, DataContract, Role
from dure_models.errors import ModelOptionsError
from dure_models.interface import Examples, Metric, Model, ModelOptions, Purpose, RoundMetric, Statistics
from dure_models.rul.inputs import moments, nearest_condition, standardise, unit_values, window_rows
from dure_models.rul.options import RulOptions


class RemainingUsefulLife(Model):
    """Says for a window of sensor rows how long its group (an engine, a pump) will still run, at most `cap`."""

    name: ClassVar[str] = "rul"
    Options: ClassVar[type[ModelOptions]] = RulOptions
    primary_metric: ClassVar[Metric] = Metric("rmse", higher_is_better=False)
    round_metrics: ClassVar[tuple[RoundMetric, ...]] = (
        RoundMetric("train_loss", 64.0),
        RoundMetric("validation_loss", 64.0),
    )
    selection_metric: ClassVar[str] = "validation_loss"
    options: RulOptions

    def __init__(self, contract: DataContract, options: RulOptions) -> None:
        super().__init__(contract, options)
        self._group = contract.single(Role.GROUP).name
        self._time = contract.single(Role.TIME).name
        self._target = contract.single(Role.TARGET).name
        self._sensors = tuple(c for c in contract.by_role(Role.FEATURE) if c.type in NUMERIC)
        self._settings = contract.by_role(Role.CONDITION)
        self._num_conditions = max(1, len(options.conditions))
        if not self._sensors:
            raise ModelOptionsError("the model 'rul' needs at least one number column of role feature in the contract")
        if any(len(centre) != len(self._settings) for centre in options.conditions):
            names = ", ".join(column.name for column in self._settings) or "none"
            raise ModelOptionsError(f"each of `conditions` needs one value for each condition column: {names}")
        if any(column.type not in NUMERIC for column in self._settings):
            raise ModelOptionsError("the model 'rul' needs number columns where the contract's role is condition")

    def build(self) -> nn.Module:
        """Three convolutions over time, two dense layers; one number a window."""
        return _Network(len(self._sensors), self.options)

    @property
    def num_statistics(self) -> int:
        """Per operating condition a count, and for each sensor a sum and a sum of squares."""
        return self._num_conditions * (1 + 2 * len(self._sensors))

    def statistics(self, table: pl.DataFrame) -> Statistics:
        """Counts and first two moments of the sensors per operating condition."""
        values, condition = self._values(table)
        return Statistics(moments(values, condition, self._num_conditions).ravel(), table.height)

    def examples(self, table: pl.DataFrame, statistics: Statistics, purpose: Purpose) -> Examples:
        """Windows over the rows, sorted by group and time; a test has one a group, at its last row."""
        table = table.sort(self._group, self._time)
        values, condition = self._values(table)
        sums = statistics.sums.reshape(self._num_conditions, -1)
        groups = np.unique(table[self._group].to_numpy(), return_inverse=True)[1].astype(np.int64)
        stride = self.options.train_stride if purpose is Purpose.TRAIN else self.options.validation_stride
        rows, ends = window_rows(groups, self.options.window, purpose, stride)
        targets = np.minimum(table[self._target].to_numpy()[ends], self.options.cap)
        return Examples(
            source=torch.from_numpy(standardise(values, condition, sums)),
            rows=torch.from_numpy(rows),
            targets=torch.from_numpy(targets.astype(np.float32)),
        )

    def _values(self, table: pl.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        condition = nearest_condition(table, self._settings, self.options.conditions)
        return unit_values(table, self._sensors), condition

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error in units of the cap, (b,)."""
        return (outputs - targets / self.options.cap) ** 2

    def predict(self, outputs: Tensor) -> Tensor:
        """Remaining life in the target's unit, between 0 and the cap."""
        return outputs.clamp(0.0, 1.0) * self.options.cap

    def validation_sums(
        self,
        predictions: NDArray[np.float32],  # noqa: ARG002
        targets: NDArray[np.float32],  # noqa: ARG002
    ) -> dict[str, tuple[float, float]]:
        """None: the root of `validation_loss` times the cap already is the RMSE over all firms."""
        return {}

    def report(self, predictions: NDArray[np.float32], targets: NDArray[np.float32]) -> dict[str, float]:
        """`rmse` in the target's unit and the score of the PHM 2008 challenge, both with targets capped."""
        return {"rmse": metrics.rmse(targets, predictions), "phm08": metrics.phm08(targets, predictions)}


class _Network(nn.Module):
    def __init__(self, num_sensors: int, options: RulOptions) -> None:
        super().__init__()
        width = options.channels
        self.first = nn.Conv1d(num_sensors, width, 5, padding=2)
        self.second = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.third = nn.Conv1d(width, width, 3, stride=2, padding=1)
        length = ((options.window + 1) // 2 + 1) // 2
        self.dense = nn.Linear(width * length, options.hidden)
        self.last = nn.Linear(options.hidden, 1)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        """(b,) remaining life over the cap, of inputs (b, window, sensors)."""
        signal = nn.functional.silu(self.first(inputs.transpose(1, 2)))
        signal = nn.functional.silu(self.second(signal))
        signal = nn.functional.silu(self.third(signal))
        hidden = nn.functional.silu(self.dense(self.dropout(signal.flatten(1))))
        remaining: Tensor = self.last(self.dropout(hidden)).squeeze(-1)
        return remaining + 0.5
