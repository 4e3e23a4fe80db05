"""Targets of what firm and server keep or are given as files: the ledger, policies, mappings, drafts, decisions."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dure_client import policy
from dure_client.data import mapping
from dure_client.home import AgentConfig, AgentHome, HomeError
from dure_client.jobs.approvals import Decision, Verdict, decision_on
from dure_client.jobs.folder import JobFolder
from dure_client.jobs.refusals import REFUSAL_FILE, last_refusal, note_refusal
from dure_client.jobs.results import JobResult, ModelReport, ResultError
from dure_client.ledger import Ledger, head_file, read_head, verify_file
from dure_client.ledger_export import export, verify_export
from dure_client.policy import Policy, PolicyError
from dure_client.shifts import TrainedFile, Training
from dure_client.trainer.service import TrainerService
from dure_client.trainer.session import SessionError
from dure_models.contract import DataContract
from dure_models.errors import ContractError
from dure_protocols import ledger as chain
from dure_protocols.errors import MessageError, RefusalCode
from dure_protocols.global_state import GlobalState
from dure_protocols.job import JobFile
from dure_protocols.ledger import Head, LedgerError, LedgerRecord
from dure_server.jobs import JobDraft, JobDraftError
from dure_server.settings import ServerHome, ServerSettings, SettingsError
from tests.client.test_home import CONFIG
from tests.fuzz.mutate import JSON, TOML
from tests.fuzz.target import Target
from tests.fuzz.targets.scratch import scratch
from tests.models.samples import ENGINES, PRESS
from tests.protocols.test_global_state import INITIAL, a_job, a_moving_job, published
from tests.protocols.test_ledger import OWN, chain_of

LEDGER_BYTES = 512 << 10
"""A ledger is read line by line: memory for one line, however many there are."""
PARSER_BYTES = 4 << 20
"""A parser that gives up a thousand brackets deep has as many frames; a contract's columns have a problem each."""
TEXT = 512
"""Bytes that a text of the firm's or operator's own may take for each of its own: every problem in it is listed."""
JSON_TEXT = 128
"""The same for JSON that others may have written."""
NOW = datetime(2026, 3, 1, tzinfo=UTC)

POLICY = f"""
approve_jobs = "allowed-models"
minimum_cohort = 4
purposes = ["failure prediction"]
vouchers_needed = 2
[firms]
lee = "{"ab" * 32}"
[[allowed_models]]
name = "tabular"
digest = "{"cd" * 32}"
[[agreements]]
name = "Valley"
version = "2"
sha256 = "{"cd" * 32}"
[[shifts]]
window = "Mon-Fri 06:00-14:00"
rounds = 4
training_minutes = 2.5
threads = 1
"""
MAPPING = """
[train]
paths = ["data/train*.csv", "/srv/more.parquet"]
[test]
paths = ["data/test.csv"]
[format]
kind = "csv"
separator = ";"
header = false
names = ["unit", "cycle"]
[columns]
torque = "Torque [Nm]"
air = { source = "T_air", unit = "K" }
"""
DRAFT = """
id = "milling-1"
title = "Milling"
model = "tabular"
contract = "milling.toml"
firms = ["kim", "lee"]
rounds = 3
[codec]
clip = 1.0
count_cap = 100
[options]
hidden = [16, 16]
[training]
learning_rate = 0.1
"""


@dataclass(frozen=True)
class FromFile:
    """A decoder that reads a file: `read` is called once the bytes are in it."""

    file: Path
    read: Callable[[], Any]

    def __call__(self, data: bytes) -> object:
        """Write the bytes and read them."""
        self.file.write_bytes(data)
        return self.read()


def file_targets() -> Iterator[Target]:
    """One for each kind of file."""
    yield from _ledger_targets()
    yield from _settings_targets()
    yield from _job_targets()
    yield from _array_targets()
    yield from _contract_targets()


def _contract_targets() -> Iterator[Target]:
    contracts = (PRESS, ENGINES)
    texts = [contract.to_toml().encode() for contract in contracts]
    jsons = [contract.canonical_json().encode() for contract in contracts]
    for name, decode, seeds, per_byte, mutators in (
        ("contract/toml", _contract_toml, texts, TEXT, TOML),
        ("contract/json", _contract_json, jsons, JSON_TEXT, JSON),
        ("contract/job", _contract_of_job, jsons, JSON_TEXT, JSON),
    ):
        refused = (ContractError,)
        yield Target(name, decode, refused, seeds, per_byte, None, _check_contract, mutators, PARSER_BYTES)


def _ledger_targets() -> Iterator[Target]:
    records = chain_of(5)
    lines = [record.to_line() for record in records]
    yield Target(
        "ledger/record",
        LedgerRecord.from_line,
        (MessageError,),
        lines,
        24,
        LedgerRecord.to_line,
        mutators=JSON,
    )
    folder = scratch("ledger")
    file = folder / "ledger.jsonl"
    refused = (LedgerError,)
    file.write_bytes(b"".join(lines))
    export(file, left := scratch("export") / "left.jsonl", "kim", OWN, b"")
    exported = left.read_bytes()
    whole = [b"".join(lines), lines[0], b""]
    verify = FromFile(file, lambda: verify_file(file, OWN.public_bytes))
    yield Target("ledger/file", verify, refused, whole, 0, mutators=JSON, base_bytes=LEDGER_BYTES)
    other = folder / "other"
    check = FromFile(other, lambda: verify_export(other, OWN.fingerprint))
    yield Target("ledger/export", check, refused, [exported], 0, mutators=JSON, base_bytes=LEDGER_BYTES)
    opened = scratch("opened-ledger") / "ledger.jsonl"
    opening = FromFile(opened, lambda: _opened(opened))
    yield Target("ledger/open", opening, refused, whole, 0, mutators=JSON, base_bytes=LEDGER_BYTES)
    head = Head(5, records[-1].hash)
    fields = {"number": 5, "hash": head.hash.hex(), "signature": chain.sign_head(head, OWN).hex()}
    heads = [json.dumps(fields, separators=(",", ":")).encode() + b"\n", b" " * 512]
    noted = scratch("head") / "ledger.jsonl"
    reading = FromFile(head_file(noted), lambda: read_head(noted, OWN.public_bytes))
    yield Target("ledger/head", reading, refused, heads, 32, mutators=JSON)


def _opened(file: Path) -> Head:
    head_file(file).unlink(missing_ok=True)
    with Ledger(file, OWN, lambda: NOW) as ledger:
        return ledger.head


def _settings_targets() -> Iterator[Target]:
    agent, server = AgentHome(scratch("agent")), ServerHome(scratch("server"))
    for name, file, read, refusal, seeds, check in (
        ("policy", agent.policy_file, Policy.read, PolicyError, [POLICY, policy.DEFAULT_TEXT], _nothing),
        ("mapping", agent.data_file, mapping.DataMapping.read, mapping.DataMappingError, [MAPPING], _nothing),
        ("agent-config", agent.config_file, lambda _: agent.config(), HomeError, [CONFIG.to_toml()], _check_config),
        (
            "server-settings",
            server.settings_file,
            lambda _: server.settings(),
            SettingsError,
            [
                ServerSettings(consortium="Millers", public_host="dure.example.org").to_toml(),
                'consortium = "a"\npublic_host = "::1"\nstore_url = "postgresql+psycopg://u:p@h/d"\n',
            ],
            _check_settings,
        ),
        ("draft", server.path / "draft.toml", JobDraft.read, JobDraftError, [DRAFT], _nothing),
    ):
        texts = [text.encode() for text in seeds]
        decode = FromFile(file, _bound(read, file))
        yield Target(name, decode, (refusal,), texts, TEXT, check=check, mutators=TOML, base_bytes=PARSER_BYTES)


def _bound(read: Callable[[Path], Any], file: Path) -> Callable[[], Any]:
    return lambda: read(file)


def _nothing(value: object) -> None:
    pass


def _check_config(config: AgentConfig) -> None:
    """What is written is read."""
    home = AgentHome(scratch("written-agent"))
    home.config_file.write_text(config.to_toml())
    assert home.config() == config


def _check_settings(settings: ServerSettings) -> None:
    home = ServerHome(scratch("written-server"))
    home.settings_file.write_text(settings.to_toml())
    assert home.settings() == settings


def _job_targets() -> Iterator[Target]:
    """What lies in a job's folder at a firm."""
    home = AgentHome(scratch("home"))
    job = a_job(selection_metric="validation_loss")
    folder = home.job_folder(job.id)
    folder.mkdir(parents=True, exist_ok=True)
    decision = Decision(job=job.id, digest=job.digest().hex(), verdict=Verdict.APPROVED, time="2026-03-01T00:00:00Z")
    yield Target(
        "decision",
        FromFile(folder / "approval.json", lambda: decision_on(home, job)),
        (),
        [decision.model_dump_json(indent=2).encode()],
        JSON_TEXT,
        mutators=JSON,
    )
    report = ModelReport(validation={"rmse": 1.5, "other": None}, test={})
    result = JobResult(
        job=job.id,
        num_train=5,
        num_validation=1,
        num_test=0,
        primary_metric="rmse",
        higher_is_better=False,
        alone=report,
        federated=report,
    )
    yield Target(
        "result",
        FromFile(folder / "result.json", lambda: JobResult.read(folder / "result.json")),
        (ResultError,),
        [result.model_dump_json(indent=2).encode()],
        JSON_TEXT,
        check=lambda result: result.keeps,
        mutators=JSON,
    )
    file, home = FromFile(scratch("trained") / "trained.json", _trained), _refusing()
    trainings = [b'[{"at":"2026-03-02T08:00:00Z","seconds":60.0}]', b"[]"]
    yield Target("trained", file, (), trainings, JSON_TEXT, mutators=JSON, base_bytes=PARSER_BYTES)
    refusals = [(home.job_folder("job-1") / REFUSAL_FILE).read_bytes()]
    reading = FromFile(home.job_folder("job-1") / REFUSAL_FILE, lambda: last_refusal(home, "job-1"))
    yield Target("refusal-file", reading, (), refusals, JSON_TEXT, mutators=JSON)
    for number, other in enumerate((a_moving_job(statistics=2), a_job(statistics=2, selection_metric=None))):
        restoring = _Restoring(other, scratch(f"progress-{number}"))
        yield Target(
            f"progress/{'moving' if number == 0 else 'plain'}",
            restoring,
            (),
            restoring.seeds(),
            TEXT,
            check=restoring.check,
            mutators=JSON,
        )


def _trained() -> list[Training]:
    return TrainedFile(scratch("trained") / "trained.json").done


def _refusing() -> AgentHome:
    home = AgentHome(scratch("refusing"))
    home.job_folder("job-1").mkdir(parents=True)
    note_refusal(home, "job-1", RefusalCode.ROSTER, "the firm 'park' is not accepted here", NOW)
    return home


def _array_targets() -> Iterator[Target]:
    """Arrays on disk: whole or not there, and what a power cut left of one is neither."""
    job, path = a_job(), scratch("arrays")
    folder, place = JobFolder(path), (1, 2, 3)
    first = FromFile(path / "initial.f32", lambda: folder.first_model(job.model.initial_digest, lambda: INITIAL))
    seeds = [INITIAL.tobytes(), INITIAL.tobytes() * 2, b""]
    yield Target("arrays/first-model", first, (), seeds, 4, check=_check_first)
    residual = FromFile(path / "residual-1-2-3.f32", lambda: folder.load_residual(place, INITIAL.size))
    yield Target("arrays/residual", residual, (), seeds, 4, check=_check_residual)
    service = TrainerService(path, path / "data.toml")
    reading = FromFile(path / "a-1.f32", lambda: service._read("a-1.f32", "<f4"))
    # The first array that is not finite makes numpy load what it had not needed yet.
    yield Target("arrays/trainer", reading, (SessionError,), seeds, 4, check=_check_finite, base_bytes=1 << 20)


def _check_first(model: NDArray[np.float32]) -> None:
    assert np.array_equal(model, INITIAL)


def _check_residual(residual: NDArray[np.float32]) -> None:
    assert residual.shape == INITIAL.shape
    _check_finite(residual)


def _check_finite(array: NDArray[np.float32]) -> None:
    assert np.isfinite(array).all()


class _Restoring:
    """A job's folder whose progress.json is what bytes say; the models that it may name are there."""

    def __init__(self, job: JobFile, path: Path) -> None:
        self._job, self._folder = job, JobFolder(path)
        self._seeds = tuple(self._course())

    def _course(self) -> Iterator[bytes]:
        state = GlobalState(self._job, INITIAL)
        models = {}
        for place in (None, (1, 1, 1), (1, 2, 1)):
            self._folder.save_state(state, place)
            yield (self._folder.path / "progress.json").read_bytes()
            models |= {file.name: np.fromfile(file, "<f4") for file in self._folder.path.glob("model-*.f32")}
            state.advance(published(self._job, state.round, clip=state.clip), 3)
        for name, model in models.items():
            self._folder.save_array(name, model)

    def seeds(self) -> tuple[bytes, ...]:
        """What a job's course stored."""
        return self._seeds

    def __call__(self, data: bytes) -> GlobalState:
        (self._folder.path / "progress.json").write_bytes(data)
        state = GlobalState(self._job, INITIAL)
        place = self._folder.restore_state(state)
        assert place is None or len(place) == 3
        return state

    def check(self, state: GlobalState) -> None:
        """The state is one that the job can be in, and can be stored again."""
        assert type(state.round) is int, f"round {state.round!r}"
        assert 0 <= state.round <= self._job.rounds + 2, f"round {state.round}"
        assert state.model.shape == INITIAL.shape, f"a model of {state.model.shape}"
        assert state.normalisation is None or state.normalisation.shape == (3,), f"{state.normalisation}"
        assert np.isfinite(state.clip), f"a clip of {state.clip!r}"
        assert state.clip > 0, f"a clip of {state.clip!r}"
        assert state.best is None or state.best.model.shape == INITIAL.shape
        state.to_words()
        assert len(state.hash) == 32


def _contract_toml(data: bytes) -> DataContract:
    return DataContract.from_toml(data.decode(errors="replace"))


def _contract_of_job(data: bytes) -> DataContract:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ContractError("no job file carries what is no JSON") from error
    return DataContract.of(values)


def _contract_json(data: bytes) -> DataContract:
    return DataContract.from_json(data.decode(errors="replace"))


def _check_contract(contract: DataContract) -> None:
    """What is written is read, in both forms, and has the same digest."""
    for again in (DataContract.from_json(contract.canonical_json()), DataContract.from_toml(contract.to_toml())):
        assert again == contract
        assert again.digest() == contract.digest()
