"""The product's server with the benchmark's coordinator: `python -m dure_lab.bench.unmasked.server --home HOME`.

Link, console and coordinators run under the product's supervisor; only the coordinator is another module.
"""

import argparse
import contextlib
import os
import socket
import sys
import time
from pathlib import Path

from dure_server.ports import Port, ports_of
from dure_server.settings import ServerHome
from dure_server.store import JobState, Store
from dure_server.supervise import TICK_SECONDS, ChildSpec, Supervisor, stop_signals

COORDINATOR = "dure_lab.bench.unmasked.coordinator"


def run(home: ServerHome) -> None:
    """Until SIGTERM or Ctrl-C. Says that it is ready once every port answers."""
    settings = home.settings()
    store = Store.open(home.store_url(settings))
    supervisor = Supervisor({**os.environ, "FLWR_HOME": str(home.flwr)})
    services = [_child(home, name, f"dure_server.{name}") for name in ("link", "console")]
    try:
        with stop_signals() as stopped:
            silent = list(ports_of(settings))
            while not stopped():
                with store.reading() as at:
                    jobs = [job.id for job in at.jobs.in_state(JobState.RUNNING)]
                supervisor.want([*services, *(_child(home, f"coordinator-{job}", COORDINATOR, job) for job in jobs)])
                supervisor.tick()
                if silent:
                    silent = [port for port in silent if not _answers(port)]
                    if not silent:
                        print('{"event": "ready"}', flush=True)
                time.sleep(TICK_SECONDS)
    finally:
        supervisor.stop()
        store.close()


def _answers(port: Port) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((port.host, port.number), timeout=1):
        return True
    return False


def _child(home: ServerHome, name: str, module: str, job: str = "") -> ChildSpec:
    argv = [sys.executable, "-m", module, "--home", str(home.path), *(["--job", job] if job else [])]
    return ChildSpec(name, argv, home.logs / f"{name}.log")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    run(ServerHome(parser.parse_args().home))
