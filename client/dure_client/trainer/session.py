"""One job inside the trainer: the firm's rows in memory, the model, and what can be asked of them. No transport."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from dure_client.data.load import load
from dure_client.data.mapping import DataMapping
from dure_client.trainer.messages import TrainerCode, TrainingSpec
from dure_models import parameters as flat
from dure_models import registry
from dure_models.contract import DataContract
from dure_models.digest import model_digest
from dure_models.errors import ContractError
from dure_models.interface import Examples, Metric, Model, Purpose, RoundMetric, Statistics
from dure_models.split import validation_split
from dure_models.training import (
    OwnResult,
    RoundResult,
    TrainingData,
    TrainingSettings,
    evaluate,
    train_own,
    train_round,
    validation_metrics,
)

Array = NDArray[np.float32]
Report = dict[str, float]


class SessionError(Exception):
    """What a session refuses by itself: `code` may pass to the agent, the text stays in the trainer's log."""

    def __init__(self, code: TrainerCode, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class _ExampleSets:
    """All three parts, normalised by one set of statistics."""

    data: TrainingData
    test: Examples


class TrainingSession:
    """A firm's side of the mathematics of one job. Deterministic for a job file, data and seeds."""

    def __init__(self, spec: TrainingSpec, data: Path) -> None:
        """Load, check and split the data, and build the model.

        Raises DataError, DataContractError, ModelsError, or SessionError: (1) the installed model is the job's, by
        digest; (2) its parameters and statistics are as many as the job file says; (3) there are rows to train and to
        validate on.
        """
        if model_digest(spec.model) != spec.model_digest:  # (1)
            raise SessionError(TrainerCode.MODEL_DIGEST, f"the job names {spec.model} {spec.model_digest}")
        contract, self._settings = _terms(spec)
        self._seed = spec.seed
        self._model: Model = registry.create(spec.model, contract, spec.options)
        self._module = self._model.build()
        self._check_sizes(spec)  # (2)
        tables = load(DataMapping.read(data), contract)
        fraction = self._settings.validation_fraction
        self._train, self._validation = validation_split(contract, tables.train, fraction, spec.seed)
        self._test = tables.test
        if not self._train.height or not self._validation.height:  # (3)
            raise SessionError(
                TrainerCode.TOO_FEW_ROWS,
                f"{self._train.height} rows to train and {self._validation.height} to validate on are too few",
            )
        self._cached: tuple[bytes, _ExampleSets] | None = None

    @property
    def rows(self) -> tuple[int, int, int]:
        """Rows to train, to validate and to test on."""
        return self._train.height, self._validation.height, self._test.height

    @property
    def primary_metric(self) -> Metric:
        """The metric by which models of this kind are judged."""
        return self._model.primary_metric

    def initial_model(self) -> Array:
        """The job's first global model, (d,)."""
        return flat.initial_parameters(self._module, self._seed)

    def statistics(self) -> Statistics:
        """Sums over the training rows alone: validation rows must not colour what they judge."""
        return self._model.statistics(self._train)

    def train(self, parameters: Array, statistics: Statistics, *, round_number: int, seed: int) -> RoundResult:
        """One round of local training from the global model."""
        return train_round(
            self._model,
            self._module,
            self._examples(statistics).data,
            parameters,
            self._settings,
            round_number=round_number,
            seed=seed,
        )

    def assess(self, parameters: Array, statistics: Statistics) -> dict[str, tuple[float, float]]:
        """The round metrics of a model without training it; what only training knows has weight 0."""
        flat.load(self._module, parameters)
        sums = validation_metrics(self._model, self._module, self._examples(statistics).data.validation)
        return {
            metric.name: _bounded(metric, sums.get(metric.name, (0.0, 0.0))) for metric in self._model.round_metrics
        }

    def evaluate(self, parameters: Array, statistics: Statistics) -> tuple[Report, Report]:
        """A model's report on the validation and on the test rows (empty without test rows)."""
        sets = self._examples(statistics)
        report = self._reporter(parameters)
        return report(sets.data.validation), report(sets.test) if len(sets.test) else {}

    def train_alone(self, seed: int) -> tuple[OwnResult, Report, Report]:
        """The firm's own model, normalised by its own statistics: as many epochs as in the job, same first model."""
        own = self.statistics()
        result = train_own(
            self._model, self._module, self._examples(own).data, self.initial_model(), self._settings, seed=seed
        )
        return result, *self.evaluate(result.parameters, own)

    def _reporter(self, parameters: Array) -> Callable[[Examples], Report]:
        return lambda examples: evaluate(self._model, self._module, parameters, examples)

    def _examples(self, statistics: Statistics) -> _ExampleSets:
        """The parts as examples. The last statistics' are kept: in a job they are the same in every round."""
        key = hashlib.sha256(statistics.sums.tobytes() + str(statistics.count).encode()).digest()
        if self._cached is None or self._cached[0] != key:
            make = self._model.examples
            data = TrainingData(
                make(self._train, statistics, Purpose.TRAIN), make(self._validation, statistics, Purpose.VALIDATION)
            )
            self._cached = key, _ExampleSets(data, make(self._test, statistics, Purpose.TEST))
        return self._cached[1]

    def _check_sizes(self, spec: TrainingSpec) -> None:
        d, s = flat.num_parameters(flat.layout_of(self._module)), self._model.num_statistics
        if (d, s) != (spec.num_parameters, spec.num_statistics):
            raise SessionError(
                TrainerCode.MODEL_OPTIONS,
                f"the job says {spec.num_parameters} parameters and {spec.num_statistics} statistics; "
                f"the model built from its options has {d} and {s}",
            )


def _bounded(metric: RoundMetric, value: tuple[float, float]) -> tuple[float, float]:
    """A metric cut to what may travel: [0, maximum] times its weight."""
    total, weight = value
    return min(max(total, 0.0), metric.maximum * weight), weight


def _terms(spec: TrainingSpec) -> tuple[DataContract, TrainingSettings]:
    try:
        return DataContract.of(spec.contract), TrainingSettings.model_validate(spec.settings)
    except (ContractError, ValidationError) as error:
        raise SessionError(
            TrainerCode.MODEL_OPTIONS, "the job's contract or training settings are not valid"
        ) from error


def use_threads(count: int) -> None:
    """Bound torch's threads for this process."""
    torch.set_num_threads(count)
