"""Targets of what other processes say: trainers, the enrolment API and its callers, Flower's own runtimes."""

import asyncio
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from pydantic import BaseModel

from dure_client import flower as client_flower
from dure_client.enrolment.api import EnrolmentApi, EnrolmentError
from dure_client.trainer import messages as m
from dure_client.trainer.client import TrainerClient
from dure_client.trainer.messages import Method, TrainerError, TrainingSpec
from dure_client.trainer.process import TrainerPlaces
from dure_client.trainer.scratch import FLOAT32, Scratch, ScratchError
from dure_client.trainer.service import _parsed
from dure_client.trainer.session import SessionError, _terms
from dure_models import registry
from dure_models.errors import ModelsError
from dure_protocols.enrolment import API_PREFIX, JoinAnswer, JoinRequest, Problem, RootAnswer, StateAnswer, sign_request
from dure_protocols.errors import MessageError, MisuseError
from dure_protocols.identity import Identity
from dure_protocols.model_package import PublishedModel, PublishedModels
from dure_protocols.wire import Reader, Writer
from dure_server.coordinator.firms import Answer
from dure_server.enrolment.app import enrolment_app
from dure_server.enrolment.errors import UnknownInvitationError
from dure_server.enrolment.limits import RateLimit
from dure_server.enrolment.service import EnrolmentService
from dure_server.flower.firms import _grid_answer
from tests.fuzz.mutate import JSON
from tests.fuzz.target import Target
from tests.fuzz.targets.files import PARSER_BYTES, FromFile
from tests.fuzz.targets.keys import pems
from tests.fuzz.targets.scratch import scratch
from tests.models.samples import ENGINE_OPTIONS, ENGINES, PRESS
from tests.protocols.test_global_state import a_job

TEXT = 128
MOST_EXACT = 1 << 53
"""Integers up to here are exact as a double; counts become one."""


def process_targets() -> Iterator[Target]:
    """One for each decoder."""
    yield from _trainer_targets()
    yield from _enrolment_targets()
    arrays = _npy_seeds()
    refused = (MessageError, MisuseError)
    yield Target("flower/answer", _coordinator_hears, refused, arrays, 16, check=_check_answer)
    yield Target("flower/request", _firm_hears, refused, arrays, 16)


def _trainer_targets() -> Iterator[Target]:
    spec = TrainingSpec.of(a_job(statistics=2))
    scores = {"rmse": 1.5, "pr_auc": None}
    sums = {"train_loss": (3.0, 2.0), "validation_loss": (0.0, 0.0)}
    replies: tuple[tuple[Method, BaseModel], ...] = (
        (
            Method.OPEN,
            m.Opened(num_train=9, num_validation=2, num_test=0, primary_metric="rmse", higher_is_better=False),
        ),
        (Method.STATISTICS, m.Written(count=9)),
        (Method.TRAIN, m.TrainedReply(count=9, metrics=sums)),
        (Method.ASSESS, m.Assessed(metrics=sums)),
        (Method.EVALUATE, m.Evaluated(validation=scores, test={})),
        (Method.TRAIN_ALONE, m.TrainedAloneReply(best_round=3, validation=scores, test=scores)),
    )
    failure = m.Answer(failure=m.TrainerCode.DATA_SOURCE).model_dump_json().encode()
    for method, reply in replies:
        answer = m.Answer(result=reply.model_dump(mode="json")).model_dump_json().encode()
        decode = _Trainer(spec, method, type(reply))
        name = f"trainer/{method.value.lower()}-answer"
        yield Target(name, decode, (TrainerError,), [answer, failure], TEXT, check=_check_counts, mutators=JSON)
    requests: tuple[BaseModel, ...] = (
        m.OpenRequest(spec=spec),
        m.ArrayRequest(target="a-1.f32"),
        m.TrainRequest(
            model="a-1.f32", statistics="a-2.f64", statistics_count=9, target="a-3.f32", round=1, seed=2**48 - 1
        ),
        m.EvaluateRequest(model="a-1.f32", statistics="a-2.f64", statistics_count=9),
        m.TrainAloneRequest(target="a-1.f32", seed=7),
    )
    for request in requests:
        seeds = [request.model_dump_json().encode()]
        name = f"trainer/{type(request).__name__.removesuffix('Request').lower()}-request"
        yield Target(name, _Parsing(type(request)), (SessionError,), seeds, TEXT, check=_check_counts, mutators=JSON)

    folder = scratch("arrays")
    array = np.array([1.5, -2.0], FLOAT32)
    taking = FromFile(folder / "a-1.f32", lambda: Scratch(folder).take("a-1.f32", FLOAT32, 2))
    yield Target("trainer/array", taking, (ScratchError,), [array.tobytes()], 2, encode=np.ndarray.tobytes)

    settings = {"num_rounds": 3, "learning_rate": 0.1}
    changes = [
        {"contract": contract.model_dump(mode="json"), "options": options, "settings": settings}
        for contract, options in ((PRESS, {"hidden": 8}), (ENGINES, ENGINE_OPTIONS))
    ]
    jobs = [m.OpenRequest(spec=spec.model_copy(update=change)) for change in changes]
    seeds = [job.model_dump_json().encode() for job in jobs]
    refusals = (SessionError, ModelsError)
    yield Target("trainer/job", _terms_of_job, refusals, seeds, TEXT, mutators=JSON, base_bytes=PARSER_BYTES)


def _terms_of_job(data: bytes) -> int:
    """What a trainer reads of a job before it looks at the data: contract, settings, options, by each model."""
    spec = _parsed(m.OpenRequest, data).spec
    contract, _ = _terms(spec)
    made, refused = 0, None
    for name in ("tabular", "rul"):
        try:
            registry.create(name, contract, spec.options)
            made += 1
        except ModelsError as error:
            refused = error
    if refused is not None and not made:
        raise refused
    return made


@dataclass(frozen=True)
class _Parsing:
    """The trainer's side: a request of one kind."""

    kind: type[BaseModel]

    def __call__(self, data: bytes) -> BaseModel:
        return _parsed(self.kind, data)


class _Trainer(TrainerClient):
    """The agent's side, of a trainer that answers any bytes."""

    def __init__(self, spec: TrainingSpec, method: Method, reply: type[BaseModel]) -> None:
        folder = scratch("trainer")
        super().__init__(spec, TrainerPlaces(folder, folder / "data.toml", folder / "log"))
        self._method, self._reply = method, reply
        self._said = b""

    def __call__(self, data: bytes) -> BaseModel:
        self._said = data
        return self._call(self._method, m.ArrayRequest(target="a-1.f32"), self._reply, 1.0)

    def _connected(self) -> Any:
        return self

    def unary_unary(self, _method: str) -> Callable[..., bytes]:
        """What a gRPC channel has."""
        return lambda _request, timeout: self._said


def _check_counts(message: BaseModel) -> None:
    for name, value in message:
        if isinstance(value, BaseModel):
            _check_counts(value)
        elif isinstance(value, int):
            assert value <= MOST_EXACT or "seed" in name, f"{name} is a number of {len(str(value))} digits"


def _enrolment_targets() -> Iterator[Target]:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    pem = pems("certificates.pem")[0].decode()
    answers: tuple[BaseModel, ...] = (
        JoinAnswer(consortium="Millers", firm="firm-a", certificate=pem, link_port=7443),
        RootAnswer(consortium="Millers", certificate=pem),
        StateAnswer(
            consortium="Millers", firm="firm-a", status="approved", identity_fingerprint="ab" * 32, not_after=now
        ),
        PublishedModels(models=(PublishedModel(digest="ab" * 32, name="pump", version="1.0", size_bytes=5000),)),
    )
    for answer in answers:
        seeds = [answer.model_dump_json().encode()]
        name = f"enrolment/{type(answer).__name__.removesuffix('Answer').lower()}-answer"
        yield Target(name, _Api(type(answer), 200), (EnrolmentError,), seeds, TEXT, mutators=JSON, base_bytes=_HTTP)
    problem = Problem(type="urn:dure:problem:wrong-firm", title="No", status=403, detail="Ask the operator.")
    seeds = [problem.model_dump_json().encode()]
    yield Target(
        "enrolment/problem", _Api(RootAnswer, 403), (EnrolmentError,), seeds, TEXT, mutators=JSON, base_bytes=_HTTP
    )
    yield Target(
        "enrolment/request",
        _Server(),
        (),
        [_join_request().model_dump_json().encode()],
        TEXT,
        check=_check_status,
        mutators=JSON,
        base_bytes=4 * _HTTP,
    )


_HTTP = 256 << 10
"""What a request and its answer take in httpx and Starlette, whatever they say."""


class _NoRecord:
    def record(self, entry: object) -> None:
        """Nothing leaves."""


class _Api(EnrolmentApi):
    """The firm's side, of a server that answers any bytes with one status."""

    def __init__(self, form: type[BaseModel], status: int) -> None:
        super().__init__("https://dure.example.org:7444", _NoRecord(), None)
        self._client.close()
        self._form, self._said = form, b""
        transport = httpx.MockTransport(lambda request: httpx.Response(status, content=iter([self._said])))
        self._client = httpx.Client(base_url=self._url + API_PREFIX, transport=transport)

    def __call__(self, data: bytes) -> BaseModel:
        self._said = data
        return self.get("/root", self._form)


class _NoStore:
    """A store in which no invitation is."""

    def transaction(self) -> Any:
        """Where the answer would be looked up."""
        raise UnknownInvitationError("the server does not know this invitation; ask the operator for a new one")


class _Server:
    """The server's side: the enrolment API over HTTP, up to the store."""

    def __init__(self) -> None:
        service = EnrolmentService(_NoStore(), None, 7443)  # type: ignore[arg-type]
        app = enrolment_app(service, RateLimit(lambda: 0.0, burst=1 << 60))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._loop = asyncio.new_event_loop()
        self._client = httpx.AsyncClient(transport=transport, base_url=f"https://dure.example.org{API_PREFIX}")

    def __call__(self, data: bytes) -> int:
        request = self._client.post("/join", content=data, headers={"content-type": "application/json"})
        response = self._loop.run_until_complete(request)
        assert response.headers["content-type"] == "application/problem+json", response.text
        return response.status_code


def _check_status(status: int) -> None:
    assert status in {400, 403, 413, 422}, f"HTTP {status}"


def _join_request() -> JoinRequest:
    identity, request = Identity.from_seed(bytes(range(32))), pems("requests.pem")[0].decode()
    return JoinRequest(
        invitation_id="01" * 16,
        secret="02" * 32,
        firm="firm-a",
        signing_request=request,
        identity_key=identity.public_bytes.hex(),
        proof=sign_request(identity, "01" * 16, "firm-a", request).hex(),
        agent_version="0.1.0",
    )


def _npy_seeds() -> Sequence[bytes]:
    """What a Flower array is on Flower's own runtimes: type, shape and form as told, and a .npy file."""
    seeds = []
    for array in (np.arange(9, dtype=np.uint64), np.zeros(0, np.float32), np.ones((2, 3), np.float64)):
        held = Array(array)
        seeds.append(told_array(held.dtype, held.shape, held.stype, held.data))
    packed = io.BytesIO()
    np.savez_compressed(packed, a=np.zeros(1000))
    seeds.append(told_array("float64", (1000,), "numpy.ndarray", packed.getvalue()))
    return seeds


def told_array(dtype: str, shape: Sequence[int], form: str, data: bytes) -> bytes:
    """A Flower array as the targets here take it."""
    return bytes(Writer().text(dtype).items(shape, Writer.u64).text(form).blob(data))


def _message(data: bytes) -> Message:
    """A message of Flower's with one array, as bytes say."""
    reader = Reader(data)
    dtype, shape = reader.text(64), tuple(reader.items(Reader.u64, 64))
    form, content = reader.text(64), reader.blob(1 << 20)
    reader.end()
    record = ArrayRecord()
    record["masked"] = Array(dtype, shape, form, content)
    records = RecordDict({"dure": ConfigRecord({"body": b"\x12"}), "arrays": record})
    metadata = Metadata(
        run_id=1,
        message_id="m",
        src_node_id=2,
        dst_node_id=1,
        reply_to_message_id="r",
        group_id="g",
        created_at=1.0,
        ttl=60.0,
        message_type="query.dure",
    )
    return Message(metadata=metadata, content=records)


def _coordinator_hears(data: bytes) -> Answer:
    return _grid_answer(_message(data))


def _firm_hears(data: bytes) -> dict[str, Any]:
    message = _message(data)
    client_flower.digests_of(message)
    return client_flower.arrays_of(message)


def _check_answer(answer: Answer) -> None:
    assert answer.error in {None, "malformed"}, answer.error
