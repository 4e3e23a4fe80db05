"""The firm's page on a port of loopback, until it is stopped."""

import socket
from collections.abc import Callable
from typing import Final

import uvicorn

from dure_client.home import AgentHome
from dure_client.leaving import check_is_member
from dure_client.page.access import Access
from dure_client.page.acts import LeaveJob
from dure_client.page.app import firm_app
from dure_pages.serving import LOOPBACK, loopback_config
from dure_protocols.errors import DureError

PORT: Final = 7490


class PageError(DureError):
    """The page cannot be served."""


def serve(home: AgentHome, port: int, tell: Callable[[str, Access], None], leave: LeaveJob | None = None) -> None:
    """Serve until SIGINT or SIGTERM; `port` 0 takes any free one. `tell` is given the address and the access, once.

    Raises PageError if the port is taken, HomeError if the firm has not joined or has left.
    """
    home.config()
    check_is_member(home)
    with _listening(port) as listener:
        own = listener.getsockname()[1]
        access = Access()
        server = uvicorn.Server(loopback_config(firm_app(home, own, access, leave=leave), own))
        tell(f"http://{LOOPBACK}:{own}/", access)
        server.run(sockets=[listener])


def _listening(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise PageError(
            f"port {port} of {LOOPBACK} cannot be had ({error.strerror}): is the page open already? "
            "Name another with --port"
        ) from error
    return listener
