"""Local training: what a firm does between two sums, and what the arms `alone` and `pooled` do for comparison.

One loop for all models and all arms. Nothing here draws randomness or picks a device on its own: seed and device are
arguments, so a round can be repeated exactly.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from dure_models import parameters as flat
from dure_models.contract import VALIDATION_FRACTION
from dure_models.interface import Examples, MetricSums, Model
from dure_protocols.errors import MisuseError

CPU = torch.device("cpu")
_EVALUATION_BATCH = 4096


class Schedule(StrEnum):
    """How the learning rate falls over the rounds of a job."""

    CONSTANT = "constant"
    COSINE = "cosine"


class TrainingSettings(BaseModel):
    """How each firm trains; the same for all, and part of the job file. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    num_rounds: int = Field(ge=1)
    local_epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(gt=0)
    schedule: Schedule = Schedule.COSINE
    final_fraction: float = Field(default=0.05, gt=0, le=1, description="last round's rate / first round's")
    weight_decay: float = Field(default=0.0, ge=0)
    gradient_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this L2 norm")
    proximal_mu: float = Field(default=0.0, ge=0, description="FedProx: mu / 2 * |w - global|^2; 0 is FedAvg")
    validation_fraction: float = Field(default=VALIDATION_FRACTION, gt=0, lt=1)
    update_clip: float = Field(default=0.1, gt=0, description="each coordinate of an update is cut to ± this")
    count_cap: int = Field(default=10_000, ge=1, description="a firm's weight is min(examples, cap) / cap")

    @model_validator(mode="after")
    def _at_least_one_epoch(self) -> Self:
        if self.local_epochs > 1000:
            raise ValueError("local_epochs must be at most 1000")
        return self


def learning_rate_at(settings: TrainingSettings, round_number: int) -> float:
    """The learning rate of a round, 1 … num_rounds. Raises MisuseError outside."""
    if not 1 <= round_number <= settings.num_rounds:
        raise MisuseError(f"round {round_number} is not one of 1 … {settings.num_rounds}")
    if settings.schedule is Schedule.CONSTANT or settings.num_rounds == 1:
        return settings.learning_rate
    progress = (round_number - 1) / (settings.num_rounds - 1)
    fall = settings.final_fraction + (1 - settings.final_fraction) * (1 + math.cos(math.pi * progress)) / 2
    return settings.learning_rate * fall


@dataclass(frozen=True)
class TrainingData:
    """A firm's examples in both parts, normalised by the consortium's statistics."""

    train: Examples
    validation: Examples


@dataclass(frozen=True)
class RoundResult:
    """What one round of local training gives: update (d,) float32 = new - old, unclipped; the number of training
    examples; and additive metrics, where `validation_loss` is that of the model *before* this training."""

    update: NDArray[np.float32]
    count: int
    metrics: MetricSums


def train_round(
    model: Model,
    module: nn.Module,
    data: TrainingData,
    parameters: NDArray[np.float32],
    settings: TrainingSettings,
    *,
    round_number: int,
    seed: int,
    device: torch.device = CPU,
) -> RoundResult:
    """Train `local_epochs` from the global `parameters` (d,). `module` is scratch space.

    The seed orders the batches and draws what the module drops; torch's own random state is left as it was. The
    optimiser (Adam) starts afresh each round, so a firm that missed a round is in no way behind. Raises MisuseError if
    training ends in values that are not finite.
    """
    module.to(device)
    flat.load(module, parameters)
    metrics = validation_metrics(model, module, data.validation, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_round_seed(seed, round_number))
        metrics["train_loss"] = _descend(model, module, data.train, settings, learning_rate_at(settings, round_number))
    update = flat.flatten(module) - parameters
    if not np.isfinite(update).all():
        raise MisuseError("training diverged to values that are not finite; lower learning_rate in the job's settings")
    return RoundResult(update, len(data.train), _bounded(model, metrics))


def _descend(
    model: Model, module: nn.Module, examples: Examples, settings: TrainingSettings, learning_rate: float
) -> tuple[float, float]:
    """Gradient descent from where the module stands, in place. The training loss on the way as (sum, weight)."""
    device = next(module.parameters()).device
    anchor = [value.detach().clone() for value in module.parameters()] if settings.proximal_mu > 0 else None
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.99)
    )
    module.train()
    loss_sum, num_seen = 0.0, 0
    for _ in range(settings.local_epochs):
        for indices in _batches(len(examples), settings.batch_size):
            inputs, targets = examples.batch(indices, device)
            loss = model.loss(module(inputs), targets).mean()
            loss_sum += float(loss.detach()) * len(indices)
            num_seen += len(indices)
            if anchor is not None:
                loss = loss + settings.proximal_mu / 2 * _squared_distance(module, anchor)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), settings.gradient_norm)
            optimiser.step()
    return loss_sum, float(num_seen)


def _round_seed(seed: int, round_number: int) -> int:
    words = np.random.SeedSequence([seed, round_number]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def _batches(count: int, size: int) -> list[Tensor]:
    """A fresh order of all examples in batches; the last may be small, but a single one is left out of many."""
    parts = list(torch.split(torch.randperm(count), size))
    return parts[:-1] if len(parts) > 1 and len(parts[-1]) == 1 else parts


def _squared_distance(module: nn.Module, anchor: list[Tensor]) -> Tensor:
    pairs = zip(module.parameters(), anchor, strict=True)
    return torch.stack([(value - old).pow(2).sum() for value, old in pairs]).sum()


def outputs_of(module: nn.Module, examples: Examples, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """The network's raw outputs for all examples and their targets, on the CPU, without gradients."""
    module.eval()
    outputs: list[Tensor] = []
    with torch.no_grad():
        for indices in torch.split(torch.arange(len(examples)), _EVALUATION_BATCH):
            inputs, _ = examples.batch(indices, device)
            outputs.append(module(inputs).cpu())
    return torch.cat(outputs) if outputs else torch.zeros(0), examples.targets


def validation_metrics(
    model: Model, module: nn.Module, examples: Examples, device: torch.device = CPU
) -> dict[str, tuple[float, float]]:
    """Additive metrics of the module as it is: `validation_loss` and the model's own."""
    outputs, targets = outputs_of(module, examples, device)
    if len(examples) == 0:
        return {metric.name: (0.0, 0.0) for metric in model.round_metrics}
    losses = model.loss(outputs, targets)
    sums = model.validation_sums(model.predict(outputs).numpy(), targets.numpy())
    return {"validation_loss": (float(losses.double().sum()), float(len(examples))), **sums}


def evaluate(
    model: Model,
    module: nn.Module,
    parameters: NDArray[np.float32],
    examples: Examples,
    device: torch.device = CPU,
) -> dict[str, float]:
    """The model's report metrics for given parameters (d,). For the firm's own eyes."""
    module.to(device)
    flat.load(module, parameters)
    outputs, targets = outputs_of(module, examples, device)
    return model.report(model.predict(outputs).numpy(), targets.numpy())


def _bounded(model: Model, metrics: MetricSums) -> dict[str, tuple[float, float]]:
    """Exactly the model's `round_metrics`, in their order, each value cut to [0, maximum * weight]."""
    bounded: dict[str, tuple[float, float]] = {}
    for metric in model.round_metrics:
        value, weight = metrics[metric.name]
        bounded[metric.name] = (min(max(value, 0.0), metric.maximum * weight), weight)
    return bounded


@dataclass(frozen=True)
class OwnResult:
    """A finished model: `parameters` (d,) of the best checkpoint on validation, the round after which
    they stood, and the model's selection metric after each round, `selection[0]` before the first."""

    parameters: NDArray[np.float32]
    best_round: int
    selection: tuple[float, ...]


def train_own(
    model: Model,
    module: nn.Module,
    data: TrainingData,
    initial: NDArray[np.float32],
    settings: TrainingSettings,
    *,
    seed: int,
    device: torch.device = CPU,
) -> OwnResult:
    """Train on one table only, for as many local epochs as the federation does (num_rounds x local_epochs).

    The arms `alone` and `pooled`: the same loop, without clipping, rounding or averaging. As in a federation, the
    checkpoint with the lowest selection metric on validation examples is kept.
    """
    parameters = initial
    selection = Selection(model)
    for round_number in range(1, settings.num_rounds + 1):
        result = train_round(
            model, module, data, parameters, settings, round_number=round_number, seed=seed, device=device
        )
        selection.note(parameters, result.metrics)
        parameters = parameters + result.update
    flat.load(module, parameters)
    selection.note(parameters, validation_metrics(model, module, data.validation, device))
    return OwnResult(selection.best, selection.best_round, tuple(selection.values))


class Selection:
    """Keeps the checkpoint whose selection metric is lowest; of equal ones the first, as in the protocol."""

    def __init__(self, model: Model) -> None:
        self._name = model.selection_metric
        self.values: list[float] = []
        self.best: NDArray[np.float32] = np.zeros(0, np.float32)
        self.best_round = 0

    def note(self, parameters: NDArray[np.float32], metrics: MetricSums) -> None:
        """Take in the model after `len(values)` rounds with its metrics; without any weight it counts as worst."""
        total, weight = metrics[self._name]
        value = total / weight if weight else float("inf")
        if not self.values or value < min(self.values):
            self.best, self.best_round = parameters, len(self.values)
        self.values.append(value)
