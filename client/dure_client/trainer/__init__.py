"""The trainer: a process of its own that holds the firm's data and has neither keys nor network.

`client.TrainerClient` is what the agent uses; it imports numpy only. `__main__` is the process; `service` and `session`
are its inside, and the only modules of the firm's side that load torch and polars, beside `dure_client.data`.
"""

from dure_client.trainer.client import Deadlines, OwnModel, StatisticsSums, Trained, TrainerClient
from dure_client.trainer.messages import Evaluated, TrainerCode, TrainerError, TrainingSpec
from dure_client.trainer.process import TrainerPlaces

__all__ = [
    "Deadlines",
    "Evaluated",
    "OwnModel",
    "StatisticsSums",
    "Trained",
    "TrainerClient",
    "TrainerCode",
    "TrainerError",
    "TrainerPlaces",
    "TrainingSpec",
]
