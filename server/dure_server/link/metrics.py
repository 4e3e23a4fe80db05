"""What the link counts of its own traffic. The console asks for it over the desk and serves it with the rest.

Labels are methods, directions and gRPC statuses; a firm is none: what one firm sends is in nobody's graph.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, Self, TypeVar

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

R = TypeVar("R", bytes, AsyncIterator[bytes])

COMMIT_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_SUBSCRIBE, _REPLY = "subscribe", "reply"


class LinkMetrics:
    """One link process's counters. Used from its event loop; `committed` from the journal's thread."""

    def __init__(self) -> None:
        # A second series for each counter, which nobody asks for; and the function has no types.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "dure_link_requests",
            "Requests of agents that have ended, by method and gRPC status.",
            ["method", "status"],
            registry=self.registry,
        )
        self._bytes = Counter(
            "dure_link_bytes",
            "Bytes of messages and blobs on the firms' port, before TLS. up: from firms.",
            ["method", "direction"],
            registry=self.registry,
        )
        self._messages = Counter(
            "dure_link_messages",
            "Messages handed to agents (down; repeated ones count again) and replies taken from them (up).",
            ["direction"],
            registry=self.registry,
        )
        self._streams = Gauge(
            "dure_link_streams",
            "Calls of agents that are open. A subscription is idle until a message comes; uploads and downloads work.",
            ["method"],
            registry=self.registry,
        )
        self._commits = Histogram(
            "dure_link_commit_seconds",
            "Seconds to make what agents and coordinators said durable: one transaction of the journal.",
            buckets=COMMIT_SECONDS,
            registry=self.registry,
        )
        for direction in ("up", "down"):
            self._messages.labels(direction)
        self._streams.labels(_SUBSCRIBE)

    def committed(self, seconds: float) -> None:
        """The journal has committed a transaction."""
        self._commits.observe(seconds)

    def call(self, method: str) -> "Call":
        """A request that begins now; a context manager around its handling."""
        return Call(self, method)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)

    def opened(self, method: str) -> None:
        """A call has begun."""
        self._streams.labels(method).inc()

    def ended(self, method: str, status: grpc.StatusCode) -> None:
        """A call is over."""
        self._streams.labels(method).dec()
        self._requests.labels(method, status.name).inc()
        if method == _REPLY and status is grpc.StatusCode.OK:
            self._messages.labels("up").inc()

    def passed(self, method: str, direction: str, size_bytes: int) -> None:
        """One message or chunk of a call."""
        self._bytes.labels(method, direction).inc(size_bytes)
        if method == _SUBSCRIBE and direction == "down":
            self._messages.labels("down").inc()


class Call(AbstractContextManager["Call"]):
    """One request of an agent, from admission to its end. `status`: how it ended, set by whoever ends it."""

    def __init__(self, metrics: LinkMetrics, method: str) -> None:
        self._metrics, self._method = metrics, method
        self.status = grpc.StatusCode.OK

    def received(self, request: R) -> R:
        """The same request, counted: at once, or chunk by chunk as it comes."""
        if isinstance(request, bytes):
            self._metrics.passed(self._method, "up", len(request))
            return request
        return _Counted(self, request)

    def chunk(self, size_bytes: int) -> None:
        """A chunk of a request has come."""
        self._metrics.passed(self._method, "up", size_bytes)

    def sent(self, item: bytes) -> bytes:
        """The same answer, or part of one, counted."""
        self._metrics.passed(self._method, "down", len(item))
        return item

    def __enter__(self) -> Self:
        self._metrics.opened(self._method)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            self.status = grpc.StatusCode.CANCELLED
        self._metrics.ended(self._method, self.status)


class _Counted(AsyncIterator[bytes]):
    """A stream of chunks, counted as they come."""

    def __init__(self, call: Call, chunks: AsyncIterator[bytes]) -> None:
        self._call, self._chunks = call, aiter(chunks)

    async def __anext__(self) -> bytes:
        chunk = await anext(self._chunks)
        self._call.chunk(len(chunk))
        return chunk
