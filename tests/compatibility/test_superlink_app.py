"""The operator's side on a stock SuperLink: what is refused before any firm is asked, and the bundle."""

import fcntl
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.cli.config_utils import load_and_validate

from dure_lab.in_process import InProcessGrid
from dure_server.settings import ServerHome
from dure_server.store import JobState, Store, StoreConflictError
from dure_server.superlink.__main__ import main
from dure_server.superlink.app import JOB_KEY, SuperLinkError, coordinate, start
from dure_server.superlink.bundle import BundleError, write_bundle
from tests.compatibility.three_firms import make_server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerHome:
    home, _ = make_server(tmp_path / "server")
    monkeypatch.setenv("DURE_SERVER_HOME", str(home.path))
    return home


def run(**config: str) -> None:
    with InProcessGrid({}) as grid:
        coordinate(grid, Context(1, 1, {}, RecordDict(), dict(config)))


def test_flower_takes_the_bundle_and_it_is_the_same_for_every_job(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    config, warnings = load_and_validate(bundle / "pyproject.toml")
    assert config["tool"]["flwr"]["app"]["config"] == {JOB_KEY: ""}
    assert config["project"]["dependencies"] == [], "a bundle must not make a site install anything"
    assert not warnings
    with pytest.raises(BundleError, match="name a new folder"):
        write_bundle(bundle)


def test_the_command_says_how_to_submit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["superlink", str(tmp_path / "bundle")])
    assert main() == 0
    assert f"--run-config '{JOB_KEY}=" in capsys.readouterr().out
    assert main() == 1
    assert "not empty" in capsys.readouterr().err


def test_a_run_that_names_no_job_says_how_to(home: ServerHome) -> None:
    with pytest.raises(SuperLinkError, match="--run-config"):
        run(**{JOB_KEY: ""})


def test_a_home_on_which_a_server_runs_is_left_alone(home: ServerHome) -> None:
    with home.lock_file.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SuperLinkError, match="stop it"):
            run(**{JOB_KEY: "press"})


def test_a_job_that_is_over_is_not_started_again(home: ServerHome) -> None:
    start(home, "press")
    store = Store.open(home.store_url(home.settings()))
    with store.transaction() as at:
        at.jobs.set_state("press", JobState.STOPPED)
    store.close()
    with pytest.raises(StoreConflictError, match="cannot become running"):
        run(**{JOB_KEY: "press"})
