"""The errors of the link on the server's side.

DureError
├── LinkStartError    the link process cannot start: a busy port, a second link, a missing file
├── LinkRefusedError  a request of an agent or a coordinator that the link will not serve; becomes a gRPC status
├── GridError         the coordinator's side: the link refused what this coordinator asked for
└── LinkAwayError     the coordinator's side: the link was not there for a while; nothing is wrong with the job
"""

import logging
from typing import NoReturn

import grpc
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError

from dure_protocols.errors import DureError, MessageError

logger = logging.getLogger(__name__)


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


class LinkAwayError(DureError):
    """The link did not answer. A coordinator ends with it, and is started again; its job stays as it is."""


def status_of(error: Exception) -> grpc.StatusCode:
    """The status that an error becomes."""
    match error:
        case LinkRefusedError():
            return error.status
        case MessageError():
            return grpc.StatusCode.INVALID_ARGUMENT
        case OperationalError() | InterfaceError() | InternalError():
            return grpc.StatusCode.UNAVAILABLE
    return grpc.StatusCode.INTERNAL


async def abort(context: grpc.aio.ServicerContext, error: Exception) -> NoReturn:
    """End a request with the status that an error stands for. What nobody foresaw is logged, and named to nobody."""
    match error:
        case LinkRefusedError():
            await context.abort(status_of(error), error.text)
        case MessageError():
            await context.abort(status_of(error), str(error))
        case grpc.aio.AbortError():
            raise error
        case OperationalError() | InterfaceError() | InternalError():  # no connection, a full disk, read-only for now
            logger.error("the store cannot be used: %s", type(error.orig).__name__)
            await context.abort(status_of(error), "the server's store cannot be used now; try again")
    logger.error("a request failed", exc_info=error)
    await context.abort(status_of(error), "the link failed; the operator finds the reason in its log")
    raise AssertionError("abort raises")
