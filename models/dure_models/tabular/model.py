"""The tabular classifier: piecewise-linear inputs by federated quantiles, a small network, a loss for rare events."""

import math
from typing import ClassVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dure_models import metrics
from dure_models.contract import ColumnType, DataContract, Role
from dure_models.errors import ModelOptionsError
from dure_models.interface import Examples, Metric, Model, ModelOptions, Purpose, RoundMetric, Statistics
from dure_models.tabular.inputs import (
    NUM_CELLS,
    category_columns,
    histogram,
    number_inputs,
    piecewise_linear,
    quantile_edges,
)
from dure_models.tabular.options import TabularOptions

_MAX_LOSS = 64.0
_DECISION = 0.5


class TabularClassifier(Model):
    """Says for each row how likely the target (an integer column with range [0, 1]) is 1."""

    name: ClassVar[str] = "tabular"
    Options: ClassVar[type[ModelOptions]] = TabularOptions
    primary_metric: ClassVar[Metric] = Metric("pr_auc", higher_is_better=True)
    round_metrics: ClassVar[tuple[RoundMetric, ...]] = (
        RoundMetric("train_loss", _MAX_LOSS),
        RoundMetric("validation_loss", _MAX_LOSS),
        RoundMetric("validation_pr_gap", 1.0),
        RoundMetric("validation_precision", 1.0),
        RoundMetric("validation_recall", 1.0),
    )
    # Cross entropy rises again, because the network grows too sure, long before it ranks rows at its best.
    selection_metric: ClassVar[str] = "validation_pr_gap"

    options: TabularOptions

    def __init__(self, contract: DataContract, options: TabularOptions) -> None:
        super().__init__(contract, options)
        target = contract.single(Role.TARGET)
        if target.type is not ColumnType.INTEGER or target.range != (0.0, 1.0):
            raise ModelOptionsError(
                f"the model 'tabular' needs an integer target with range [0, 1]; {target.name!r} is "
                f"{target.type} with range {target.range}. Change the contract or choose another model"
            )
        self._target = target.name
        self._numbers = number_inputs(contract, options)
        self._categories = category_columns(contract)
        self._num_inputs = len(self._numbers) * options.num_bins + sum(len(c.categories) for c in self._categories)
        if not self._num_inputs:
            raise ModelOptionsError("the model 'tabular' needs at least one feature column in the contract")

    def build(self) -> nn.Module:
        """Two hidden layers on the coded inputs; one logit a row."""
        return _Network(self._num_inputs, self.options.hidden, self.options.dropout)

    @property
    def num_statistics(self) -> int:
        """One histogram a number input."""
        return len(self._numbers) * NUM_CELLS

    def statistics(self, table: pl.DataFrame) -> Statistics:
        """A histogram of each number input over its range; each row adds 1 to one cell."""
        sums = [histogram(item.unit_values(table)) for item in self._numbers]
        return Statistics(np.concatenate(sums) if sums else np.zeros(0), table.height)

    def examples(self, table: pl.DataFrame, statistics: Statistics, purpose: Purpose) -> Examples:  # noqa: ARG002
        """One example a row, the same for every purpose."""
        counts = statistics.sums.reshape(len(self._numbers), NUM_CELLS)
        blocks = [
            piecewise_linear(item.unit_values(table), quantile_edges(count, self.options.num_bins))
            for item, count in zip(self._numbers, counts, strict=True)
        ]
        for column in self._categories:
            values = table[column.name].to_numpy()
            blocks.append((values[:, None] == np.array(column.categories, dtype=object)).astype(np.float32))
        return Examples(
            source=torch.from_numpy(np.concatenate(blocks, axis=1)),
            rows=torch.arange(table.height),
            targets=torch.from_numpy(table[self._target].to_numpy().astype(np.float32)),
        )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy, an event weighing `positive_weight` times as much, (b,)."""
        weight = torch.tensor(self.options.positive_weight)
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets, pos_weight=weight, reduction="none")

    def predict(self, outputs: Tensor) -> Tensor:
        """Probabilities; what `positive_weight` added to the odds is taken off again."""
        return torch.sigmoid(outputs - math.log(self.options.positive_weight))

    def validation_sums(
        self, predictions: NDArray[np.float32], targets: NDArray[np.float32]
    ) -> dict[str, tuple[float, float]]:
        """What the firm's PR-AUC lacks to 1, weighed by its events; hits over flagged rows and over events, at 0.5."""
        flagged = predictions >= _DECISION
        hits = float(targets[flagged].sum())
        num_events = float(targets.sum())
        gap = (1.0 - metrics.pr_auc(targets, predictions)) * num_events if num_events else 0.0
        return {
            "validation_pr_gap": (gap, num_events),
            "validation_precision": (hits, float(flagged.sum())),
            "validation_recall": (hits, num_events),
        }

    def report(self, predictions: NDArray[np.float32], targets: NDArray[np.float32]) -> dict[str, float]:
        """`pr_auc`, `roc_auc`, and `f1` at probability 0.5."""
        return {
            "pr_auc": metrics.pr_auc(targets, predictions),
            "roc_auc": metrics.roc_auc(targets, predictions),
            "f1": metrics.f1(targets, predictions >= _DECISION),
        }


class _Network(nn.Module):
    def __init__(self, num_inputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(num_inputs, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (b,) of inputs (b, num_inputs)."""
        hidden = self.dropout(nn.functional.silu(self.first(inputs)))
        hidden = self.dropout(nn.functional.silu(self.second(hidden)))
        logits: Tensor = self.last(hidden).squeeze(-1)
        return logits
