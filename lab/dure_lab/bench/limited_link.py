"""A link of a given rate on one machine: two network namespaces joined by a cable with `tc` at both ends (Linux, root).

    this process and the agents ── 10.231.77.2 ═══ rate limit ═══ 10.231.77.1 ── server

Nothing leaves the machine. The namespaces bear this process's id, and are removed when the block ends; what a killed
benchmark left behind is removed by the next one.
"""

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dure_protocols.errors import DureError

SERVER_ADDRESS, FIRMS_ADDRESS = "10.231.77.1", "10.231.77.2"
_NAMESPACES = Path("/run/netns")
_PREFIX = "dure-bench"
_CABLE = "cable"
_BURST_BYTES = 1 << 18
_PROBE_SECONDS = 0.5
_PROBE_PORT = 4242
_SEND = "import socket; c, _ = socket.create_server(('{address}', {port})).accept(); c.sendall(bytes({size}))"
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


class NoLimitedLinkError(DureError):
    """This machine cannot make one; the text says why."""


@dataclass(frozen=True)
class LimitedLink:
    """A link that stands. `server_prefix` goes before the command of whatever is to run on the server's side."""

    gbit_per_second: float
    server_prefix: tuple[str, ...]

    def measured(self) -> float:
        """Gb/s of one TCP stream from the server's side to this."""
        program = _SEND.format(
            address=SERVER_ADDRESS, port=_PROBE_PORT, size=int(self.gbit_per_second * 1e9 / 8 * _PROBE_SECONDS)
        )
        sender = subprocess.Popen([*self.server_prefix, sys.executable, "-c", program])
        try:
            return self._receive()
        finally:
            sender.kill()
            sender.wait()

    def _receive(self) -> float:
        deadline = time.monotonic() + 10
        while True:
            try:
                stream = socket.create_connection((SERVER_ADDRESS, _PROBE_PORT), timeout=10)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        with stream:
            begun, got = time.perf_counter(), 0
            while data := stream.recv(1 << 20):
                got += len(data)
        return got * 8 / (time.perf_counter() - begun) / 1e9


def why_not() -> str:
    """Why no limited link can be made here; "" if one can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces and tc need root"
    missing = [tool for tool in ("ip", "tc", "nsenter") if shutil.which(tool) is None]
    return f"{', '.join(missing)} not found; install iproute2 and util-linux" if missing else ""


@contextmanager
def limited_link(gbit_per_second: float) -> Iterator[LimitedLink]:
    """Make the link, and move this thread and what it starts to the firms' side until the block ends.

    Raises NoLimitedLinkError.
    """
    if reason := why_not():
        raise NoLimitedLinkError(f"no limited link can be made here: {reason}")
    _sweep()
    server, firms = f"{_PREFIX}-{os.getpid()}-server", f"{_PREFIX}-{os.getpid()}-firms"
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _join(server, firms, gbit_per_second)
        inside = os.open(_NAMESPACES / firms, os.O_RDONLY)
        try:
            _enter(inside)
        finally:
            os.close(inside)
        yield LimitedLink(gbit_per_second, ("nsenter", f"--net={_NAMESPACES / server}"))
    finally:
        _enter(before)
        os.close(before)
        for name in (server, firms):
            if (_NAMESPACES / name).exists():
                _run("ip", "netns", "delete", name)


def _join(server: str, firms: str, gbit_per_second: float) -> None:
    for name in (server, firms):
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "set", "lo", "up")
    _run("ip", "link", "add", _CABLE, "netns", server, "type", "veth", "peer", "name", _CABLE, "netns", firms)
    limit = ("tbf", "rate", f"{gbit_per_second * 1000:.0f}mbit", "burst", str(_BURST_BYTES), "latency", "50ms")
    for name, address in ((server, SERVER_ADDRESS), (firms, FIRMS_ADDRESS)):
        _run("ip", "-n", name, "address", "add", f"{address}/30", "dev", _CABLE)
        _run("ip", "-n", name, "link", "set", _CABLE, "up")
        _run("tc", "-n", name, "qdisc", "add", "dev", _CABLE, "root", *limit)


def _sweep() -> None:
    """Remove namespaces of benchmarks that were killed."""
    for path in _NAMESPACES.glob(f"{_PREFIX}-*"):
        owner = path.name.removeprefix(f"{_PREFIX}-").split("-")[0]
        if not Path("/proc", owner).exists():
            _run("ip", "netns", "delete", path.name)


def _enter(namespace: int) -> None:
    if _LIBC.setns(namespace, _CLONE_NEWNET) != 0:
        raise NoLimitedLinkError(f"the network namespace cannot be entered: {os.strerror(ctypes.get_errno())}")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0:
        raise NoLimitedLinkError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
