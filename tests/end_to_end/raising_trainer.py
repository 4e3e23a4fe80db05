"""The product's trainer with a model that, the first time it trains, raises with the rows it was given in its text."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dure_client.trainer.__main__ import main
from dure_client.trainer.messages import TrainingSpec
from dure_client.trainer.session import TrainingSession
from dure_models.interface import Statistics
from dure_models.training import RoundResult

SAID = "the model cannot take these rows"


class RaisingSession(TrainingSession):
    """Raises once a job."""

    def __init__(self, spec: TrainingSpec, data: Path) -> None:
        super().__init__(spec, data)
        self._has_raised = False

    def train(
        self, parameters: NDArray[np.float32], statistics: Statistics, *, round_number: int, seed: int
    ) -> RoundResult:
        if not self._has_raised:
            self._has_raised = True
            raise ValueError(f"{SAID}: {self._train.rows()} of {self._train.columns}")
        return super().train(parameters, statistics, round_number=round_number, seed=seed)


if __name__ == "__main__":
    main(RaisingSession)
