"""The trainer process with a session that does not train, so that a benchmark measures everything but training.

Process, socket and the files of arrays are the product's: the global model is read and an update of its size written.
"""

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dure_client.trainer.__main__ import main
from dure_client.trainer.messages import TrainingSpec
from dure_client.trainer.session import Report, TrainingSession
from dure_lab.no_training.model import NoTrainingOptions
from dure_models.interface import Metric, Statistics
from dure_models.training import OwnResult, RoundResult

ROWS = 1000
_LOSS = {"validation_loss": (0.0, 1.0)}


class IdleSession(TrainingSession):
    """Zeros for the first model; one fixed small update for every round, after the time that the job says."""

    def __init__(self, spec: TrainingSpec, data: Path) -> None:  # noqa: ARG002  # reads no data
        self._seconds = NoTrainingOptions.model_validate(spec.options).training_seconds
        self._zeros = np.zeros(spec.num_parameters, np.float32)
        self._update = np.tile(np.linspace(-0.01, 0.01, 1024, dtype=np.float32), -(-spec.num_parameters // 1024))
        self._update = self._update[: spec.num_parameters]

    @property
    def rows(self) -> tuple[int, int, int]:
        """Rows that were never read."""
        return ROWS, 1, 0

    @property
    def primary_metric(self) -> Metric:
        """None worth the name."""
        return Metric("mean", higher_is_better=False)

    def initial_model(self) -> NDArray[np.float32]:
        """Zeros, which is what the job's model begins with."""
        return self._zeros

    def statistics(self) -> Statistics:
        """None."""
        return Statistics(np.zeros(0), ROWS)

    def train(
        self, parameters: NDArray[np.float32], statistics: Statistics, *, round_number: int, seed: int
    ) -> RoundResult:
        """The same update in every round, when the training time has passed."""
        del parameters, statistics, round_number, seed
        time.sleep(self._seconds)
        return RoundResult(self._update, ROWS, _LOSS)

    def assess(self, parameters: NDArray[np.float32], statistics: Statistics) -> dict[str, tuple[float, float]]:
        """A loss of zero."""
        del parameters, statistics
        return dict(_LOSS)

    def evaluate(self, parameters: NDArray[np.float32], statistics: Statistics) -> tuple[Report, Report]:
        """Nothing to report."""
        del parameters, statistics
        return {"mean": 0.0}, {"mean": 0.0}

    def train_alone(self, seed: int) -> tuple[OwnResult, Report, Report]:
        """The first model."""
        del seed
        return OwnResult(self._zeros, 0, (0.0,)), {"mean": 0.0}, {"mean": 0.0}


if __name__ == "__main__":
    main(IdleSession)
