"""Inside a process of the consortium: tells the harness which point it has come to, and does what it is told there.

The harness listens on the Unix socket that DURE_CHAOS names. Without one, or when nobody listens, the process goes on.
"""

import contextlib
import json
import os
import signal
import socket
from dataclasses import asdict, dataclass

VARIABLE = "DURE_CHAOS"
DIE = "die"


@dataclass(frozen=True)
class Point:
    """Where a process ("coordinator", "link", "agent:FIRM", "trainer:FIRM") is. round: 0 where there is none."""

    process: str
    job: str
    phase: str
    round: int
    moment: str


def reach(point: Point) -> str:
    """Tell the harness and wait until it says go on. Returns what else it says; does not return when told to die."""
    word = _ask(point)
    if word == DIE:
        os.kill(os.getpid(), signal.SIGKILL)
    return word


def _ask(point: Point) -> str:
    path = os.environ.get(VARIABLE)
    if not path:
        return ""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        line.sendall(json.dumps(asdict(point)).encode() + b"\n")
        with line.makefile("rb") as answer:
            return answer.readline().decode().strip()
    return ""
