"""The trainer as it runs in production: a real process, a real socket, a real table on disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from dure_client.trainer import messages as m
from dure_client.trainer.client import Deadlines, TrainerClient
from dure_client.trainer.messages import TrainerCode, TrainerError, TrainingSpec
from dure_client.trainer.process import TrainerPlaces
from dure_models.contract import DataContract
from dure_protocols.errors import MisuseError, RefusalCode

CANARY = 4242.4242  # a value of the data that nobody outside the trainer may see
CONTRACT = DataContract.from_toml(
    """
    name = "pumps"
    title = "Pumps, simulated"
    simulated = true
    [[columns]]
    name = "flow"
    type = "float"
    role = "feature"
    range = [0, 10]
    [[columns]]
    name = "heat"
    type = "float"
    role = "target"
    range = [-10000, 10000]
    """
)
SETTINGS = {"num_rounds": 30, "learning_rate": 0.05, "batch_size": 16, "local_epochs": 2}


@pytest.fixture(scope="module")
def installed_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the import path that offers the model `linear` by an entry point, as an installed package does."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(Path(__file__).parent / "trainer_model", folder / "trainer_model")
    information = folder / "trainer_model-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: trainer-model\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[dure.models]\nlinear = trainer_model:LinearModel\n")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def write_data(folder: Path, *, canary: float = 7.0) -> Path:
    flows = np.linspace(0, 10, 120)
    rows = [f"{flow},{2 * flow + 1}" for flow in flows]
    rows[3] = f"{flows[3]},{canary}"
    (folder / "train.csv").write_text("flow,heat\n" + "\n".join(rows) + "\n")
    (folder / "test.csv").write_text("flow,heat\n" + "\n".join(f"{x},{2 * x + 1}" for x in range(10)) + "\n")
    data = folder / "data.toml"
    data.write_text('[train]\npaths = ["train.csv"]\n[test]\npaths = ["test.csv"]\n')
    return data


def spec_of(**changes: object) -> TrainingSpec:
    from dure_models.digest import model_digest

    fields = {
        "job": "job-1",
        "model": "linear",
        "model_digest": model_digest("linear"),
        "options": {},
        "num_parameters": 2,
        "num_statistics": 1,
        "contract": json.loads(CONTRACT.canonical_json()),
        "settings": SETTINGS,
        "seed": 7,
    }
    return TrainingSpec.model_validate({**fields, **changes})


def make_client(folder: Path, site: Path, spec: TrainingSpec | None = None, **options: object) -> TrainerClient:
    places = TrainerPlaces(folder / "scratch", folder / "data.toml", folder / "logs" / "trainer.log")
    return TrainerClient(spec or spec_of(), places, environment={"PYTHONPATH": str(site)}, **options)  # type: ignore[arg-type]


def test_a_job_from_opening_to_the_own_model(tmp_path: Path, installed_model: Path) -> None:
    write_data(tmp_path)
    with make_client(tmp_path, installed_model) as trainer:
        opened = trainer.open()
        assert (opened.num_train, opened.num_validation, opened.num_test) == (96, 24, 10)
        assert (opened.primary_metric, opened.higher_is_better) == ("rmse", False)
        model = np.array(trainer.initial())
        assert model.dtype == np.float32
        statistics = trainer.statistics()
        assert statistics.count == 96
        assert statistics.sums.shape == (1,)
        before = trainer.evaluate(model, statistics)
        assessed = trainer.assess(model, statistics)
        assert assessed["train_loss"] == (0.0, 0.0)
        first = trainer.train(model, statistics, round_number=1, seed=3)
        again = trainer.train(model, statistics, round_number=1, seed=3)
        np.testing.assert_array_equal(first.update, again.update)
        assert first.count == 96
        assert first.metrics["validation_loss"] == assessed["validation_loss"]
        assert first.metrics["validation_loss"][1] == 24
        for round_number in range(1, 31):
            model = model + trainer.train(model, statistics, round_number=round_number, seed=3).update
        after = trainer.evaluate(model, statistics)
        assert (after.test["rmse"] or 0) < (before.test["rmse"] or 0)
        assert after.test["undefined_here"] is None
        with pytest.raises(MisuseError, match="shape"):
            trainer.train(np.zeros(3, np.float32), statistics, round_number=1, seed=1)
        with pytest.raises(MisuseError, match="shape"):
            trainer.train(model, None, round_number=1, seed=1)
        own = trainer.train_alone(seed=3)
        assert own.parameters.shape == (2,)
        assert (own.test["rmse"] or 99) < (before.test["rmse"] or 0)
        assert own.best_round > 0
        assert not list((tmp_path / "scratch").glob("a-*")), "every array's file is gone once it is taken"
        pid = trainer.pid
    assert pid is not None
    assert not Path(f"/proc/{pid}").exists()


def test_socket_folders_and_log_are_private_and_the_environment_is_minimal(
    tmp_path: Path, installed_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path)
    monkeypatch.setenv("DURE_SECRET", "not for the trainer")
    left = [tmp_path / "scratch" / "sock-old" / "t.sock", tmp_path / "scratch" / "a-old.f32"]
    left[0].parent.mkdir(parents=True)
    for path in left:
        path.touch()  # by an agent that was killed
    with make_client(tmp_path, installed_model) as trainer:
        trainer.open()
        assert not any(path.exists() for path in left)
        sockets = list((tmp_path / "scratch").glob("sock-*/t.sock"))
        assert [path.stat().st_mode & 0o777 for path in sockets] == [0o700]
        assert sockets[0].parent.stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "logs" / "trainer.log").stat().st_mode & 0o777 == 0o600
        environment = Path(f"/proc/{trainer.pid}/environ").read_bytes()
        assert b"DURE_SECRET" not in environment
        open_files = [str(f.readlink()) for f in Path(f"/proc/{trainer.pid}/fd").iterdir()]
        assert not [
            name for name in open_files if name.startswith("/") and str(tmp_path) in name and "trainer.log" not in name
        ]
    assert not sockets[0].parent.exists()


def test_a_home_with_a_long_path_gets_its_socket_elsewhere(tmp_path: Path, installed_model: Path) -> None:
    home = tmp_path / ("d" * 100)
    home.mkdir()
    write_data(home)
    with make_client(home, installed_model) as trainer:
        assert trainer.open().num_test == 10


def test_no_short_place_for_a_socket_is_an_error_that_says_so(
    tmp_path: Path, installed_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / ("d" * 100)
    home.mkdir()
    write_data(home)
    monkeypatch.setattr("tempfile.tempdir", str(home))
    with pytest.raises(TrainerError, match="shorter path"):
        make_client(home, installed_model).open()


def test_a_trainer_killed_in_mid_training_gives_a_code_and_the_next_call_works(
    tmp_path: Path, installed_model: Path
) -> None:
    write_data(tmp_path)
    flag = tmp_path / "scratch" / "healthy"  # where a trainer in a sandbox sees it
    spec = spec_of(options={"fault": "sleep", "unless_exists": str(flag)})
    with make_client(tmp_path, installed_model, spec) as trainer:
        trainer.open()
        statistics = trainer.statistics()
        model = np.array(trainer.initial())
        killed = trainer.pid
        assert killed is not None
        killer = threading.Timer(0.5, os.kill, (killed, signal.SIGKILL))
        killer.start()
        with pytest.raises(TrainerError) as caught:
            trainer.train(model, statistics, round_number=1, seed=1)
        assert caught.value.code is TrainerCode.DIED
        assert caught.value.refusal is RefusalCode.TRAINING
        trainer.open()
        flag.touch()
        assert trainer.train(model, statistics, round_number=1, seed=1).count == 96
        assert trainer.pid != killed


def test_a_trainer_that_died_between_two_calls_is_started_again_unnoticed(
    tmp_path: Path, installed_model: Path
) -> None:
    write_data(tmp_path)
    with make_client(tmp_path, installed_model) as trainer:
        statistics = trainer.statistics()
        model = np.array(trainer.initial())
        assert trainer.pid is not None
        os.kill(trainer.pid, signal.SIGKILL)
        time.sleep(0.2)
        assert trainer.train(model, statistics, round_number=1, seed=1).count == 96


def test_a_training_over_its_deadline_is_ended(tmp_path: Path, installed_model: Path) -> None:
    write_data(tmp_path)
    spec = spec_of(options={"fault": "sleep"})
    with make_client(tmp_path, installed_model, spec, deadlines=Deadlines(train=0.5)) as trainer:
        statistics = trainer.statistics()
        model = np.array(trainer.initial())
        pid = trainer.pid
        with pytest.raises(TrainerError) as caught:
            trainer.train(model, statistics, round_number=1, seed=1)
        assert caught.value.code is TrainerCode.DEADLINE
        assert not Path(f"/proc/{pid}").exists()


def test_a_trainer_ends_with_the_process_that_started_it(tmp_path: Path, installed_model: Path) -> None:
    write_data(tmp_path)
    (tmp_path / "spec.json").write_text(spec_of().model_dump_json())
    program = f"""
import os, signal
from pathlib import Path
from dure_client.trainer.client import TrainerClient
from dure_client.trainer.messages import TrainingSpec
from dure_client.trainer.process import TrainerPlaces
folder = Path({str(tmp_path)!r})
trainer = TrainerClient(
    TrainingSpec.model_validate_json((folder / "spec.json").read_text()),
    TrainerPlaces(folder / "scratch", folder / "data.toml", folder / "trainer.log"),
    environment={{"PYTHONPATH": {str(installed_model)!r}}},
)
trainer.open()
print(trainer.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    trainer = Path("/proc") / ended.stdout.decode().strip()
    give_up_at = time.monotonic() + 5
    while trainer.exists() and time.monotonic() < give_up_at:
        time.sleep(0.02)
    assert not trainer.exists()


class Recorder:
    """Everything the trainer sends, as bytes: calls are made past the client, straight on the socket."""

    def __init__(self, trainer: TrainerClient) -> None:
        trainer.open()
        assert trainer._channel is not None
        self._channel: grpc.Channel = trainer._channel
        self.received: list[bytes] = []

    def call(self, method: str, request: bytes) -> None:
        try:
            self.received.append(self._channel.unary_unary(f"/dure.Trainer/{method}")(request, timeout=20))
        except grpc.RpcError as error:
            self.received.append(f"{error.code()} {error.details()} {error.trailing_metadata()}".encode())


def test_a_failing_training_sends_no_value_of_the_data(tmp_path: Path, installed_model: Path) -> None:
    write_data(tmp_path, canary=CANARY)
    with make_client(tmp_path, installed_model, spec_of(options={"fault": "raise"})) as trainer:
        recorder = Recorder(trainer)
        np.zeros(2, "<f4").tofile(tmp_path / "scratch" / "model.f32")
        np.zeros(1, "<f8").tofile(tmp_path / "scratch" / "stats.f64")
        request = m.TrainRequest(
            model="model.f32", statistics="stats.f64", statistics_count=1, target="out.f32", round=1, seed=1
        )
        recorder.call("Train", request.model_dump_json().encode())
        recorder.call("Train", b'{"model": "../../train.csv"}')
        recorder.call("Open", b"no json")
        recorder.call("NoSuchMethod", b"{}")
    sent = b"\n".join(recorder.received)
    assert b"4242" not in sent
    assert json.loads(recorder.received[0]) == {"failure": "internal", "result": None}
    assert json.loads(recorder.received[1])["failure"] == "bad-request"
    log = (tmp_path / "logs" / "trainer.log").read_text()
    assert "4242" in log, "the firm's own log has the reason in full"


def test_a_training_that_diverges_is_told_by_a_code(tmp_path: Path, installed_model: Path) -> None:
    from dure_client.trainer.service import TrainerService

    service = TrainerService(tmp_path, write_data(tmp_path))
    opened = service.answer(
        m.Method.OPEN, m.OpenRequest(spec=spec_of(options={"fault": "diverge"})).model_dump_json().encode()
    )
    assert m.Answer.model_validate_json(opened).failure is None
    np.zeros(2, "<f4").tofile(tmp_path / "model.f32")
    np.zeros(1, "<f8").tofile(tmp_path / "stats.f64")
    request = m.TrainRequest(
        model="model.f32", statistics="stats.f64", statistics_count=1, target="out.f32", round=1, seed=1
    )
    answer = service.answer(m.Method.TRAIN, request.model_dump_json().encode())
    assert m.Answer.model_validate_json(answer) == m.Answer(failure=TrainerCode.TRAINING)
    assert not (tmp_path / "out.f32").exists()


def test_data_that_breaks_the_contract_sends_a_code_only(tmp_path: Path, installed_model: Path) -> None:
    write_data(tmp_path, canary=424242.0)
    with make_client(tmp_path, installed_model) as trainer, pytest.raises(TrainerError) as caught:
        trainer.open()
    assert caught.value.code is TrainerCode.CONTRACT
    assert caught.value.refusal is RefusalCode.CONTRACT
    assert "heat" not in str(caught.value)
    assert "heat" in (tmp_path / "logs" / "trainer.log").read_text()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"model_digest": "0" * 64}, TrainerCode.MODEL_DIGEST, id="a model of another digest"),
        pytest.param({"model": "nobody"}, TrainerCode.MODEL_UNKNOWN, id="a model that is not installed"),
        pytest.param({"options": {"nonsense": 1}}, TrainerCode.MODEL_OPTIONS, id="options the model does not know"),
        pytest.param({"num_parameters": 3}, TrainerCode.MODEL_OPTIONS, id="another number of parameters"),
        pytest.param({"settings": {"num_rounds": 0}}, TrainerCode.MODEL_OPTIONS, id="settings out of range"),
        pytest.param({"contract": {"name": "x"}}, TrainerCode.MODEL_OPTIONS, id="a contract that is none"),
    ],
)
def test_a_job_that_cannot_be_opened_says_why_by_a_code(
    tmp_path: Path, installed_model: Path, changes: dict[str, object], code: TrainerCode
) -> None:
    from dure_client.trainer.service import TrainerService  # the process's inside: no need of a process for each

    service = TrainerService(tmp_path, write_data(tmp_path))
    request = m.OpenRequest(spec=spec_of(**changes)).model_dump_json().encode()
    answer = m.Answer.model_validate_json(service.answer(m.Method.OPEN, request))
    assert answer == m.Answer(failure=code)
    assert TrainerError(code).refusal in RefusalCode


def test_a_process_that_cannot_start_points_to_its_log(tmp_path: Path) -> None:
    write_data(tmp_path)
    (tmp_path / "broken" / "torch").mkdir(parents=True)
    (tmp_path / "broken" / "torch" / "__init__.py").write_text("raise ImportError('no torch here')")
    spec = TrainingSpec.model_validate(
        {
            **dict.fromkeys(("job", "model", "model_digest"), "x"),
            **{key: {} for key in ("options", "contract", "settings")},
            "num_parameters": 1,
            "num_statistics": 0,
            "seed": 0,
        }
    )
    with pytest.raises(TrainerError, match=r"trainer\.log") as caught:
        make_client(tmp_path, tmp_path / "broken", spec).open()
    assert caught.value.code is TrainerCode.DID_NOT_START
    assert "no torch here" in (tmp_path / "logs" / "trainer.log").read_text()


def test_the_client_loads_neither_torch_nor_polars() -> None:
    program = "import sys, dure_client.trainer.client; print({'torch', 'polars', 'flwr'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, timeout=60)
    assert done.stdout.strip() == b"set()"
