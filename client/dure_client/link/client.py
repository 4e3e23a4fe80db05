"""The agent's one connection to the outside: gRPC with mutual TLS, opened by the agent, to one address.

    LinkError              the link cannot be used; the text says what to do
    ├── LinkRefusedError   the link refused this request for good: asking again would not help
    ├── NotAdmittedError   the consortium does not admit this firm (any more)
    └── LinkTimeoutError   the link was not reached in the time there was

Everything that leaves goes through here, and is recorded by an `EgressRecorder` *before* it leaves: every request, and
every byte of every blob. There is no custom metadata, so what is not in a request's bytes does not leave at all; gRPC
itself adds the method's name and its own version.

Every call may be repeated. Uploads and downloads go on where they were cut.
"""

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol, TypedDict, TypeVar, Unpack

import grpc

from dure_client.link.transfer import UploadRequests, write_all
from dure_protocols.errors import DureError, MessageError
from dure_protocols.frames import (
    CHUNK_BYTES,
    MAX_ENVELOPE_BYTES,
    Announce,
    ArrayRef,
    Envelope,
    Fetch,
    Place,
    Stored,
    Subscribe,
)
from dure_protocols.ledger import Entry, RecordKind

logger = logging.getLogger(__name__)

T = TypeVar("T")

SERVICE: Final = "dure.link.Firm"
CALL_TIMEOUT_SECONDS: Final = 30.0
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 5.0

OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_ENVELOPE_BYTES + 1024),
    ("grpc.max_send_message_length", MAX_ENVELOPE_BYTES + 1024),
    ("grpc.keepalive_time_ms", 20_000),  # keeps firewalls from forgetting the connection, notices a dead one
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 10_000),  # the time that TCP and TLS may take, whatever the name says
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),  # two agents in one process must not share a connection
    ("grpc.enable_retries", 0),  # a retry hidden in gRPC would leave unrecorded
)

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


NOWHERE: Final = Place("")


class LinkError(DureError):
    """The link cannot be used."""


class LinkRefusedError(LinkError):
    """The link refused a request for good. `status` is its gRPC status."""

    def __init__(self, status: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.status = status


class NotAdmittedError(LinkError):
    """The consortium does not admit this firm (any more)."""


class LinkTimeoutError(LinkError):
    """The link was not reached in the time there was."""


class EgressRecorder(Protocol):
    """Keeps account of what leaves; the firm's ledger is one."""

    def record(self, entry: Entry) -> object:
        """Note what is about to leave. If this raises, nothing leaves."""
        ...


class LinkWatch(Protocol):
    """Is told how the link does; the agent's metrics are one."""

    def connected(self, is_connected: bool) -> None:
        """The link has let this firm in, or the connection is gone."""

    def received(self, kind: str, size_bytes: int) -> None:
        """Bytes came: of a "message" or a "blob"."""


class Unwatched:
    """Nobody wants to know."""

    def connected(self, is_connected: bool) -> None:
        """Nothing."""

    def received(self, kind: str, size_bytes: int) -> None:
        """Nothing."""


class _More(TypedDict, total=False):
    place: Place
    message_id: str
    offset_bytes: int


class LinkClient:
    """A firm's side of the link. Methods may be called from several threads; `messages` from one."""

    def __init__(
        self,
        address: str,
        credentials_folder: Path,
        recorder: EgressRecorder,
        *,
        chance: random.Random | None = None,
        watch: LinkWatch | None = None,
    ) -> None:
        """`address` is "host:port"; the folder holds tls.key, tls.pem and root.pem (the only root that is trusted)."""
        self._watch = watch or Unwatched()
        self._address = address
        self._folder = credentials_folder
        self._recorder = recorder
        self._chance = chance or random.Random()  # noqa: S311  # spreads reconnections, hides nothing
        self._version = version("dure")
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._channel = self._connect()

    def close(self) -> None:
        """End every call that is open. `messages` ends, too."""
        self._closed.set()
        self._channel.close()

    def reload(self) -> None:
        """Connect anew with the key and certificate that lie in the folder now. Open calls are repeated."""
        with self._lock:
            old, self._channel = self._channel, self._connect()
        old.close()

    def messages(self) -> Iterator[Envelope]:
        """Every message for this firm, over any number of connections; ends when the client is closed.

        A message comes again until it is answered. Raises NotAdmittedError when the consortium shuts this firm out.
        """
        request = Subscribe(self._version).encode()
        pause = FIRST_PAUSE_SECONDS
        while not self._closed.is_set():
            self._record(RecordKind.SUBSCRIPTION, request)
            try:
                for data in self._watched(self._call("unary_stream", "Subscribe", request)):
                    pause = FIRST_PAUSE_SECONDS
                    yield Envelope.decode(data)
            except MessageError as error:
                logger.error("the link sent something that is no message: %s", error)  # noqa: TRY400
            except (grpc.RpcError, _CutOffError) as error:
                if not self._closed.is_set():
                    _judge(error, self._address)
            pause = self._wait(pause)
            while not self._closed.is_set() and not self._is_ready(LONGEST_PAUSE_SECONDS):
                pass

    def reply(self, reply: Envelope, kind: RecordKind, patience_seconds: float) -> None:
        """Send a reply whose blobs are uploaded. Returns when the link has it on disk.

        Raises LinkRefusedError, NotAdmittedError or LinkTimeoutError.
        """
        data = reply.encode()

        def send() -> None:
            self._record(kind, data, place=Place.of(reply.group), message_id=reply.reply_to)
            self._ask("Reply", data)

        try:
            self._insist(send, patience_seconds)
        except LinkRefusedError as error:
            if error.status is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            logger.warning("the link holds another reply to %r already; that one counts", reply)

    def upload(self, path: Path, ref: ArrayRef, reply: Envelope, patience_seconds: float) -> None:
        """Send the blob that `ref` of `reply` names from its file. Returns when the link has it on disk, checked.

        Raises LinkRefusedError, NotAdmittedError or LinkTimeoutError.
        """
        num_mismatches = 0

        def send() -> None:
            nonlocal num_mismatches
            try:
                self._send_blob(path, ref, reply, patience_seconds)
            except grpc.RpcError as error:
                # Once may be the link's disk after a power cut; twice is our own file.
                num_mismatches += error.code() is grpc.StatusCode.DATA_LOSS
                if num_mismatches > 1:
                    raise LinkRefusedError(
                        grpc.StatusCode.DATA_LOSS, f"{path.name} was altered on this disk"
                    ) from error
                raise

        self._insist(send, patience_seconds)

    def download(self, ref: ArrayRef, target: Path, patience_seconds: float) -> None:
        """Fetch a released blob. Nothing is at `target` before it is whole and matches its digest.

        Raises LinkRefusedError, NotAdmittedError or LinkTimeoutError.
        """
        num_mismatches = 0

        def fetch() -> None:
            nonlocal num_mismatches
            try:
                self._fetch_blob(ref, target, patience_seconds)
            except _MismatchError as error:
                num_mismatches += 1
                if num_mismatches > 1:
                    raise LinkRefusedError(grpc.StatusCode.DATA_LOSS, str(error)) from error
                raise

        if not target.exists():
            self._insist(fetch, patience_seconds)

    def renew(self, csr_pem: bytes, patience_seconds: float = 60.0) -> bytes:
        """A new certificate (PEM) for a signing request (PEM). The caller checks and keeps it, then calls `reload`."""

        def ask() -> bytes:
            self._record(RecordKind.RENEWAL, csr_pem)
            return self._ask("Renew", csr_pem)

        return self._insist(ask, patience_seconds)

    def _watched(self, call: Any) -> Iterator[bytes]:
        """A subscription's messages. The link answers with metadata as soon as it has let this firm in."""
        try:
            call.initial_metadata()
            self._watch.connected(call.is_active())
            for data in call:
                self._watch.received("message", len(data))
                yield data
        finally:
            self._watch.connected(False)

    def _send_blob(self, path: Path, ref: ArrayRef, reply: Envelope, timeout_seconds: float) -> None:
        """One attempt: announce, hear how much the link has, send the rest, hear that it is whole."""
        place, digest = Place.of(reply.group), bytes.fromhex(ref.sha256)
        note = partial(self._note, sha256=digest, place=place, message_id=reply.reply_to)
        announced = Announce(ref.sha256, ref.size_bytes).encode()
        self._record(RecordKind.BLOB_CONTROL, announced, place=place, message_id=reply.reply_to)
        rest, is_whole = UploadRequests(announced, path), False
        call = self._call("stream_stream", "Upload", iter(rest), timeout=timeout_seconds)
        try:
            for data in call:
                stored = Stored.decode(data)
                if stored.complete:
                    is_whole = True
                    continue
                note(RecordKind.BLOB, size_bytes=ref.size_bytes - stored.num_bytes, offset_bytes=stored.num_bytes)
                rest.begin(stored.num_bytes)
        finally:
            call.cancel()
            stopped_at = rest.end()
            if stopped_at is not None and stopped_at < ref.size_bytes:
                note(RecordKind.NOT_SENT, size_bytes=ref.size_bytes - stopped_at, offset_bytes=stopped_at)
        if not is_whole:
            raise _CutOffError("the link ended an upload without saying that it is whole")

    def _fetch_blob(self, ref: ArrayRef, target: Path, timeout_seconds: float) -> None:
        """One attempt: hash what is here, ask for the rest, check the whole, give it its name."""
        part = target.with_suffix(".part")
        running = hashlib.sha256()
        with part.open("a+b", buffering=0) as file:
            file.seek(0)
            while block := file.read(CHUNK_BYTES):
                running.update(block)
            size_bytes = file.tell()
            request = Fetch(ref.sha256, min(size_bytes, ref.size_bytes)).encode()
            self._record(RecordKind.BLOB_CONTROL, request, offset_bytes=size_bytes)
            call = self._call("unary_stream", "Download", request, timeout=timeout_seconds)
            for chunk in call:
                running.update(chunk)
                size_bytes += len(chunk)
                self._watch.received("blob", len(chunk))
                if size_bytes > ref.size_bytes:
                    call.cancel()
                    break
                write_all(file, chunk)
        if size_bytes < ref.size_bytes:
            raise _CutOffError(f"{size_bytes} of {ref.size_bytes} bytes came")
        if running.hexdigest() != ref.sha256:
            part.unlink()
            raise _MismatchError(f"what the link sent does not match blob {ref.sha256[:16]}…")
        part.rename(target)

    def _connect(self) -> grpc.Channel:
        try:
            credentials = grpc.ssl_channel_credentials(
                root_certificates=(self._folder / "root.pem").read_bytes(),
                private_key=(self._folder / "tls.key").read_bytes(),
                certificate_chain=(self._folder / "tls.pem").read_bytes(),
            )
        except OSError as error:
            raise LinkError(f"{error.filename} cannot be read: run `dure-agent join` first") from error
        return grpc.secure_channel(self._address, credentials, OPTIONS)

    def _call(self, form: str, name: str, request: object, timeout: float | None = None) -> Any:
        with self._lock:
            method = getattr(self._channel, form)(f"/{SERVICE}/{name}")
        try:
            return method(request, timeout=timeout)
        except ValueError as error:  # grpc's way to say that `reload` closed this channel meanwhile
            raise _CutOffError("the connection was renewed") from error

    def _ask(self, name: str, request: bytes) -> bytes:
        return bytes(self._call("unary_unary", name, request, CALL_TIMEOUT_SECONDS))

    def _record(self, kind: RecordKind, payload: bytes, **more: Unpack[_More]) -> None:
        self._note(kind, size_bytes=len(payload), sha256=hashlib.sha256(payload).digest(), **more)

    def _note(
        self,
        kind: RecordKind,
        *,
        size_bytes: int,
        sha256: bytes,
        place: Place = NOWHERE,
        message_id: str = "",
        offset_bytes: int = 0,
    ) -> None:
        job, number, attempt, _ = place
        self._recorder.record(Entry(kind, size_bytes, sha256, job, number, attempt, message_id, offset_bytes))

    def _insist(self, attempt: Callable[[], T], patience_seconds: float) -> T:
        """Repeat a call until it succeeds, is refused for good, or time is up."""
        deadline, pause = time.monotonic() + patience_seconds, FIRST_PAUSE_SECONDS
        while True:
            try:
                return attempt()
            except (grpc.RpcError, _CutOffError) as error:
                _judge(error, self._address)
                reason = error
            pause = self._wait(pause)
            # What is tried before the link is there again would be recorded and yet not leave.
            if self._closed.is_set() or not self._is_ready(deadline - time.monotonic()):
                raise LinkTimeoutError(
                    f"the link at {self._address} did not take this within {patience_seconds:.0f} s: {_text(reason)}"
                ) from reason

    def _is_ready(self, timeout_seconds: float) -> bool:
        """Wait until the link can be spoken to. False: it still cannot."""
        with self._lock:
            ready = grpc.channel_ready_future(self._channel)
        try:
            ready.result(timeout=max(0.0, timeout_seconds))
        except (grpc.FutureTimeoutError, grpc.FutureCancelledError):
            return False
        finally:
            ready.cancel()
        return timeout_seconds > 0

    def _wait(self, pause: float) -> float:
        """Sleep for about `pause`, less or more by chance so that a hundred agents do not come back at one moment."""
        self._closed.wait(pause * self._chance.uniform(0.5, 1.5))
        return min(2 * pause, LONGEST_PAUSE_SECONDS)


class _CutOffError(Exception):
    """A transfer did not come to its end; the next attempt goes on from there."""


class _MismatchError(_CutOffError):
    """A transfer came to its end and is not what it should be."""


def _judge(error: Exception, address: str) -> None:
    """Return if trying again may help, else raise what the error means."""
    if isinstance(error, grpc.RpcError):
        status = error.code()
        if status in _NOT_ADMITTED:
            raise NotAdmittedError(f"the link at {address} does not admit this firm: {error.details()}") from error
        if status not in _PASSING:
            raise LinkRefusedError(status, f"the link refused: {error.details()} ({status.name})") from error
    logger.warning("the link at %s was cut (%s); trying again", address, _text(error))


def _text(error: Exception) -> str:
    return f"{error.code().name}: {error.details()}" if isinstance(error, grpc.RpcError) else str(error)
