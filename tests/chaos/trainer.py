"""The trainer process with a session whose every sum tells who is in it, and how often.

Firm number k gives 4^k quantisation steps in every coordinate, shifted by a pattern of coordinate and round, and has
128 · 2^k rows. So rounding has nothing to do, a sum is known to the bit beforehand, a count shows its members, and the
digits of a coordinate in base 4 show how often each firm's update of which round is in it.

Run as a process it has no torch: nothing here trains, and loading it would take two of the three seconds of a start.
"""

import sys
import tomllib
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":
    sys.modules |= {name: MagicMock() for name in ("torch", "torch.nn", "torch.utils", "torch.utils.data")}

from dure_client.trainer.__main__ import main
from dure_client.trainer.messages import TrainingSpec
from dure_lab.bench.idle_trainer import IdleSession
from dure_models.interface import Statistics
from dure_models.training import RoundResult
from tests.chaos.points import Point, reach

STEP = 2.0**-16
BITS = 12
CLIP = ((1 << BITS - 1) - 1) * STEP
COUNT_CAP = 1024
PATTERN = 5


def rows_of(number: int) -> int:
    """Training rows of firm number 0 to 3."""
    return 128 << number


def update_of(number: int, round_number: int, size: int) -> NDArray[np.float32]:
    """The update of firm number 0 to 3 in a round, (size,) float32."""
    shifts = (np.arange(size) + round_number) % PATTERN
    weight = rows_of(number) / COUNT_CAP
    return np.float32(STEP / weight) * np.float32(4**number) * np.exp2(shifts).astype(np.float32)


def loss_of(model: NDArray[np.float32]) -> float:
    """Grows smaller with every round, so that the last model is the one a job selects."""
    return -float(model[0])


class PowersSession(IdleSession):
    """Trains nothing: gives `update_of`."""

    def __init__(self, spec: TrainingSpec, data: Path) -> None:
        super().__init__(spec, data)
        self._size = spec.num_parameters
        self._firm = data.parent.name
        self._number = int(Path(tomllib.loads(data.read_text())["train"]["paths"][0]).stem)

    @property
    def rows(self) -> tuple[int, int, int]:
        return rows_of(self._number), 1, 0

    def train(
        self, parameters: NDArray[np.float32], statistics: Statistics, *, round_number: int, seed: int
    ) -> RoundResult:
        reach(Point(f"trainer:{self._firm}", "", "update", round_number, "training"))
        update = update_of(self._number, round_number, self._size)
        return RoundResult(update, rows_of(self._number), self.assess(parameters, statistics))

    def assess(self, parameters: NDArray[np.float32], statistics: Statistics) -> dict[str, tuple[float, float]]:
        return {"validation_loss": (loss_of(parameters), 1.0)}


if __name__ == "__main__":
    main(PowersSession)
