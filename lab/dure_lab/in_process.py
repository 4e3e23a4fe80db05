"""A whole job in one process, for researchers and tests: the product's two apps, without a network.

`InProcessGrid` is a flwr Grid whose nodes are ClientApps in this process; what passes are real Flower messages.
`run_in_process` runs a job over it, with the firms' homes on disk (`dure_lab.homes`). The firms' trainers are processes
of their own, as everywhere.
"""

import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Self

# Before flwr is imported: a simulation tells nobody that it runs.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from dure_client.flower import client_app
from dure_client.home import AgentHome
from dure_client.jobs.approvals import Verdict, decide
from dure_client.jobs.firm import Firm
from dure_protocols.errors import MisuseError
from dure_protocols.frames import COORDINATOR_NODE_ID, node_id
from dure_protocols.job import JobFile
from dure_protocols.secagg.terms import Randomness
from dure_server.coordinator.checkpoints import Checkpoints
from dure_server.coordinator.firms import Firms
from dure_server.coordinator.record import JobRecord, Situation
from dure_server.coordinator.rounds import Coordinator
from dure_server.flower import run_app, server_app
from dure_server.store import JobState, Store

logger = logging.getLogger(__name__)

APP_FAILED: Final = 2  # flwr's number for "the ClientApp raised"


class InProcessGrid(Grid):
    """flwr's Grid over ClientApps of this process. An app gets its messages in order and one at a time.

    Messages and their arrays are handed over as they are, not copied. Flower allows one run a process: the grid that
    was built last is the one whose `Message(...)` can be made. Close it to end its threads.
    """

    def __init__(self, apps: Mapping[str, ClientApp], *, run_id: int = 1, in_turn: bool = False) -> None:
        """`apps`: one a firm, by name. in_turn: one app at a time, in the order asked, instead of a thread an app."""
        nodes = {node_id("in-process", name): app for name, app in apps.items()}
        shared = ThreadPoolExecutor(1, "firms") if in_turn else None
        self._apps = nodes
        self._threads = {node: shared or ThreadPoolExecutor(1, f"firm-{node}") for node in nodes}
        self._contexts = {node: Context(run_id, node, {}, RecordDict(), {}) for node in nodes}
        self._replies: dict[str, Future[Message]] = {}
        self._numbers = itertools.count(1)
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, run_id, COORDINATOR_NODE_ID

    def set_run(self, run: object) -> None:  # noqa: ARG002  # the face is flwr's
        """Not offered: the run is given to the constructor."""
        raise MisuseError("an InProcessGrid's run is given when it is built")

    @property
    def run(self) -> NoReturn:
        """Not offered: flwr's `Run` is private, and only its legacy server asks for it."""
        raise MisuseError("an InProcessGrid has no flwr Run")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """The same as `Message(...)`, which is how flwr wants it done."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Every app's node; they are always there."""
        return list(self._apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to their apps. Returns their ids, in order. Raises MisuseError for an unknown node."""
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in self._apps:
                raise MisuseError(f"node {node} is none of this grid's {len(self._apps)}")
            # A runtime gives a message its id; flwr offers no public way to.
            message.metadata.__dict__["_message_id"] = f"{next(self._numbers):032x}"
            self._replies[message.metadata.message_id] = self._threads[node].submit(self._answer, node, message)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages that are here by now; each is given out once."""
        here = [ask_id for ask_id in message_ids if ask_id in self._replies and self._replies[ask_id].done()]
        return [self._replies.pop(ask_id).result() for ask_id in here]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Hand messages over and wait for the replies, at most `timeout` seconds."""
        ids = list(self.push_messages(messages))
        wait([self._replies[ask_id] for ask_id in ids], timeout)
        return self.pull_messages(ids)

    def close(self) -> None:
        """Drop messages that no app has begun with, and wait for those at work."""
        for threads in self._threads.values():
            threads.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, node: int, message: Message) -> Message:
        try:
            return self._apps[node](message, self._contexts[node])
        except Exception as error:
            logger.exception("the app of node %d failed", node)
            return Message(Error(APP_FAILED, type(error).__name__), reply_to=message)


def run_in_process(
    job: JobFile,
    initial: NDArray[np.float32],
    homes: Mapping[str, AgentHome],
    folder: Path,
    *,
    in_turn: bool = False,
    randomness: Callable[[str], Randomness] = lambda _: os.urandom,
) -> NDArray[np.float32]:
    """Run a job to its end and return its final model, (d,) float32. Each firm's result lies in its home.

    The job is approved at every home. `folder` gets store and published sums; running again over the same folder and
    homes goes on from the last finished round. randomness(firm): that firm's bytes for keys, masks and rounding.
    Raises JobFailedError. A job that lacks something waits for it, and the log (at INFO) says for what.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcome: list[NDArray[np.float32]] = []
    with ExitStack() as stack:
        store = _store_with(job, folder / "store.sqlite")
        stack.callback(store.close)
        firms_here: list[Firm] = []
        apps = {}
        for name, home in homes.items():
            decide(home, job, Verdict.APPROVED, datetime.now(UTC))
            firm = Firm(home, randomness=randomness(name))
            stack.callback(firm.close)
            firms_here.append(firm)
            apps[name] = client_app(firm.answer)
        run_id = int.from_bytes(hashlib.sha256(job.digest()).digest()[:8], "big") >> 1
        grid = stack.enter_context(InProcessGrid(apps, run_id=run_id, in_turn=in_turn))
        record = _LoggedRecord(store, job.id)

        def course(firms: Firms) -> None:
            outcome.append(Coordinator(job, initial, firms, record, Checkpoints(folder / "server")).run())
            record.set_state(JobState.FINISHED)

        run_app(server_app(course, folder / "sums"), grid, run_id)
        for firm in firms_here:  # closing a firm gives up a result that it is still making
            firm.wait_for_results()
    return outcome[0]


class _LoggedRecord(JobRecord):
    """Says in the log what a console would show: a job that waits for something would look as if it hung."""

    _said = ""

    def show(self, situation: Situation) -> None:
        """Keep and log where the job is."""
        if situation.sentence != self._said:
            self._said = situation.sentence
            logger.info("%s", self._said)
        super().show(situation)


def _store_with(job: JobFile, file: Path) -> Store:
    """A store that holds the job, running, and its firms as approved."""
    url = f"sqlite:///{file}"
    if file.exists():
        return Store.open(url)
    store = Store.create(url)
    with store.transaction() as at:
        for name, key in job.firms.items():
            at.firms.invite(name)
            at.firms.join(name, bytes.fromhex(key), "in-process")
            at.firms.approve(name)
        at.jobs.propose(job)
        at.jobs.set_operation(job.id, {"keep_sums": True})  # the folder is the researcher's
        at.jobs.set_state(job.id, JobState.RUNNING)
    return store
