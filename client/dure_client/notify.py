"""Tells the service manager how the agent is, as systemd's sd_notify does: one datagram on $NOTIFY_SOCKET."""

import socket
from collections.abc import Mapping
from contextlib import suppress


def notify(state: str, environment: Mapping[str, str]) -> None:
    """Send a state such as "READY=1" or "WATCHDOG=1". Nothing happens where no service manager listens."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # a name in the abstract namespace begins with a zero byte
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to_manager:
        to_manager.sendto(state.encode(), address)
