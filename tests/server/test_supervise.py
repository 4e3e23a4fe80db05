"""The supervisor with real children: crashes, back-off, stopping, and its own sudden death."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dure_server.supervise import (
    FAREWELL_SECONDS,
    HALT_SECONDS,
    ROTATE_SECONDS,
    ChildSpec,
    Supervisor,
    last_line,
    rotate,
)

SLEEPS = "import time; time.sleep(60)"
CRASHES = "import sys; print('it broke'); sys.exit(3)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(60)"
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def supervisor(clock: Clock) -> Iterator[Supervisor]:
    made = Supervisor(os.environ, clock)
    yield made
    made.stop()


def spec(folder: Path, name: str, code: str) -> ChildSpec:
    return ChildSpec(name, [sys.executable, "-c", code], folder / f"{name}.log")


def until(fact: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if fact():
            return True
        time.sleep(0.02)
    return fact()


def test_a_crashed_child_is_started_again_after_pauses_that_grow(
    supervisor: Supervisor, clock: Clock, tmp_path: Path
) -> None:
    supervisor.want([spec(tmp_path, "child", CRASHES)])
    supervisor.tick()
    for starts, pause in ((2, 1), (3, 2), (4, 4)):
        assert until(lambda: not supervisor.is_running("child"))
        supervisor.tick()  # notices
        clock.now += pause - 0.1
        supervisor.tick()
        assert supervisor.starts("child") == starts - 1
        clock.now += 0.1
        supervisor.tick()
        assert supervisor.starts("child") == starts
    assert last_line(tmp_path / "child.log") == "it broke"


def test_the_supervisor_tells_which_processes_there_are(supervisor: Supervisor, clock: Clock, tmp_path: Path) -> None:
    job = ChildSpec("coordinator of wear", [sys.executable, "-c", CRASHES], tmp_path / "c.log", "wear")
    supervisor.want([spec(tmp_path, "link", SLEEPS), job])
    supervisor.tick()
    own, link, coordinator = supervisor.running()
    assert (own.name, own.pid) == ("supervisor", os.getpid())
    assert (link.name, link.job, link.starts) == ("link", "", 1)
    assert _is_alive(link.pid or 0)
    assert (coordinator.name, coordinator.job) == ("coordinator", "wear")
    assert until(lambda: not supervisor.is_running("coordinator of wear"))
    supervisor.tick()
    assert supervisor.running()[2].pid is None
    clock.now += 1
    supervisor.tick()
    assert supervisor.running()[2].starts == 2


def test_a_child_that_ran_for_a_minute_is_started_again_at_once(
    supervisor: Supervisor, clock: Clock, tmp_path: Path
) -> None:
    supervisor.want([spec(tmp_path, "child", CRASHES)])
    supervisor.tick()
    for _ in range(3):
        until(lambda: not supervisor.is_running("child"))
        clock.now += 60
        supervisor.tick()
        clock.now += 1
        supervisor.tick()
    assert supervisor.starts("child") == 4


def test_a_halted_child_is_told_to_end_and_another_may_say_farewell(
    supervisor: Supervisor, clock: Clock, tmp_path: Path
) -> None:
    supervisor.want([spec(tmp_path, "halted", SLEEPS), spec(tmp_path, "done", SLEEPS), spec(tmp_path, "kept", SLEEPS)])
    supervisor.tick()
    supervisor.want([spec(tmp_path, "kept", SLEEPS)], halted=frozenset({"halted"}))
    supervisor.tick()
    assert supervisor.is_running("halted")  # it notices by itself, and has something to take back
    clock.now += HALT_SECONDS
    supervisor.tick()
    assert until(lambda: not supervisor.is_running("halted"))
    assert supervisor.is_running("done")
    clock.now += FAREWELL_SECONDS
    supervisor.tick()
    assert until(lambda: not supervisor.is_running("done"))
    assert supervisor.is_running("kept")


def test_stop_ends_even_a_child_that_will_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dure_server.supervise.STOP_SECONDS", 0.5)
    supervisor = Supervisor(os.environ)
    supervisor.want([spec(tmp_path, "stubborn", STUBBORN), spec(tmp_path, "sleeper", SLEEPS)])
    supervisor.tick()
    assert until(lambda: last_line(tmp_path / "stubborn.log") == "here")
    supervisor.stop()
    assert not supervisor.is_running("stubborn")
    assert not supervisor.is_running("sleeper")


@pytest.mark.skipif(sys.platform != "linux", reason="only the Linux kernel ends children of a killed parent")
def test_children_of_a_killed_supervisor_end(tmp_path: Path) -> None:
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    parent = f"""
import os, sys, time
from pathlib import Path
from dure_server.supervise import ChildSpec, Supervisor
supervisor = Supervisor(os.environ)
supervisor.want([ChildSpec("c", [sys.executable, "-c", {child!r}], Path({str(tmp_path)!r}, "c.log"))])
supervisor.tick()
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", parent])
    try:
        assert until(lambda: (tmp_path / "c.log").exists() and last_line(tmp_path / "c.log").isdigit())
        pid = int(last_line(tmp_path / "c.log"))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert until(lambda: not _is_alive(pid))


def _is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_log_that_has_grown_is_emptied_under_its_writer_and_one_old_one_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "link.log"
    with log.open("ab", buffering=0) as writer:
        for number in range(3):
            writer.write(b"%d" % number * 10)
            rotate(log, 9)
        writer.write(b"new")
        rotate(log, 9)
    assert log.read_bytes() == b"new"
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "link.log": b"new",
        "link.log.1": b"2" * 10,
    }


def test_the_supervisor_looks_after_its_children_s_logs(
    supervisor: Supervisor, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dure_server.supervise.MAX_LOG_BYTES", 5)
    child = spec(tmp_path, "child", SLEEPS)
    child.log_file.write_bytes(b"too much")
    supervisor.want([child])
    supervisor.tick()
    clock.now += ROTATE_SECONDS
    supervisor.tick()
    assert child.log_file.with_name("child.log.1").read_bytes() == b"too much"
    assert child.log_file.stat().st_size == 0
