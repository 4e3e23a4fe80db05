"""The agent's hand on its trainer. numpy and grpc only: the agent never loads torch, polars or a row of data.

It runs in a sandbox. The process starts with the first call and again after it died; then the job is opened again
before the call. A call that meets a death raises `TrainerError(DIED)`, once: the round that was being trained decides
what that means.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from dure_client.trainer import messages as m
from dure_client.trainer.messages import Method, TrainerCode, TrainerError, TrainingSpec
from dure_client.trainer.process import TRAINER_MODULE, TrainerPlaces, TrainerProcess, start
from dure_client.trainer.sandbox import Limits, Sandbox, find_sandbox
from dure_client.trainer.scratch import FLOAT32, FLOAT64, Scalar, Scratch, ScratchError

Reply = TypeVar("Reply", bound=BaseModel)

_DEATH_SHOWS_SECONDS = 1.0
_NEVER = (1 << 31) - 1  # milliseconds, as gRPC takes them


@dataclass(frozen=True)
class Deadlines:
    """Longest waits, in seconds."""

    start: float = 60.0
    short: float = 300.0
    train: float = 3600.0
    train_alone: float = 24 * 3600.0


@dataclass(frozen=True)
class StatisticsSums:
    """A firm's or the consortium's statistics: `sums` (S,) float64 over `count` rows."""

    sums: NDArray[np.float64]
    count: int


@dataclass(frozen=True)
class Trained:
    """One round's outcome: update (d,) float32 = new - old, unclipped; training examples; name to (sum, weight)."""

    update: NDArray[np.float32]
    count: int
    metrics: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class OwnModel:
    """The firm's model trained without others, (d,) float32, and its report."""

    parameters: NDArray[np.float32]
    best_round: int
    validation: Mapping[str, float | None]
    test: Mapping[str, float | None]


class TrainerClient:
    """One trainer process for one job. Not safe to use from two threads at once. Close it, or use it in `with`."""

    def __init__(
        self,
        spec: TrainingSpec,
        places: TrainerPlaces,
        *,
        num_threads: int = 1,
        deadlines: Deadlines | None = None,
        environment: Mapping[str, str] | None = None,
        module: str = TRAINER_MODULE,
        sandbox: Sandbox | None = None,
        limits: Limits | None = None,
        called: Callable[[str, float], None] = lambda _, __: None,
    ) -> None:
        """Nothing is started yet. `environment` adds to the trainer's minimal one; `module` is the process to start;
        `sandbox` and `limits` are this host's strongest and usual ones unless given; `called` is told each call's
        method and seconds."""
        self._sandbox, self._limits = sandbox, limits
        self._called = called
        self._module = module
        self._is_shut = False
        self._spec = spec
        self._places = places
        self._scratch = Scratch(places.scratch)
        self._num_threads = num_threads
        self._deadlines = deadlines or Deadlines()
        self._environment = environment
        self._process: TrainerProcess | None = None
        self._was_lost = threading.Event()
        self._channel: grpc.Channel | None = None
        self._opened: m.Opened | None = None

    def open(self) -> m.Opened:
        """Load and check the data, build the model. Other calls do it by themselves. Raises TrainerError."""
        if self._process is not None and self._is_gone(self._process):
            self._end()
        if self._opened is None:
            self._opened = self._call(Method.OPEN, m.OpenRequest(spec=self._spec), m.Opened, self._deadlines.short)
        return self._opened

    def initial(self) -> NDArray[np.float32]:
        """The job's first global model, (d,), from its seed. The caller MUST hold its SHA-256 against the job file."""
        target = self._scratch.new_name(FLOAT32)
        self._ask(Method.INITIAL, m.ArrayRequest(target=target), m.Written, self._deadlines.short)
        return self._take(target, FLOAT32, self._spec.num_parameters)

    def statistics(self) -> StatisticsSums:
        """Sums over the firm's training rows, each within ±count: what round 0 adds up."""
        target = self._scratch.new_name(FLOAT64)
        written = self._ask(Method.STATISTICS, m.ArrayRequest(target=target), m.Written, self._deadlines.short)
        return StatisticsSums(self._take(target, FLOAT64, self._spec.num_statistics), written.count)

    def train(
        self, model: NDArray[np.float32], statistics: StatisticsSums | None, *, round_number: int, seed: int
    ) -> Trained:
        """Train one round from the global model (d,), inputs normalised by the consortium's statistics.

        Raises TrainerError; MisuseError for arrays of other shapes.
        """
        target = self._scratch.new_name(FLOAT32)
        with self._lent(model, statistics) as (model_name, statistics_name):
            request = m.TrainRequest(
                model=model_name,
                statistics=statistics_name,
                statistics_count=statistics.count if statistics else 0,
                target=target,
                round=round_number,
                seed=seed,
            )
            reply = self._call(Method.TRAIN, request, m.TrainedReply, self._deadlines.train)
        return Trained(self._take(target, FLOAT32, self._spec.num_parameters), reply.count, reply.metrics)

    def assess(
        self, model: NDArray[np.float32], statistics: StatisticsSums | None
    ) -> Mapping[str, tuple[float, float]]:
        """The additive round metrics of a model as it is, name to (sum, weight). Raises as `train`."""
        return self._judge(Method.ASSESS, model, statistics, m.Assessed).metrics

    def evaluate(self, model: NDArray[np.float32], statistics: StatisticsSums | None) -> m.Evaluated:
        """Report on a model on the firm's validation and test rows. For the firm's own eyes. Raises as `train`."""
        return self._judge(Method.EVALUATE, model, statistics, m.Evaluated)

    def train_alone(self, *, seed: int) -> OwnModel:
        """Train the firm's own model from the same first model with as many epochs as the job, chosen on validation."""
        target = self._scratch.new_name(FLOAT32)
        request = m.TrainAloneRequest(target=target, seed=seed)
        reply = self._ask(Method.TRAIN_ALONE, request, m.TrainedAloneReply, self._deadlines.train_alone)
        parameters = self._take(target, FLOAT32, self._spec.num_parameters)
        return OwnModel(parameters, reply.best_round, reply.validation, reply.test)

    @property
    def has_ended(self) -> bool:
        """Whether a process was started and has ended by itself; `close` then removes what it left."""
        return self._process is not None and not self._process.is_running

    @property
    def pid(self) -> int | None:
        """The trainer's process id, or None while none runs."""
        return self._process.pid if self._process is not None and self._process.is_running else None

    def use_threads(self, num_threads: int) -> None:
        """What the process may use from now on; one that runs with another number is ended, and started anew later."""
        if num_threads != self._num_threads:
            self._num_threads = num_threads
            self._end()

    def grant(self, devices: Sequence[Path], limits: Limits) -> None:
        """What the process may use from now on; one that runs is ended, and started anew later."""
        self._places, self._limits = replace(self._places, devices=devices), limits
        self._end()

    def close(self) -> None:
        """End the process. A later call would start it again."""
        self._end()

    def shut(self) -> None:
        """End the process for good: a later call, also of another thread in the middle of its work, fails."""
        self._is_shut = True
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _judge(
        self, method: Method, model: NDArray[np.float32], statistics: StatisticsSums | None, reply: type[Reply]
    ) -> Reply:
        with self._lent(model, statistics) as (model_name, statistics_name):
            request = m.EvaluateRequest(
                model=model_name,
                statistics=statistics_name,
                statistics_count=statistics.count if statistics else 0,
            )
            return self._call(method, request, reply, self._deadlines.short)

    def _ask(self, method: Method, request: BaseModel, reply: type[Reply], timeout_seconds: float) -> Reply:
        self.open()
        return self._call(method, request, reply, timeout_seconds)

    def _call(self, method: Method, request: BaseModel, reply: type[Reply], timeout_seconds: float) -> Reply:
        call = self._connected().unary_unary(f"/{m.SERVICE}/{method.value}")
        began = time.monotonic()
        try:
            answer_bytes = call(request.model_dump_json().encode(), timeout=timeout_seconds)
        except grpc.RpcError as error:
            raise self._failed(error) from None  # its text is the peer's
        finally:
            self._called(method.value, time.monotonic() - began)
        try:
            answer = m.Answer.model_validate_json(answer_bytes)
            if answer.failure is None:
                return reply.model_validate(answer.result)
        except ValidationError:
            raise self._error(TrainerCode.BAD_ANSWER) from None  # its text quotes the answer
        if answer.failure is TrainerCode.NOT_OPEN:
            self._opened = None
        raise self._error(answer.failure)

    def _connected(self) -> grpc.Channel:
        if self._is_shut:
            raise self._error(TrainerCode.DIED)
        if self._channel is None:
            self._scratch.clear()
            self._process = start(
                self._places,
                self._sandbox or find_sandbox(),
                limits=self._limits,
                num_threads=self._num_threads,
                timeout_seconds=self._deadlines.start,
                environment=self._environment,
                module=self._module,
            )
            limits = [
                ("grpc.max_receive_message_length", m.MAX_ANSWER_BYTES),
                ("grpc.enable_http_proxy", 0),
                ("grpc.client_idle_timeout_ms", _NEVER),
            ]
            self._channel = grpc.insecure_channel(f"unix:{self._process.socket}", options=limits)
            self._wait_until_ready(self._channel)
            if self._is_shut:  # meanwhile, by another thread, which found nothing to end
                self._end()
                raise self._error(TrainerCode.DIED)
            self._was_lost = threading.Event()
            self._channel.subscribe(partial(_note_loss, self._was_lost))
        return self._channel

    def _is_gone(self, process: TrainerProcess) -> bool:
        """Whether the process has ended or its connection was lost. gRPC would connect again by itself, to whatever
        the process has put in its socket's place."""
        return not process.is_running or self._was_lost.is_set() or not process.has_socket

    def _wait_until_ready(self, channel: grpc.Channel) -> None:
        try:
            grpc.channel_ready_future(channel).result(timeout=self._deadlines.start)
        except grpc.FutureTimeoutError:
            self._end()
            raise self._error(TrainerCode.DID_NOT_START) from None

    def _failed(self, error: grpc.RpcError) -> TrainerError:
        """What a broken call means; the process is ended in any case, so that the next call finds a fresh one."""
        is_late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        is_dead = self._process is not None and self._process.has_ended_within(0 if is_late else _DEATH_SHOWS_SECONDS)
        self._end()
        if is_dead:
            return self._error(TrainerCode.DIED)
        return self._error(TrainerCode.DEADLINE if is_late else TrainerCode.BAD_ANSWER)

    def _error(self, code: TrainerCode) -> TrainerError:
        return TrainerError(code, str(self._places.log))

    def _end(self) -> None:
        self._opened = None
        channel, self._channel = self._channel, None
        process, self._process = self._process, None
        if channel is not None:
            channel.close()
        if process is not None:
            process.close()
            self._scratch.clear()  # a model may have left rows there

    def _take(self, name: str, scalar: type[Scalar], length: int) -> NDArray[Scalar]:
        try:
            return self._scratch.take(name, scalar, length)
        except ScratchError:
            raise self._error(TrainerCode.ARRAY) from None

    @contextmanager
    def _lent(self, model: NDArray[np.float32], statistics: StatisticsSums | None) -> Iterator[tuple[str, str]]:
        """A model and statistics as files for the length of one call: their names."""
        self.open()  # first, because a restart clears the folder
        scratch, spec = self._scratch, self._spec
        sums = np.zeros(0) if statistics is None else statistics.sums
        with (
            scratch.lent(model, FLOAT32, spec.num_parameters) as model_name,
            scratch.lent(sums, FLOAT64, spec.num_statistics) as statistics_name,
        ):
            yield model_name, statistics_name


def _note_loss(lost: threading.Event, now: grpc.ChannelConnectivity) -> None:
    """Called by gRPC with each change, the first time with a channel that is ready."""
    if now is not grpc.ChannelConnectivity.READY:
        lost.set()
