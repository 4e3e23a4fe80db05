"""A stock SuperLink and SuperNodes on loopback, as Flower's documentation starts them. Real processes, ended by id."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

PROGRAMS = Path(sys.executable).parent
START_SECONDS = 60.0


class StockSuperLink:
    """Started by the constructor; `close` ends everything that it and its processes started."""

    def __init__(self, folder: Path, ports: list[int], environment: Mapping[str, str]) -> None:
        """`ports`: one for the SuperLink and one a SuperNode."""
        self.folder = folder
        self._port, *self._node_ports = ports
        self._processes: list[subprocess.Popen[bytes]] = []
        self._start("superlink", ["flower-superlink", *self._serving(self._port), "--insecure",
                                  "--disable-runtime-dependency-installation"], environment)  # fmt: skip
        self._wait(self._is_up, "the SuperLink did not come up")

    def start_node(self, name: str, environment: Mapping[str, str]) -> None:
        """Start a SuperNode."""
        port = self._node_ports.pop()
        command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self._port}", *self._serving(port)]
        self._start(name, command, environment)

    def submit(self, bundle: Path, run_config: str) -> None:
        """`flwr run`, with a connection of our own."""
        home = self.folder / "cli"
        home.mkdir()
        (home / "config.toml").write_text(f'[superlink.here]\naddress = "127.0.0.1:{self._port}"\ninsecure = true\n')
        command = [str(PROGRAMS / "flwr"), "run", str(bundle), "here", "--run-config", run_config]
        done = subprocess.run(command, env=self._environment(home, {}), capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()

    def log(self, name: str) -> str:
        """What a process has written."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        """End all processes by their ids, politely first."""
        family = [psutil.Process(popen.pid) for popen in self._processes if popen.poll() is None]
        for parent in list(family):
            with suppress(psutil.NoSuchProcess):
                family += parent.children(recursive=True)
        for popen in reversed(self._processes):
            popen.terminate()
        _, left = psutil.wait_procs(family, timeout=10)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        for popen in self._processes:
            popen.wait(10)

    def _serving(self, port: int) -> list[str]:
        return ["--host", "127.0.0.1", "--port", str(port)]

    def _start(self, name: str, command: list[str], environment: Mapping[str, str]) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            popen = subprocess.Popen(
                [str(PROGRAMS / command[0]), *command[1:]],
                env=self._environment(self.folder / f"{name}-flwr", environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(popen)

    def _environment(self, flwr_home: Path, more: Mapping[str, str]) -> dict[str, str]:
        flwr_home.mkdir(exist_ok=True)
        return {
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(flwr_home),
            "FLWR_HOME": str(flwr_home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            **more,
        }

    def _is_up(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self._port}/health", timeout=2).is_success
        return False

    def _wait(self, holds: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not holds():
            ended = [popen.args for popen in self._processes if popen.poll() is not None]
            assert not ended, f"{ended} ended: {self.log('superlink')[-2000:]}"
            assert time.monotonic() < deadline, f"{otherwise}: {self.log('superlink')[-2000:]}"
            time.sleep(0.1)
