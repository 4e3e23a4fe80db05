"""What may go wrong on the link, told so that a person knows what to do.

LinkError                the link cannot be used; the text says what to do
├── LinkRefusedError     the link refused this request for good: asking again would not help
├── NotAdmittedError     the consortium does not admit this firm (any more)
├── VersionRefusedError  agent and server have no protocol in common; the text says which version to install
└── LinkTimeoutError     the link was not reached in the time there was
CutOffError              internal: a call did not come to its end; the next attempt goes on from there
└── MismatchError        internal: it came to its end and is not what it should be
"""

import re
from datetime import UTC, datetime
from typing import Final

import grpc

from dure_client.link.proxy import Proxy
from dure_protocols.errors import DureError

_PASSING: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
_NOT_ADMITTED: Final = frozenset({grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED})
_PROXY_STATUS: Final = re.compile(r"HTTP proxy returned response code (\d{3})")
_BAD_CERTIFICATE: Final = re.compile(r"certificate.verify.failed", re.IGNORECASE)


class LinkError(DureError):
    """The link cannot be used."""


class LinkRefusedError(LinkError):
    """The link refused a request for good. `status` is its gRPC status."""

    def __init__(self, status: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.status = status


class NotAdmittedError(LinkError):
    """The consortium does not admit this firm (any more)."""


class VersionRefusedError(LinkError):
    """Agent and server have no protocol in common."""


class LinkTimeoutError(LinkError):
    """The link was not reached in the time there was."""


class CutOffError(Exception):
    """A call did not come to its end; the next attempt goes on from there."""


class MismatchError(CutOffError):
    """A transfer came to its end and is not what it should be."""


def judge(error: Exception, address: str) -> None:
    """Return if trying again may help, else raise what the error means."""
    if not isinstance(error, grpc.RpcError):
        return
    status = error.code()
    if status in _NOT_ADMITTED:
        raise NotAdmittedError(f"the link at {address} does not admit this firm: {error.details()}") from error
    if status not in _PASSING:
        raise LinkRefusedError(status, f"the link refused: {error.details()} ({status.name})") from error


def reason(error: Exception, proxy: Proxy | None, now: float) -> str:
    """Why a call failed, for a log; with what to do where that is known. now: this machine's Unix time."""
    if not isinstance(error, grpc.RpcError):
        return str(error)
    details = error.details() or ""
    if (status := proxy_status(error)) is not None and proxy is not None:
        return proxy.refusal(status)
    if "Hostname Verification" in details:
        return (
            "the consortium's server answers there and its certificate does not have the name that this agent expects: "
            "ask the operator which names it has, and run `dure-agent server set HOST --name NAME`"
        )
    if _BAD_CERTIFICATE.search(details):
        return (
            "the certificate shown is not one that the consortium's root signed for this name, or is not valid by this "
            f"machine's clock ({datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC). If the clock is right, ask the "
            "operator which names the server's certificate has; a proxy that opens TLS must let this address through"
        )
    return f"{error.code().name}: {details}"


def proxy_status(error: Exception) -> int | None:
    """The HTTP status with which a proxy refused to connect, if that is why a call failed."""
    if not isinstance(error, grpc.RpcError):
        return None
    found = _PROXY_STATUS.search(error.details() or "")
    return int(found[1]) if found else None
