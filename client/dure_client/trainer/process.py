"""Starts and ends one trainer process. Knows nothing of what is said to it.

The process gets a command line of paths, an environment of a handful of names and no file of the agent's but its log.
It ends by itself when the agent ends, however that happens: its standard input is a pipe that then closes.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dure_client.trainer.messages import TrainerCode, TrainerError
from dure_client.trainer.scratch import SOCKET_FOLDER

TRAINER_MODULE = "dure_client.trainer"
MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un holds 108, the last of them zero
_START_POLL_SECONDS = 0.01
MAX_LOG_BYTES = 10 << 20  # after which the next trainer begins a new log, and the one before is kept
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ")


@dataclass(frozen=True)
class TrainerPlaces:
    """Where a trainer works: the scratch folder it shares with the agent, the firm's data.toml, its log.

    json_log: whether the log is JSON lines; package: folder of the job's approved model package, None for a model that
    comes with Dure.
    """

    scratch: Path
    data: Path
    log: Path
    json_log: bool = False
    package: Path | None = None

    @property
    def readable(self) -> tuple[Path, ...]:
        """What a trainer must be able to read beside Python itself, its scratch folder and the data files that
        data.toml names."""
        return (self.data,) if self.package is None else (self.data, self.package)


@dataclass
class TrainerProcess:
    """A running trainer. `socket` is where it listens; `close` ends it and removes the socket."""

    socket: Path
    _popen: "subprocess.Popen[bytes]"
    _private: Path = field(repr=False)

    @property
    def pid(self) -> int:
        """Process id, for the firm's log and for tests."""
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._popen.poll() is None

    def has_ended_within(self, seconds: float) -> bool:
        """Wait a little for an end that is about to come: a cut connection shows before the process is gone."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)
        return not self.is_running

    def close(self, grace_seconds: float = 2.0) -> None:
        """End the process: politely by closing its standard input, then by its id. Removes its socket folder."""
        if self._popen.stdin is not None:
            with suppress(OSError):
                self._popen.stdin.close()
        try:
            self._popen.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self._popen.send_signal(signal.SIGKILL)
            self._popen.wait()
        shutil.rmtree(self._private, ignore_errors=True)


def start(
    places: TrainerPlaces,
    *,
    num_threads: int,
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
    module: str = TRAINER_MODULE,
) -> TrainerProcess:
    """Start a trainer and wait until its socket is there.

    `environment` is added to the minimal one. Raises TrainerError(DID_NOT_START) with the log's place.
    """
    for folder in (places.scratch, places.log.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    private = _private_folder(places.scratch)
    socket = private / "t.sock"
    command = [sys.executable, "-m", module, "--socket", str(socket), "--scratch", str(places.scratch)]
    command += ["--data", str(places.data), "--threads", str(num_threads)]
    command += ["--json"] if places.json_log else []
    command += ["--package", str(places.package)] if places.package is not None else []
    if places.log.exists() and places.log.stat().st_size > MAX_LOG_BYTES:
        places.log.replace(places.log.with_suffix(".log.1"))  # a trainer that runs keeps writing to the old one
    log = os.open(places.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=_environment(places.scratch, num_threads, environment or {}),
            cwd=places.scratch,
            start_new_session=True,  # Ctrl-C reaches the agent, which then ends its trainer in order
        )
    finally:
        os.close(log)
    process = TrainerProcess(socket, popen, private)
    give_up_at = time.monotonic() + timeout_seconds
    while not socket.exists():
        if not process.is_running or time.monotonic() > give_up_at:
            process.close(grace_seconds=0)
            raise TrainerError(TrainerCode.DID_NOT_START, str(places.log))
        time.sleep(_START_POLL_SECONDS)
    return process


def _private_folder(scratch: Path) -> Path:
    """A fresh folder of mode 0700 for the socket: in the scratch folder, or in the system's for temporary files where
    the scratch folder's path is too long for a socket."""
    inside = Path(tempfile.mkdtemp(prefix=SOCKET_FOLDER, dir=scratch))
    if _fits(inside):
        return inside
    inside.rmdir()
    elsewhere = Path(tempfile.mkdtemp(prefix=f"dure-{SOCKET_FOLDER}"))
    if _fits(elsewhere):
        return elsewhere
    elsewhere.rmdir()
    raise TrainerError(
        TrainerCode.DID_NOT_START,
        reason=f"a Unix socket's path may have {MAX_SOCKET_PATH_BYTES} bytes and {scratch} leaves no room; give the "
        "agent a home with a shorter path, or set TMPDIR to a short one",
    )


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / "t.sock")) <= MAX_SOCKET_PATH_BYTES


def _environment(scratch: Path, num_threads: int, more: Mapping[str, str]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    threads = str(num_threads)
    own = {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "POLARS_MAX_THREADS": threads,
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return {**kept, **own, **more}
