"""Hears where the consortium's processes are, and lets each fault happen at its point."""

import contextlib
import json
import socketserver
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.chaos.faults import Fault
from tests.chaos.points import Point

Perform = Callable[[Fault, Point], str]
"""Does a fault while the process at the point waits; returns what it is told."""


class Controller:
    """Listens on a Unix socket. Faults of a list happen once each; `happened` names those that have, in order."""

    def __init__(self, path: Path, perform: Perform) -> None:
        self._perform = perform
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []
        self._job = ""
        self.happened: list[Fault] = []
        self.errors: list[Exception] = []
        self.at_round: Callable[[int], None] = lambda _: None
        """Called when a round is published, before the coordinator goes on."""
        controller = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                said = json.loads(self.rfile.readline() or "null")
                if said is not None:
                    answer = controller._hear(Point(**said))
                    with contextlib.suppress(OSError):  # who asked may have been killed meanwhile
                        self.wfile.write(answer.encode() + b"\n")

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True
            request_queue_size = 256

        self._server = Server(str(path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def plan(self, job: str, faults: Sequence[Fault]) -> None:
        """From now on, let these happen in a job."""
        with self._lock:
            self._job, self._waiting, self.happened, self.errors = job, list(faults), [], []

    @property
    def pending(self) -> list[Fault]:
        """Faults whose point was not reached yet."""
        with self._lock:
            return list(self._waiting)

    def close(self) -> None:
        """Stop listening; who comes to a point then goes on."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _hear(self, point: Point) -> str:
        with self._lock:
            if (point.phase, point.moment) == ("publish", "asked"):
                self.at_round(point.round)
            fault = next((fault for fault in self._waiting if self._is_met(fault, point)), None)
            if fault is None:
                return ""
            self._waiting.remove(fault)
            self.happened.append(fault)
            try:
                return self._perform(fault, point)
            except Exception as error:  # noqa: BLE001  # the test tells it; the process at the point must go on
                self.errors.append(error)
                return ""

    def _is_met(self, fault: Fault, point: Point) -> bool:
        # A trainer does not know its job, and proposals are sent before a round.
        is_ours = point.job in {self._job, ""}
        return is_ours and fault.happens_at(point.process, point.phase, point.round, point.moment)
