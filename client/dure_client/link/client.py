"""The agent's one connection to the outside: gRPC with mutual TLS, opened by the agent, to one address.

Everything that leaves goes through here, and is recorded by an `EgressRecorder` *before* it leaves: every request, and
every byte of every blob. There is no custom metadata, so what is not in a request's bytes does not leave at all; gRPC
itself adds the method's name and its own version.

Every call may be repeated. Uploads and downloads go on where they were cut. Errors: `link.errors`.
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

from dure_client.link.backoff import Backoff
from dure_client.link.channel import SERVICE, Route, open_channel, why_not_there
from dure_client.link.clock import ServerClock, clock_sentence
from dure_client.link.errors import (
    CutOffError,
    LinkRefusedError,
    LinkTimeoutError,
    MismatchError,
    NotAdmittedError,
    VersionRefusedError,
    judge,
    proxy_status,
    reason,
)
from dure_client.link.transfer import UploadRequests, write_all
from dure_client.link.watch import LinkWatch, Unwatched
from dure_protocols.errors import MessageError
from dure_protocols.frames import (
    CHUNK_BYTES,
    Announce,
    ArrayRef,
    Envelope,
    Fetch,
    Place,
    Stored,
    Subscribe,
    Welcome,
)
from dure_protocols.ledger import Entry, RecordKind
from dure_protocols.versions import HEADS_FROM, SPOKEN, ProtocolRange

logger = logging.getLogger(__name__)

T = TypeVar("T")

CALL_TIMEOUT_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 10.0
PROXY_PAUSE_SECONDS: Final = 30.0  # after a proxy's refusal: too many wrong passwords lock an account
STEADY_SECONDS: Final = 5.0  # a stream that lasted so long was a good one
NOWHERE: Final = Place("")


class EgressRecorder(Protocol):
    """Keeps account of what leaves; the firm's ledger is one."""

    def record(self, entry: Entry) -> object:
        """Note what is about to leave. If this raises, nothing leaves."""
        ...


class _More(TypedDict, total=False):
    place: Place
    message_id: str
    offset_bytes: int


class LinkClient:
    """A firm's side of the link. Methods may be called from several threads; `messages` from one."""

    def __init__(
        self,
        route: Route | str,
        credentials_folder: Path,
        recorder: EgressRecorder,
        *,
        protocols: ProtocolRange = SPOKEN,
        clock: ServerClock | None = None,
        chance: random.Random | None = None,
        on_welcome: Callable[[Welcome], None] | None = None,
        watch: LinkWatch | None = None,
    ) -> None:
        """`route`: or just "host:port"; the folder holds tls.key, tls.pem and root.pem (the only root that is trusted).

        `clock` learns the server's time whenever the link tells it; `on_welcome` is called then, from `messages`.
        """
        self._watch = watch or Unwatched()
        self._route = Route(route) if isinstance(route, str) else route
        self._folder = credentials_folder
        self._recorder = recorder
        self._protocols = protocols
        self.clock = clock or ServerClock()
        self._chance = chance or random.Random()  # noqa: S311  # spreads reconnections, hides nothing
        self._on_welcome = on_welcome
        self._version = version("dure")
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._hurry = threading.Event()  # ends a pause
        self._last_reason = ""
        self._protocol = 1  # until a welcome says otherwise
        self._channel = open_channel(self._route, self._folder)

    def close(self) -> None:
        """End every call that is open. `messages` ends, too."""
        self._closed.set()
        self._hurry.set()
        self._channel.close()

    def reload(self) -> None:
        """Connect anew with the key and certificate that lie in the folder now. Open calls are repeated."""
        self._replace(self._channel)

    def move(self, route: Route) -> None:
        """Connect anew by another route. Open calls are repeated there."""
        self._route = route
        self.reload()
        self._hurry.set()

    def messages(self) -> Iterator[Envelope]:
        """Every message for this firm, over any number of connections; ends when the client is closed.

        A message comes again until it is answered. Raises NotAdmittedError when the consortium shuts this firm out, and
        VersionRefusedError when this version does not understand the server's.
        """
        request = Subscribe(self._version, self._protocols)
        data = request.encode()
        backoff = Backoff(self._chance)
        while not self._closed.is_set():
            channel, began, failure = self._channel, time.monotonic(), None
            self._record(RecordKind.SUBSCRIPTION, data)
            try:
                asked_at = self.clock.start()
                call = self._call("unary_stream", "Subscribe", data)
                for item in self._watched(call, asked_at if request.expects_welcome else None):
                    yield Envelope.decode(item)
            except MessageError as error:
                logger.error("the link sent something that is no message: %s", error)  # noqa: TRY400
            except (grpc.RpcError, CutOffError) as error:
                failure = error
            if failure is not None and not self._closed.is_set():
                self._judge_subscription(failure, channel)
            if time.monotonic() - began > STEADY_SECONDS:
                backoff.reset()
            self._reach(channel, backoff, failure)

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
            except MismatchError as error:
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

    def leave(self, statement: bytes, patience_seconds: float) -> bytes:
        """Tell the consortium, signed, that this firm leaves. The same again is answered again. Returns the receipt."""

        def tell() -> bytes:
            self._record(RecordKind.LEAVE, statement)
            return self._ask("Leave", statement)

        return self._insist(tell, patience_seconds)

    @property
    def takes_heads(self) -> bool:
        """Whether the link is there and speaks a protocol in which ledgers' heads are deposited."""
        return self._protocol >= HEADS_FROM

    def deposit(self, statement: bytes, patience_seconds: float = 10.0) -> bytes:
        """Say where this firm's ledger ends (`heads.Statement`); the link's answer (`heads.Witnessed`).

        Raises LinkRefusedError, NotAdmittedError or LinkTimeoutError.
        """

        def ask() -> bytes:
            self._record(RecordKind.HEAD, statement)
            return self._ask("Witness", statement)

        return self._insist(ask, patience_seconds)

    def _watched(self, call: Any, asked_at: float | None) -> Iterator[bytes]:
        """A subscription's messages, once the link has let this firm in: its welcome says so.

        asked_at: when it was asked, by the clock. None: this subscription gets no welcome, but the link's metadata.
        """
        try:
            if asked_at is None:
                call.initial_metadata()
            else:
                self._welcomed(next(call, b""), asked_at)
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
            raise CutOffError("the link ended an upload without saying that it is whole")

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
            raise CutOffError(f"{size_bytes} of {ref.size_bytes} bytes came")
        if running.hexdigest() != ref.sha256:
            part.unlink()
            raise MismatchError(f"what the link sent does not match blob {ref.sha256[:16]}…")
        part.rename(target)

    def _call(self, form: str, name: str, request: object, timeout: float | None = None) -> Any:
        with self._lock:
            method = getattr(self._channel, form)(f"/{SERVICE}/{name}")
        try:
            return method(request, timeout=timeout)
        except ValueError as error:  # grpc's way to say that `reload` closed this channel meanwhile
            raise CutOffError("the connection was renewed") from error

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

    def _welcomed(self, data: bytes, asked_at: float) -> None:
        """Take the link's first word on a stream: the protocol chosen, and the server's time."""
        if not data:
            raise CutOffError("the link ended a subscription before its first word")
        welcome = Welcome.decode(data)
        ahead = self.clock.hear(welcome.server_time, asked_at)
        self._last_reason = ""
        self._protocol = welcome.protocol
        logger.info("connected to %s: Dure %s, protocol %d", self._route, welcome.server_version, welcome.protocol)
        if sentence := clock_sentence(ahead):
            logger.warning("%s", sentence)
        if self._on_welcome is not None:
            self._on_welcome(welcome)

    def _insist(self, attempt: Callable[[], T], patience_seconds: float) -> T:
        """Repeat a call until it succeeds, is refused for good, or time is up."""
        deadline, backoff = time.monotonic() + patience_seconds, Backoff(self._chance)
        while True:
            channel = self._channel
            try:
                return attempt()
            except (grpc.RpcError, CutOffError) as error:
                failure = error
            self._judge(failure, channel)
            if not self._reach(channel, backoff, failure, deadline):
                why = self._last_reason or reason(failure, self._route.proxy, time.time())
                raise LinkTimeoutError(
                    f"the link at {self._route} did not take this within {patience_seconds:.0f} s: {why}"
                ) from failure

    def _judge(self, error: Exception, channel: grpc.Channel) -> None:
        """Return if trying again may help, else raise what the error means."""
        try:
            judge(error, self._route.address)
        except NotAdmittedError:
            if self._channel is channel:
                raise
            # It was the certificate before the one that the new channel has.
        self._tell(error)

    def _judge_subscription(self, error: Exception, channel: grpc.Channel) -> None:
        try:
            self._judge(error, channel)
        except LinkRefusedError as refused:
            if refused.status is grpc.StatusCode.FAILED_PRECONDITION and isinstance(error, grpc.RpcError):
                raise VersionRefusedError(str(error.details())) from error
            if refused.status is grpc.StatusCode.INVALID_ARGUMENT:
                raise VersionRefusedError(
                    f"the server at {self._route} is older than this agent (Dure {self._version}) and does not "
                    "understand it: ask the operator to upgrade the server, or which version to install until then"
                ) from error
            raise

    def _tell(self, error: Exception) -> None:
        """Log why a call failed; the same reason once."""
        why = reason(error, self._route.proxy, time.time())
        if why != self._last_reason:
            logger.warning("the link at %s cannot be used (%s); trying again", self._route, why)
        self._last_reason = why

    def _reach(
        self, channel: grpc.Channel, backoff: Backoff, failure: Exception | None, deadline: float = float("inf")
    ) -> bool:
        """Wait and connect, again and again, until the link can be spoken to. False: closed, or the time is over.

        Every attempt is a fresh channel's, so it looks the address up anew, takes the certificate of this moment and
        comes after our own pause, not after gRPC's. What is asked before the link is there would be recorded and yet
        not leave: this asks nothing.
        """
        if isinstance(failure, grpc.RpcError) and failure.code() is grpc.StatusCode.UNAVAILABLE:
            self._replace(channel)
        while not self._closed.is_set():
            pause = backoff.pause_seconds()
            if failure is not None and proxy_status(failure) is not None:
                pause += PROXY_PAUSE_SECONDS
            left = deadline - time.monotonic()
            if self._hurry.wait(min(pause, max(0.0, left))) and not self._closed.is_set():
                self._hurry.clear()
            if pause >= left:
                return False
            channel = self._channel
            failure = why_not_there(channel, min(CONNECT_SECONDS, left - pause))
            if failure is None:
                return True
            if self._channel is channel and not self._closed.is_set():
                self._tell(failure)
                self._replace(channel)
        return False

    def _replace(self, old: grpc.Channel) -> None:
        """Take a new channel in an old one's place, unless somebody has done so already."""
        with self._lock:
            if self._channel is not old or self._closed.is_set():
                return
            self._channel = open_channel(self._route, self._folder)
        old.close()
