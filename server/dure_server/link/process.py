"""The link process: puts the parts together, listens, and stops within a second of SIGTERM.

Prints one line of JSON on stdout when it serves: {"ready": true, "port": …, "desk": …}.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from dure_protocols.errors import DureError
from dure_protocols.frames import MAX_ENVELOPE_BYTES
from dure_protocols.versions import SPOKEN, ProtocolRange
from dure_server.link.blobs import DEFAULT_MAX_UPLOAD_BYTES, DEFAULT_QUOTA_BYTES, PART, BlobFolder
from dure_server.link.desk import DeskService
from dure_server.link.desk_frames import PUSH_BYTES
from dure_server.link.errors import LinkStartError
from dure_server.link.exchange import Exchange
from dure_server.link.firms import Deposit, FirmService, Leave, Presence, Refused, Renew
from dure_server.link.gate import Admit, Admitted, Gate
from dure_server.link.journal import Journal, Upload, open_engine
from dure_server.link.membership import StoreMembership
from dure_server.link.metrics import LinkMetrics
from dure_server.link.witness import Witness
from dure_server.logs import log_to_stderr
from dure_server.settings import ServerHome
from dure_server.store.database import Store

logger = logging.getLogger(__name__)

MAX_SOCKET_PATH_BYTES: Final = 103  # what every Unix takes; longer ones fail with a text that helps nobody
STOP_SECONDS: Final = 0.1  # what is cut off is resumed or repeated
SWEEP_SECONDS: Final = 3600.0
KEEP_EXPIRED_SECONDS: Final = 24 * 3600.0
KEEP_UNUSED_SECONDS: Final = 24 * 3600.0

COMMON_OPTIONS: Final[Sequence[tuple[str, int]]] = (
    ("grpc.so_reuseport", 0),  # a second link on the port is an error, not a partner
    ("grpc.max_send_message_length", MAX_ENVELOPE_BYTES + 1024),
)
FIRM_OPTIONS: Final[Sequence[tuple[str, int]]] = (
    *COMMON_OPTIONS,
    ("grpc.max_receive_message_length", MAX_ENVELOPE_BYTES + 1024),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.max_concurrent_streams", 32),
    # Agents ping through idle hours so that firewalls keep the connection and a dead one is noticed.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
)
DESK_OPTIONS: Final[Sequence[tuple[str, int]]] = (
    *COMMON_OPTIONS,
    ("grpc.max_receive_message_length", PUSH_BYTES + MAX_ENVELOPE_BYTES + 1024),
)


@dataclass(frozen=True)
class LinkSettings:
    """Where a link listens and keeps its things. `bind_host` and `port`: the firms' side."""

    consortium: str
    bind_host: str
    port: int
    desk_socket: Path
    lock_file: Path
    uploads: Path
    released: Path
    server_key: bytes
    server_certificate: bytes
    root_certificate: bytes
    store_url: str
    max_blob_bytes: int = DEFAULT_MAX_UPLOAD_BYTES
    quota_bytes: int = DEFAULT_QUOTA_BYTES
    protocols: ProtocolRange = SPOKEN

    def __repr__(self) -> str:
        return f"LinkSettings({self.consortium}, {self.bind_host}:{self.port})"


@dataclass(frozen=True)
class Membership:
    """What the link asks the store about firms. The functions are called from threads of the link."""

    admit: Admit
    admitted: Admitted
    renew: Renew
    leave: Leave
    admit_leaver: Admit
    presence: Presence
    refused: Refused
    deposit: Deposit


async def serve(settings: LinkSettings, membership: Membership) -> None:
    """Serve until SIGTERM or SIGINT. Raises LinkStartError if something is in the way."""
    with _one_link(settings.lock_file):
        metrics = LinkMetrics()
        journal = Journal(open_engine(settings.store_url), metrics.committed)
        try:
            await _serve(settings, membership, journal, metrics)
        finally:
            journal.close()


async def _serve(settings: LinkSettings, membership: Membership, journal: Journal, metrics: LinkMetrics) -> None:
    blobs = BlobFolder(
        settings.uploads,
        settings.released,
        max_blob_bytes=settings.max_blob_bytes,
        quota_bytes=settings.quota_bytes,
    )
    exchange, gate = Exchange(), Gate(membership.admit, membership.admitted, metrics=metrics)
    # Two servers, so that the coordinators' methods do not exist on the firms' port.
    firms, desk = grpc.aio.server(options=FIRM_OPTIONS), grpc.aio.server(options=DESK_OPTIONS)
    service = FirmService(
        journal,
        blobs,
        exchange,
        renew=membership.renew,
        leave=membership.leave,
        admit_leaver=membership.admit_leaver,
        presence=membership.presence,
        refused=membership.refused,
        deposit=membership.deposit,
        protocols=settings.protocols,
    )
    firms.add_generic_rpc_handlers((service.handlers(gate),))
    at_desk = DeskService(settings.consortium, journal, blobs, exchange, metrics)
    desk.add_generic_rpc_handlers((at_desk.handlers(),))
    port = _listen(firms, settings)
    _listen_on_socket(desk, settings.desk_socket)
    await desk.start()
    settings.desk_socket.chmod(0o600)
    await firms.start()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    chores = [asyncio.create_task(gate.watch()), asyncio.create_task(_sweep_for_ever(journal, blobs))]
    print(json.dumps({"ready": True, "port": port, "desk": str(settings.desk_socket)}), flush=True)
    await stop.wait()
    for chore in chores:
        chore.cancel()
    await asyncio.gather(firms.stop(STOP_SECONDS), desk.stop(STOP_SECONDS))
    settings.desk_socket.unlink(missing_ok=True)


def _listen(server: grpc.aio.Server, settings: LinkSettings) -> int:
    credentials = grpc.ssl_server_credentials(
        [(settings.server_key, settings.server_certificate)],
        root_certificates=settings.root_certificate,
        require_client_auth=True,
    )
    address = f"[{settings.bind_host}]" if ":" in settings.bind_host else settings.bind_host
    try:
        return int(server.add_secure_port(f"{address}:{settings.port}", credentials))
    except RuntimeError as error:
        raise LinkStartError(
            f"the link cannot listen on {settings.bind_host} port {settings.port}: another program has this port, or "
            "this machine does not have the address. Stop that program, or change link_port in server.toml"
        ) from error


def _listen_on_socket(server: grpc.aio.Server, socket: Path) -> None:
    if len(str(socket).encode()) > MAX_SOCKET_PATH_BYTES:
        raise LinkStartError(
            f"the desk's socket {socket} has a path of more than {MAX_SOCKET_PATH_BYTES} bytes, which Unix does not "
            "take: use a server home with a shorter path"
        )
    socket.unlink(missing_ok=True)  # left by a link that was killed; the lock says that it is gone
    try:
        server.add_insecure_port(f"unix:{socket}")
    except RuntimeError as error:
        raise LinkStartError(
            f"the link cannot make its socket {socket}: check that this user may write there"
        ) from error


@contextlib.contextmanager
def _one_link(lock_file: Path) -> Iterator[None]:
    with lock_file.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LinkStartError(
                f"another link runs on this server home ({lock_file} is locked): stop it first, or use another home"
            ) from error
        yield


async def _sweep_for_ever(journal: Journal, blobs: BlobFolder) -> None:
    while True:
        try:
            await sweep(journal, blobs, time.time())
        except Exception:
            logger.exception("clearing out old messages failed; it is tried again later")
        await asyncio.sleep(SWEEP_SECONDS)


async def sweep(journal: Journal, blobs: BlobFolder, now: float) -> None:
    """Drop messages that expired a day ago, and uploads that are a day old and belong to no reply."""
    for upload in await journal.forget_expired(now - KEEP_EXPIRED_SECONDS):
        blobs.drop_upload(upload)
    for upload in blobs.old_uploads(KEEP_UNUSED_SECONDS):
        whole = Upload(upload.firm, upload.digest.removesuffix(PART))
        if not await journal.is_upload_used(whole):
            blobs.drop_upload(upload)


def link_settings(server: ServerHome) -> LinkSettings:
    """What a server's home says of its link. Raises SettingsError or LinkStartError."""
    settings = server.settings()
    return LinkSettings(
        consortium=settings.consortium,
        bind_host=settings.bind_host,
        port=settings.link_port,
        desk_socket=server.desk_socket,
        lock_file=server.path / "link.lock",
        uploads=server.uploads,
        released=server.released,
        server_key=_read(server.server_key_file),
        server_certificate=_read(server.server_certificate_file),
        root_certificate=_read(server.root_file),
        store_url=server.store_url(settings),
    )


def store_membership(store: StoreMembership, witness: Witness) -> Membership:
    """What the link asks, answered by a store."""
    return Membership(
        admit=store.admit,
        admitted=store.admitted,
        renew=store.renew,
        leave=store.leave,
        admit_leaver=store.admit_leaver,
        presence=store.presence,
        refused=store.refused,
        deposit=witness.deposit,
    )


def main(home: Path, *, as_json: bool = False) -> int:
    """Run the link of a server home until it is told to stop. The exit code; errors go to stderr as one sentence."""
    log_to_stderr("link", as_json=as_json)
    server = ServerHome(home)
    try:
        link = link_settings(server)
        store, authority = Store.open(link.store_url), server.authority()
        membership = store_membership(StoreMembership(store, authority), Witness(store, authority))
        asyncio.run(serve(link, membership))
    except DureError as error:
        print(f"dure-server link: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise LinkStartError(f"{file} cannot be read ({error.strerror}): run `dure-server init` first") from error
