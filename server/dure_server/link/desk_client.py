"""The coordinator's end of the desk: plain calls over the Unix socket, repeated while the link is being restarted.

Knows envelopes and nothing of Flower. The console uses it, too, to see who is connected.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc

from dure_protocols.frames import MAX_ENVELOPE_BYTES, Envelope
from dure_server.link import desk_frames
from dure_server.link.desk_frames import PUSH_BYTES, SERVICE, Parcel, ReplyQuery
from dure_server.link.errors import GridError, LinkAwayError

T = TypeVar("T")

PATIENCE_SECONDS: Final = 60.0  # a link that is started again serves after one or two
PAUSE_SECONDS: Final = 0.05
_PASSING: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_ENVELOPE_BYTES + 1024),
    ("grpc.max_send_message_length", PUSH_BYTES + MAX_ENVELOPE_BYTES + 1024),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class DeskClient:
    """Methods raise GridError when the link refuses, LinkAwayError when it is not there for a minute."""

    def __init__(self, socket: Path, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._socket = socket
        self._patience_seconds = patience_seconds
        self._channel = grpc.insecure_channel(f"unix:{socket}", _OPTIONS)
        self._replies = self._channel.unary_stream(f"/{SERVICE}/Replies")

    def close(self) -> None:
        """End every call that is open."""
        self._channel.close()

    def push(self, parcels: Sequence[Parcel]) -> None:
        """Record messages and deliver them; they are on disk when this returns."""
        batch: list[Parcel] = []
        size_bytes = 0
        for parcel in parcels:
            batch.append(parcel)
            size_bytes += len(parcel.envelope)
            if size_bytes >= PUSH_BYTES:
                self._ask("Push", desk_frames.encode_push(batch))
                batch, size_bytes = [], 0
        if batch:
            self._ask("Push", desk_frames.encode_push(batch))

    def replies(
        self, ids: Sequence[str], *, wait: bool, timeout_seconds: float | None = None
    ) -> Iterator[tuple[str, Envelope]]:
        """(firm, reply) for each of these messages as soon as it is there; ends when all are, or when time is up.

        Without `wait`: only those that are there. May be closed at any moment.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        missing = dict.fromkeys(ids)
        while missing:
            left = None if deadline is None else max(0.001, deadline - time.monotonic())
            call = self._replies(ReplyQuery(tuple(missing), wait).encode(), timeout=left, wait_for_ready=True)
            try:
                for data in call:
                    parcel = Parcel.decode(data)
                    reply = Envelope.decode(parcel.envelope)
                    missing.pop(reply.reply_to, None)
                    yield parcel.firm, reply
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    return
                if error.code() not in _PASSING:
                    raise self._refused(error) from error
                time.sleep(PAUSE_SECONDS)
            else:
                return
            finally:
                call.cancel()

    def connected(self) -> dict[str, str]:
        """Firm -> agent version of every agent that has a stream open."""
        return desk_frames.decode_presence(self._ask("Connected", b""))

    def metrics(self) -> bytes:
        """What the link counts, as Prometheus reads it."""
        return self._ask("Metrics", b"")

    def forget(self, ids: Sequence[str]) -> None:
        """Drop messages, their replies and the blobs those brought."""
        if ids:
            self._ask("Forget", desk_frames.encode_texts(ids))

    def forget_run(self, run_id: int) -> None:
        """Drop all messages of a run, their replies and the blobs those brought."""
        self._ask("ForgetRun", desk_frames.encode_run(run_id))

    def retract(self, digests: Sequence[str]) -> None:
        """Delete released blobs, but for those that some message still brings to a firm."""
        if digests:
            self._ask("Retract", desk_frames.encode_texts(digests))

    def _ask(self, name: str, request: bytes) -> bytes:
        method = self._channel.unary_unary(f"/{SERVICE}/{name}")
        return bytes(self._insist(lambda left: method(request, timeout=left, wait_for_ready=True)))

    def _insist(self, attempt: Callable[[float], Any]) -> Any:
        deadline = time.monotonic() + self._patience_seconds
        while True:
            try:
                return attempt(max(0.001, deadline - time.monotonic()))
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise LinkAwayError(
                        f"the link did not answer on {self._socket} within {self._patience_seconds:.0f} s: "
                        "is `dure-server run` running?"
                    ) from error
                if error.code() not in _PASSING:
                    raise self._refused(error) from error
                time.sleep(PAUSE_SECONDS)

    def _refused(self, error: grpc.RpcError) -> GridError:
        return GridError(f"the link refused: {error.details()} ({error.code().name})")
