"""Starts and ends one trainer process. Knows nothing of what is said to it.

The process gets a command line of paths, an environment of a handful of names and no file of the agent's; what it says
comes through a pipe, and the agent writes it down. It ends by itself when the agent ends, however that happens: its
standard input is a pipe that then closes, and a full sandbox dies with the agent whatever is inside.
"""

import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dure_client.data.errors import DataMappingError
from dure_client.data.mapping import DataMapping
from dure_client.trainer.log import keep_what_is_said
from dure_client.trainer.messages import TrainerCode, TrainerError
from dure_client.trainer.sandbox import Confined, Grants, Limits, Sandbox
from dure_client.trainer.scratch import SOCKET_FOLDER
from dure_client.trainer.watch import watch
from dure_client.trees import remove_tree

TRAINER_MODULE = "dure_client.trainer"
MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un holds 108, the last of them zero
_START_POLL_SECONDS = 0.01
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ")
_MANY_FILES = 64
"""From so many files in one folder on, the folder is granted instead of each file: mounts cost time."""
_starter = ThreadPoolExecutor(1, "trainer starter")
"""Starts every trainer: a sandbox dies with the *thread* that started it, and this one lives as long as the agent."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerPlaces:
    """Where a trainer works: the scratch folder it shares with the agent, the firm's data.toml, its log.

    json_log: whether the log is JSON lines. package: folder of the job's approved model package, None for a model that
    comes with Dure. hidden: the agent's home, and whatever else a trainer must not see. devices: a GPU's.
    """

    scratch: Path
    data: Path
    log: Path
    json_log: bool = False
    package: Path | None = None
    hidden: Sequence[Path] = ()
    devices: Sequence[Path] = ()

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

    @property
    def has_socket(self) -> bool:
        """Whether its socket is there, and no link in the socket's place."""
        with suppress(OSError):
            return stat.S_ISSOCK(self.socket.lstat().st_mode)
        return False

    def wait_for_socket(self, seconds: float) -> None:
        """Wait until it listens. Raises TimeoutError, also where the process ends before."""
        give_up_at = time.monotonic() + seconds
        while not self.has_socket:
            if not self.is_running or time.monotonic() > give_up_at:
                raise TimeoutError("the trainer does not listen")
            time.sleep(_START_POLL_SECONDS)

    def kill(self) -> None:
        """End the process at once. `close` has still to be called."""
        self._popen.send_signal(signal.SIGKILL)

    def close(self, grace_seconds: float = 2.0) -> None:
        """End the process: politely by closing its standard input, then by its id. Removes its socket folder."""
        if self._popen.stdin is not None:
            with suppress(OSError):
                self._popen.stdin.close()
        try:
            self._popen.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self._popen.wait()
        remove_tree(self._private)


def start(
    places: TrainerPlaces,
    sandbox: Sandbox,
    *,
    num_threads: int,
    timeout_seconds: float,
    limits: Limits | None = None,
    environment: Mapping[str, str] | None = None,
    module: str = TRAINER_MODULE,
) -> TrainerProcess:
    """Start a trainer in a sandbox and wait until its socket is there.

    `limits`: this host's usual ones if None. `environment` is added to the minimal one; folders that its PYTHONPATH
    names may be read. Raises TrainerError(DID_NOT_START) with the log's place; SandboxError.
    """
    for folder in (places.scratch, places.log.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    limits = limits or Limits.of_host(places.scratch)
    private = _private_folder(places.scratch)
    socket = private / "t.sock"
    command = [sys.executable, "-m", module, "--socket", str(socket), "--scratch", str(places.scratch)]
    command += ["--data", str(places.data), "--threads", str(num_threads)]
    command += ["--json"] if places.json_log else []
    command += ["--package", str(places.package)] if places.package is not None else []
    variables = _environment(places.scratch, num_threads, environment or {})
    try:
        confined = sandbox.confine(command, _grants(places, private, variables), limits)
        popen = _starter.submit(_popen, confined, variables, places.scratch).result()
    except BaseException as error:
        remove_tree(private)
        if isinstance(error, OSError):  # such as when bwrap was removed meanwhile
            raise TrainerError(TrainerCode.DID_NOT_START, reason=f"its process cannot be started: {error}") from error
        raise
    process = TrainerProcess(socket, popen, private)
    try:
        keep_what_is_said(popen, places.log)
        watching = threading.Thread(target=watch, args=(process, places.scratch, limits), name="trainer watch")
        watching.daemon = True
        watching.start()
        process.wait_for_socket(timeout_seconds)
    except OSError as error:
        process.close(grace_seconds=0)
        raise TrainerError(TrainerCode.DID_NOT_START, str(places.log)) from error
    return process


def _popen(confined: Confined, variables: Mapping[str, str], folder: Path) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            confined.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=variables,
            cwd=folder,
            pass_fds=tuple(confined.descriptors),
            start_new_session=True,  # Ctrl-C reaches the agent, which then ends its trainer in order
        )
    finally:
        confined.close()


def _grants(places: TrainerPlaces, private: Path, variables: Mapping[str, str]) -> Grants:
    imported = [Path(folder) for folder in variables.get("PYTHONPATH", "").split(os.pathsep) if folder]
    writable = [places.scratch] if places.scratch in private.parents else [places.scratch, private]
    readable = [*imported, *places.readable, *_data_files(places)]
    return Grants(readable, writable, places.hidden, places.devices)


def _data_files(places: TrainerPlaces) -> list[Path]:
    """What data.toml names: its files, and folders that many of them lie in. None if it is not valid: the trainer says
    so, where the reasons belong. No file is opened."""
    try:
        mapping = DataMapping.read(places.data)
        files = [path for part in (mapping.train, mapping.test) if part for path in mapping.files(part)]
    except DataMappingError:
        return []
    by_folder: dict[Path, list[Path]] = {}
    for path in files:
        by_folder.setdefault(path.parent, []).append(path)
    granted: list[Path] = []
    for folder, inside in by_folder.items():
        holds_hidden = any(folder.resolve() in (hidden, *hidden.parents) for hidden in places.hidden)
        has_links = any(path.is_symlink() for path in inside)
        granted += [folder] if len(inside) >= _MANY_FILES and not holds_hidden and not has_links else inside
    return granted


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
