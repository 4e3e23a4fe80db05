"""A network namespace with one cable to this machine, for a firm's agent and trainer."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOST, FIRM = "198.18.77.1", "198.18.77.2"
"""Addresses of this machine's end and the firm's, from the range that is set aside for measurements."""
_PREFIX = "dure-egress"
_NAMESPACES = Path("/run/netns")


def why_not() -> str:
    """Why no namespace can be made here; "" if one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "capturing in a network namespace needs Linux and root"
    missing = [tool for tool in ("ip", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install iproute2 util-linux"
    probe = f"{_PREFIX}-{os.getpid()}-probe"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode != 0:
        return "this machine lets nobody make network namespaces"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return ""


@contextmanager
def sealed() -> Iterator[tuple[str, ...]]:
    """Make it; the command that runs another one inside. All routes lead to this machine, which forwards nothing."""
    for path in _NAMESPACES.glob(f"{_PREFIX}-*"):  # of tests that were killed
        if not Path("/proc", path.name.removeprefix(f"{_PREFIX}-").split("-")[0]).exists():
            _ip("netns", "delete", path.name)
    name, cable = f"{_PREFIX}-{os.getpid()}", f"dure{os.getpid() % 1_000_000}"
    _ip("netns", "add", name)
    prefix = ("nsenter", f"--net={_NAMESPACES / name}")
    try:
        for scope in ("default", "all"):  # else the kernel talks to its neighbours by itself
            switch = f"test ! -e /proc/sys/net/ipv6 || echo 1 > /proc/sys/net/ipv6/conf/{scope}/disable_ipv6"
            subprocess.run([*prefix, "sh", "-c", switch], check=True)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "out", "netns", name)
        _ip("address", "add", f"{HOST}/30", "dev", cable)
        _ip("link", "set", cable, "up")
        for command in (
            f"address add {FIRM}/30 dev out",
            "link set out up",
            "link set lo up",
            f"route add default via {HOST}",
        ):
            _ip("-n", name, *command.split())
        yield prefix
    finally:
        _ip("netns", "delete", name)
        subprocess.run(["ip", "link", "delete", cable], capture_output=True, check=False)  # it went with the namespace


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)
