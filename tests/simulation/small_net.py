"""A network with one hidden layer and its gradients, small enough to plant weights in by hand."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dure_client.trainer.client import StatisticsSums, Trained

INPUTS, HIDDEN = 4, 8
PARAMETERS = HIDDEN * INPUTS + HIDDEN + HIDDEN + 1
LEARNING_RATE = 0.5


@dataclass
class Net:
    """y = relu(W x + b) . v + c. Also the shape of its gradient.

    first: W, (HIDDEN, INPUTS); bias: b, (HIDDEN,); second: v, (HIDDEN,); offset: c, (1,).
    """

    first: NDArray[np.float64]
    bias: NDArray[np.float64]
    second: NDArray[np.float64]
    offset: NDArray[np.float64]

    @classmethod
    def of(cls, flat: NDArray[np.generic]) -> "Net":
        parts = np.split(flat.astype(np.float64), np.cumsum([HIDDEN * INPUTS, HIDDEN, HIDDEN]))
        return cls(parts[0].reshape(HIDDEN, INPUTS), *parts[1:])

    def flat(self) -> NDArray[np.float32]:
        return np.concatenate([self.first.ravel(), self.bias, self.second, self.offset]).astype(np.float32)

    def gradient(self, rows: NDArray[np.float64], targets: NDArray[np.float64]) -> "Net":
        """Of half the mean squared error."""
        before = rows @ self.first.T + self.bias
        active = np.maximum(before, 0)
        errors = (active @ self.second + self.offset - targets) / len(rows)
        into = errors[:, None] * self.second * (before > 0)
        return Net(into.T @ rows, into.sum(0), active.T @ errors, errors.sum(keepdims=True))


@dataclass
class NetTrainer:
    """One step of gradient descent over all of a firm's rows. Firm number i has rows of its own."""

    rank: int
    initial_model: NDArray[np.float32]
    num_rows: int = 10

    def __post_init__(self) -> None:
        chance = np.random.default_rng(self.rank)
        self.rows = chance.uniform(0, 1, (self.num_rows, INPUTS))
        self.targets = self.rows @ np.array([1.0, -2.0, 0.5, 1.5]) + 3.0

    def initial(self) -> NDArray[np.float32]:
        return self.initial_model

    def statistics(self) -> StatisticsSums:
        raise NotImplementedError("the model asks for none")

    def update(self, model: NDArray[np.float32]) -> NDArray[np.float32]:
        return (-LEARNING_RATE * Net.of(model).gradient(self.rows, self.targets).flat()).astype(np.float32)

    def train(
        self, model: NDArray[np.float32], statistics: StatisticsSums | None, *, round_number: int, seed: int
    ) -> Trained:
        return Trained(self.update(model), self.num_rows, self.assess(model, statistics))

    def assess(self, model: NDArray[np.float32], statistics: StatisticsSums | None) -> dict[str, tuple[float, float]]:
        return {"validation_loss": (0.0, 1.0)}


def first_model() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 0.3, PARAMETERS).astype(np.float32)
