"""The trainer's side of the socket: bytes in, a session's answer or a code out, and never an exception's text.

gRPC would send the text of an exception that leaves a handler to the caller; so none leaves one. What went wrong is
written to the process's standard error, which is the firm's own trainer log.
"""

import logging
import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from dure_client.data.errors import DataMappingError, DataSourceError
from dure_client.packages.shelf import PackageError, load
from dure_client.trainer import messages as m
from dure_client.trainer.messages import Method, TrainerCode
from dure_client.trainer.session import SessionError, TrainingSession
from dure_models.errors import ContractError, DataContractError, ModelOptionsError, UnknownModelError
from dure_models.interface import Statistics
from dure_protocols.errors import MisuseError

logger = logging.getLogger(__name__)

Request = TypeVar("Request", bound=BaseModel)

_CODES: tuple[tuple[type[BaseException], TrainerCode], ...] = (
    (DataMappingError, TrainerCode.DATA_MAPPING),
    (DataSourceError, TrainerCode.DATA_SOURCE),
    (DataContractError, TrainerCode.CONTRACT),
    (ContractError, TrainerCode.MODEL_OPTIONS),
    (PackageError, TrainerCode.MODEL_DIGEST),
    (UnknownModelError, TrainerCode.MODEL_UNKNOWN),
    (ModelOptionsError, TrainerCode.MODEL_OPTIONS),
    (ValidationError, TrainerCode.TRAINING),  # of an answer: metrics that are not finite
    (MisuseError, TrainerCode.TRAINING),
    (MemoryError, TrainerCode.MEMORY),
)


class TrainerService:
    """Answers one call at a time for one open job."""

    def __init__(
        self,
        scratch: Path,
        data: Path,
        make_session: Callable[[m.TrainingSpec, Path], TrainingSession] = TrainingSession,
        *,
        package: Path | None = None,
    ) -> None:
        """`scratch` is the folder of arrays, `data` the firm's data.toml, `make_session` opens a job on that data.

        `package`: folder of the approved model package; it is verified before any of it is imported.
        """
        self._package = package
        self._scratch = scratch
        self._data = data
        self._make_session = make_session
        self._session: TrainingSession | None = None
        self._mutex = threading.Lock()
        self._methods: Mapping[Method, Callable[[bytes], BaseModel]] = {
            Method.OPEN: self._open,
            Method.INITIAL: self._initial,
            Method.STATISTICS: self._statistics,
            Method.TRAIN: self._train,
            Method.ASSESS: self._assess,
            Method.EVALUATE: self._evaluate,
            Method.TRAIN_ALONE: self._train_alone,
        }

    def answer(self, method: Method, request: bytes) -> bytes:
        """The answer to a call, whatever happens: a result, or a failure's code."""
        with self._mutex:
            try:
                result = self._methods[method](request)
                return m.Answer(result=result.model_dump(mode="json")).model_dump_json().encode()
            except BaseException as error:  # also a Rust panic of polars: no text may reach gRPC
                logger.exception("%s failed", method.value)
                return m.Answer(failure=_code_of(error)).model_dump_json().encode()

    def _open(self, request: bytes) -> m.Opened:
        asked = _parsed(m.OpenRequest, request)
        self._session = None  # frees the last job's rows before the next are read
        if self._package is not None:
            load(self._package)
        self._session = self._make_session(asked.spec, self._data)
        train, validation, test = self._session.rows
        metric = self._session.primary_metric
        return m.Opened(
            num_train=train,
            num_validation=validation,
            num_test=test,
            primary_metric=metric.name,
            higher_is_better=metric.higher_is_better,
        )

    def _initial(self, request: bytes) -> m.Written:
        asked = _parsed(m.ArrayRequest, request)
        self._write(asked.target, self._opened().initial_model())
        return m.Written()

    def _statistics(self, request: bytes) -> m.Written:
        asked = _parsed(m.ArrayRequest, request)
        statistics = self._opened().statistics()
        self._write(asked.target, statistics.sums)
        return m.Written(count=statistics.count)

    def _train(self, request: bytes) -> m.TrainedReply:
        asked = _parsed(m.TrainRequest, request)
        statistics = self._read_statistics(asked.statistics, asked.statistics_count)
        parameters = self._read_model(asked.model)
        result = self._opened().train(parameters, statistics, round_number=asked.round, seed=asked.seed)
        self._write(asked.target, result.update)
        return m.TrainedReply(count=result.count, metrics=dict(result.metrics))

    def _assess(self, request: bytes) -> m.Assessed:
        asked = _parsed(m.EvaluateRequest, request)
        statistics = self._read_statistics(asked.statistics, asked.statistics_count)
        return m.Assessed(metrics=self._opened().assess(self._read_model(asked.model), statistics))

    def _evaluate(self, request: bytes) -> m.Evaluated:
        asked = _parsed(m.EvaluateRequest, request)
        statistics = self._read_statistics(asked.statistics, asked.statistics_count)
        validation, test = self._opened().evaluate(self._read_model(asked.model), statistics)
        return m.Evaluated(validation=_scores(validation), test=_scores(test))

    def _train_alone(self, request: bytes) -> m.TrainedAloneReply:
        asked = _parsed(m.TrainAloneRequest, request)
        result, validation, test = self._opened().train_alone(asked.seed)
        self._write(asked.target, result.parameters)
        return m.TrainedAloneReply(best_round=result.best_round, validation=_scores(validation), test=_scores(test))

    def _opened(self) -> TrainingSession:
        if self._session is None:
            raise SessionError(TrainerCode.NOT_OPEN, "no job is open")
        return self._session

    def _read(self, name: str, form: str) -> NDArray[np.floating]:
        try:
            array: NDArray[np.floating] = np.fromfile(self._scratch / name, dtype=form)
        except OSError as error:
            raise SessionError(TrainerCode.ARRAY, f"{name} cannot be read") from error
        if not np.isfinite(array).all():
            raise SessionError(TrainerCode.ARRAY, f"{name} holds values that are not finite")
        return array

    def _read_model(self, name: str) -> NDArray[np.float32]:
        return self._read(name, "<f4").astype(np.float32, copy=False)

    def _read_statistics(self, name: str, count: int) -> Statistics:
        return Statistics(self._read(name, "<f8").astype(np.float64), count)

    def _write(self, name: str, array: NDArray[np.floating]) -> None:
        form = "<f4" if name.endswith(".f32") else "<f8"
        array.astype(form, copy=False).tofile(self._scratch / name)


def _parsed(kind: type[Request], request: bytes) -> Request:
    try:
        return kind.model_validate_json(request)
    except ValidationError as error:
        raise SessionError(TrainerCode.BAD_REQUEST, "the request is not what it must be") from error


def _code_of(error: BaseException) -> TrainerCode:
    if isinstance(error, SessionError):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), TrainerCode.INTERNAL)


def _scores(report: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in report.items()}


def make_server(service: TrainerService, socket: Path) -> grpc.Server:
    """A gRPC server on a Unix socket that hands bytes to the service. The caller starts and stops it."""
    handlers = {
        method.value: grpc.unary_unary_rpc_method_handler(
            lambda request, _context, method=method: service.answer(method, request)
        )
        for method in Method
    }
    server = grpc.server(
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="trainer"),
        options=[("grpc.max_receive_message_length", m.MAX_MESSAGE_BYTES)],
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(m.SERVICE, handlers),))
    server.add_insecure_port(f"unix:{socket}")
    return server
