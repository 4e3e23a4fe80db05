"""`dure demo` as a newcomer runs it: one command, real processes, a report, and nothing left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from dure_lab.demo.course import DemoOptions, run_demo
from dure_protocols.errors import DureError
from dure_protocols.ledger import RecordKind

FIRM_KEYS = {"name", "rows", "alone", "federated", "pooled", "ledger_verified", "left", "bytes_up", "bytes_down"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A new folder with a short path, for the sockets."""
    made = Path(tempfile.mkdtemp(prefix="dure-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "dure_lab.cli", "demo", "--folder", str(folder / "demo"), *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "out").open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=folder, env=environment, text=True)


def said(folder: Path) -> str:
    return (folder / "out").read_text()


def descendants(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@dataclass
class Ran:
    """A demo that ran to its end: its report, what it said, its folder, and the processes that it had started."""

    report: dict[str, Any]
    said: str
    folder: Path
    started: set[psutil.Process]


@pytest.fixture(scope="module")
def ran() -> Iterator[Ran]:
    made = Path(tempfile.mkdtemp(prefix="dure-"))
    demo = start(made, "--exit", "--rounds", "3", "--report", "r.json")
    started: set[psutil.Process] = set()
    while demo.poll() is None:
        started.update(descendants(demo))
        time.sleep(0.2)
    assert demo.returncode == 0, said(made)
    yield Ran(json.loads((made / "r.json").read_text()), said(made), made / "demo", started)
    shutil.rmtree(made, ignore_errors=True)


def test_a_demo_reports_its_rounds_that_all_was_encrypted_and_that_the_ledgers_hold(ran: Ran) -> None:
    assert ran.report["rounds"] == 3
    assert ran.report["encrypted"] is True
    assert ran.report["ledger_verified"] is True
    assert ran.report["simulated"] is True
    assert ran.report["bytes_up_per_parameter"] == pytest.approx(2.0, abs=0.1)
    assert 0 < ran.report["seconds_to_first_round"] < ran.report["wall_seconds"]


def test_a_demo_reports_each_firms_rows_scores_and_account(ran: Ran) -> None:
    firms = ran.report["firms"]
    assert len({firm["name"] for firm in firms}) == len(firms) == 3
    for firm in firms:
        assert set(firm) >= FIRM_KEYS
        assert firm["rows"] > 100
        for arm in ("alone", "federated", "pooled"):
            assert 0 <= firm[arm][ran.report["primary_metric"]] <= 1
        assert set(firm["alone"]) == set(firm["federated"]) == set(firm["pooled"])
        assert set(firm["left"]) <= {kind.value for kind in RecordKind}
        assert sum(firm["left"].values()) == firm["bytes_up"]
        assert firm["ledger_verified"]


def test_a_demo_says_what_it_reports_and_that_its_data_are_simulated_and_draws_the_rounds(ran: Ran) -> None:
    assert all(firm["name"] in ran.said for firm in ran.report["firms"])
    assert "Simulated data" in ran.said
    assert (ran.folder / "rounds.png").read_bytes().startswith(b"\x89PNG")


def test_a_demo_that_ends_has_ended_every_process_it_started(ran: Ran) -> None:
    assert len(ran.started) >= 3 + 3 + 4  # agents, trainers, and the server with link, console and coordinator
    assert still_there(ran.started) == []


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        pytest.param(signal.SIGINT, "round 1", id="Ctrl-C while it trains"),
        pytest.param(signal.SIGTERM, "Starting the server", id="SIGTERM while it enrols"),
    ],
)
def test_a_stopped_demo_stops_every_process_it_started(folder: Path, number: signal.Signals, moment: str) -> None:
    demo = start(folder, "--exit", "--rounds", "1000")
    deadline = time.monotonic() + 60
    while not has_come(folder, moment):
        assert demo.poll() is None, said(folder)
        assert time.monotonic() < deadline, said(folder)
        time.sleep(0.05)
    started = descendants(demo)
    assert len(started) >= 3
    demo.send_signal(number)
    while demo.poll() is None:
        assert time.monotonic() < deadline + 30
        started += descendants_if_any(demo)
        time.sleep(0.05)
    left = still_there(started)
    assert demo.returncode == 130
    assert "stopped: everything that was started has been ended" in said(folder)
    assert "Traceback" not in said(folder)
    assert left == []


def still_there(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those of some processes that do not end by themselves within seconds. Ends them, for the sake of other tests."""
    left: list[psutil.Process] = psutil.wait_procs(set(processes), timeout=5)[1]
    for process in left:
        process.kill()
    return left


def has_come(folder: Path, moment: str) -> bool:
    """Whether the demo has come so far. Rounds are told by a firm's own files, since the screen names every tenth."""
    if moment == "round 1":
        return any((folder / "demo" / "firms").glob("*/jobs/demo/progress.json"))
    return moment in said(folder)


def descendants_if_any(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    try:
        return descendants(process)
    except psutil.Error:
        return []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"data": Path()}, "AI4I 2020", id="a folder without data"),
        pytest.param({"model": "rul"}, "is a task for the model 'tabular'", id="another task's model"),
    ],
)
def test_a_demo_that_cannot_be_says_what_to_do_and_starts_nothing(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(DureError, match=says):
        run_demo(DemoOptions(tmp_path / "demo", **options), Console(file=StringIO()))
    assert not (tmp_path / "demo" / "server").exists()
