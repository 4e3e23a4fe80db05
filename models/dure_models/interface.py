"""The one interface that a researcher implements to bring a model to Dure.

A `Model` says how a firm's table becomes examples, which sums over rows the consortium needs before training, what the
network is, what is minimised and what is reported. It never sees a network, a key or another firm. Everything else —
the local training loop, flat parameters, secure aggregation — is the same for all models.

Offer a model to an installation with an entry point of group `dure.models`:

    [project.entry-points."dure.models"]
    pump = "my_package.pump:PumpModel"
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from dure_models.contract import DataContract
from dure_models.errors import ModelOptionsError
from dure_protocols.errors import MisuseError

MetricSums = Mapping[str, tuple[float, float]]
"""Additive metrics: name -> (sum, weight). Summed over firms entry by entry, then divided."""


class ModelOptions(BaseModel):
    """Base of a model's options: frozen, checked when built, unknown names refused. They stand in the job file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Metric:
    """A reported metric and which way is better."""

    name: str
    higher_is_better: bool

    def better(self, left: float, right: float) -> bool:
        """Whether `left` is strictly better than `right`."""
        return left > right if self.higher_is_better else left < right


@dataclass(frozen=True)
class RoundMetric:
    """A metric that travels masked in every round; sum / weight is cut to [0, `maximum`]."""

    name: str
    maximum: float


@dataclass(frozen=True)
class Statistics:
    """Sums over rows, before training: `sums` is (S,) float64, each within ±count; `count` is the number of rows.

    Additive: the consortium's statistics are the sum of the firms', taken by secure aggregation.
    """

    sums: NDArray[np.float64]
    count: int

    def __add__(self, other: "Statistics") -> "Statistics":
        if self.sums.shape != other.sums.shape:
            raise MisuseError(f"statistics of shapes {self.sums.shape} and {other.sums.shape} cannot be added")
        return Statistics(self.sums + other.sums, self.count + other.count)


class Purpose(StrEnum):
    """What examples are made for. A model may take fewer rows for a test (an engine's last cycle) than for training."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True)
class Examples:
    """n examples over a shared block of rows, so that overlapping windows cost no memory.

    `source` is (rows, features) float32; `rows` is int64, (n,) for single rows or (n, window) for windows of rows;
    `targets` is (n,) float32.
    """

    source: Tensor
    rows: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return int(self.targets.shape[0])

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs (b, features) or (b, window, features) and targets (b,) of the given examples, on `device`."""
        return self.source[self.rows[indices]].to(device), self.targets[indices].to(device)


class Model(ABC):
    """A model that a consortium can train. Subclasses set the class variables and fill in the methods."""

    name: ClassVar[str]
    Options: ClassVar[type[ModelOptions]]
    primary_metric: ClassVar[Metric]
    round_metrics: ClassVar[tuple[RoundMetric, ...]]
    selection_metric: ClassVar[str]
    """The round metric, lower is better, whose mean over the firms' validation examples chooses the final model."""

    def __init__(self, contract: DataContract, options: ModelOptions) -> None:
        self.contract = contract
        self.options = options

    @classmethod
    def create(cls, contract: DataContract, options: Mapping[str, object]) -> Self:
        """Check options and build. Raises ModelOptionsError naming every wrong option."""
        try:
            checked = cls.Options.model_validate(dict(options))
        except ValidationError as error:
            problems = "".join(f"\n  - {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            known = ", ".join(cls.Options.model_fields)
            raise ModelOptionsError(
                f"the model {cls.name!r} cannot work with these options:{problems}\nit knows: {known}"
            ) from error
        return cls(contract, checked)

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, with any values in its parameters. Group or layer norms only, no state outside parameters."""

    @property
    @abstractmethod
    def num_statistics(self) -> int:
        """S, the length of `Statistics.sums`; follows from contract and options alone."""

    @abstractmethod
    def statistics(self, table: pl.DataFrame) -> Statistics:
        """Sums over the rows of a conforming table of values that the contract's ranges bring into [-1, 1]."""

    @abstractmethod
    def examples(self, table: pl.DataFrame, statistics: Statistics, purpose: Purpose) -> Examples:
        """Inputs and targets of a conforming table, normalised by the *consortium's* statistics."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each example, (b,), from the network's raw outputs: what training minimises the mean of."""

    @abstractmethod
    def predict(self, outputs: Tensor) -> Tensor:
        """The network's outputs in the target's unit, (b,): probabilities, cycles, kWh."""

    @abstractmethod
    def validation_sums(
        self, predictions: NDArray[np.float32], targets: NDArray[np.float32]
    ) -> dict[str, tuple[float, float]]:
        """Further additive metrics on validation examples, for the names in `round_metrics` beyond the two losses.

        The training loop adds `train_loss` and `validation_loss` itself.
        """

    @abstractmethod
    def report(self, predictions: NDArray[np.float32], targets: NDArray[np.float32]) -> dict[str, float]:
        """Metrics for the firm's own eyes, `primary_metric` among them. They need not be additive and stay local."""
