"""The errors of the link on the server's side.

DureError
├── LinkStartError    the link process cannot start: a busy port, a second link, a missing file
├── LinkRefusedError  a request of an agent or a coordinator that the link will not serve; becomes a gRPC status
└── GridError         the coordinator's side: the link refused what this coordinator asked for
"""

import grpc

from dure_protocols.errors import DureError


class LinkStartError(DureError):
    """The link process cannot start; the text says what is in the way and what to do."""


class LinkRefusedError(DureError):
    """A request the link will not serve. `text` is short, names no secret and goes to the caller with `status`."""

    def __init__(self, status: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class GridError(DureError):
    """The link refused a coordinator's request; repeating it would not help."""
