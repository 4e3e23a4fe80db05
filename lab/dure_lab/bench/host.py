"""Many firms' agents as threads of one process: `python -m dure_lab.bench.host HOME…`, for `dure bench scale`.

Each agent is the product's own, with its keys, its ledger and its connection; only the trainer is no process but this
module, and does not train. SIGTERM ends them all.
"""

import argparse
import logging
import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dure_client.agent import Agent
from dure_client.flower import FlowerApp, client_app
from dure_client.home import AgentHome
from dure_client.jobs.firm import Firm
from dure_client.jobs.folder import JobFolder
from dure_client.ledger import Ledger
from dure_client.link.client import LinkClient
from dure_client.trainer.client import OwnModel, StatisticsSums, Trained, TrainerClient
from dure_client.trainer.messages import Evaluated, Opened
from dure_lab.bench.idle_trainer import ROWS
from dure_protocols.errors import DureError
from dure_protocols.frames import node_id
from dure_protocols.job import JobFile

logger = logging.getLogger(__name__)

_LOSS = {"validation_loss": (0.0, 1.0)}


class NoTrainer(TrainerClient):
    """In a trainer's place: the same update in every round, at once and in this process."""

    def __init__(self, job: JobFile) -> None:
        size = job.model.parameters
        self._zeros = np.zeros(size, np.float32)
        self._update = np.resize(np.linspace(-0.01, 0.01, 1024, dtype=np.float32), size)

    def open(self) -> Opened:
        """Rows that were never read."""
        return Opened(num_train=ROWS, num_validation=1, num_test=0, primary_metric="mean", higher_is_better=False)

    def initial(self) -> NDArray[np.float32]:
        """Zeros, which is what the job's model begins with."""
        return self._zeros

    def statistics(self) -> StatisticsSums:
        """None."""
        return StatisticsSums(np.zeros(0), ROWS)

    def train(
        self, model: NDArray[np.float32], statistics: StatisticsSums | None, *, round_number: int, seed: int
    ) -> Trained:
        """The same update in every round."""
        del model, statistics, round_number, seed
        return Trained(self._update, ROWS, _LOSS)

    def assess(self, model: NDArray[np.float32], statistics: StatisticsSums | None) -> dict[str, tuple[float, float]]:
        """A loss of zero."""
        del model, statistics
        return dict(_LOSS)

    def evaluate(self, model: NDArray[np.float32], statistics: StatisticsSums | None) -> Evaluated:
        """Nothing to report."""
        del model, statistics
        return Evaluated(validation={"mean": 0.0}, test={"mean": 0.0})

    def train_alone(self, *, seed: int) -> OwnModel:
        """The first model."""
        del seed
        return OwnModel(self._zeros, 0, {"mean": 0.0}, {"mean": 0.0})

    def use_threads(self, num_threads: int) -> None:
        """There is no process to use them."""

    def close(self) -> None:
        """There is no process to end."""

    def shut(self) -> None:
        """There is no process to end."""


class LightFirm(Firm):
    """A firm without a trainer process."""

    def _trainer(self, job: JobFile, folder: JobFolder) -> TrainerClient:  # noqa: ARG002  # the face is Firm's
        return NoTrainer(job)


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("homes", type=Path, nargs="+", metavar="HOME")
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    with ExitStack() as stack:
        for path in parser.parse_args().homes:
            agent = _open(AgentHome(path), stack)
            threading.Thread(target=_serve, args=(agent, path.name), name=path.name, daemon=True).start()
        stop.wait()


def _open(home: AgentHome, stack: ExitStack) -> Agent:
    config = home.config()
    ledger = stack.enter_context(Ledger(home.ledger_file, home.identity()))
    firm = LightFirm(home)
    stack.callback(firm.close)
    link = LinkClient(config.link_address, home.keys, ledger)
    stack.callback(link.close)
    return Agent(home.state, node_id(config.consortium, config.firm), link, FlowerApp(client_app(firm.answer)))


def _serve(agent: Agent, name: str) -> None:
    try:
        agent.run()
    except DureError:
        logger.exception("the agent of %s ended", name)


if __name__ == "__main__":
    main()
