"""A consortium on loopback for the link's tests: a real server home, a real link process, real certificates."""

import contextlib
import hashlib
import json
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from dure_client.link.channel import Route
from dure_client.link.client import LinkClient
from dure_protocols.certificates import (
    Authority,
    key_to_pem,
    new_serial,
    new_tls_key,
    read_certificate,
    signing_request,
)
from dure_protocols.frames import AnyArray, ArrayRef, Envelope, node_id
from dure_protocols.ledger import Entry, signed_size
from dure_server.link.blobs import store_array
from dure_server.link.desk_client import DeskClient
from dure_server.link.desk_frames import Parcel
from dure_server.settings import ServerHome, ServerSettings
from dure_server.store.database import Store

CONSORTIUM = "test"
NAME = "dure.test"
"""A name of the server that no DNS knows."""


class Account:
    """An egress recorder that keeps its entries in a list."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def record(self, entry: Entry) -> None:
        self.entries.append(entry)

    @property
    def num_bytes(self) -> int:
        return sum(map(signed_size, self.entries))

    @property
    def kinds(self) -> list[str]:
        return [str(entry.kind) for entry in self.entries]


class LinkSite:
    """Starts and kills the link process; knows the desk; makes firms."""

    def __init__(self) -> None:
        # A short path: pytest's own temporary folders are longer than a Unix socket's name may be.
        self.folder = Path(tempfile.mkdtemp(prefix="dure-"))
        self.home = ServerHome(self.folder / "server")
        self.home.create()
        self.port = free_port()
        now = datetime.now(UTC)
        self.authority = Authority.create(CONSORTIUM, now, key=new_tls_key(), serial=new_serial())
        key = new_tls_key()
        self.home.root_file.write_bytes(self.authority.certificate_pem)
        self.home.root_key_file.write_bytes(self.authority.key_pem())
        self.home.server_key_file.write_bytes(key_to_pem(key))
        hosts = ["localhost", "127.0.0.1", NAME]
        pem = self.authority.issue_server(key.public_key(), hosts, now, serial=new_serial())
        self.home.server_certificate_file.write_bytes(pem)
        settings = ServerSettings(
            consortium=CONSORTIUM, public_host="127.0.0.1", bind_host="127.0.0.1", link_port=self.port
        )
        self.home.settings_file.write_text(settings.to_toml())
        self.store = Store.create(self.home.store_url(settings))
        with self.store.transaction() as tx:
            tx.consortium.create(CONSORTIUM, self.authority.fingerprint)
        self.process: subprocess.Popen[bytes] | None = None
        self.desk = DeskClient(self.home.desk_socket, patience_seconds=20)
        self._clients: list[LinkClient] = []

    def start(self, *arguments: str) -> None:
        """Start the link. arguments: another module than the product's, and what it takes."""
        with (self.home.logs / "link.log").open("ab") as log:
            command = [sys.executable, "-m", *(arguments or ("dure_server.link", "--home", str(self.home.path)))]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=Path(__file__).parents[2])
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 30)[0], self.log()
        line = self.process.stdout.readline()
        assert line, self.log()
        assert json.loads(line)["ready"]

    def kill(self) -> None:
        """kill -9: what a crash leaves, not what a stop cleans up."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> float:
        """SIGTERM. Returns the seconds until the process was gone."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)
        return time.monotonic() - began

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def close_clients(self) -> None:
        while self._clients:
            self._clients.pop().close()

    def close(self) -> None:
        self.close_clients()
        self.desk.close()
        if self.is_running:
            self.stop()
        self.store.close()
        shutil.rmtree(self.folder)

    def log(self) -> str:
        return (self.home.logs / "link.log").read_text()

    def admit(self, firm: str, authority: Authority | None = None, now: datetime | None = None) -> Path:
        """A firm that has joined and was approved; the folder with its keys. `authority`: another than ours."""
        folder = self.folder / firm / "keys"
        folder.mkdir(parents=True)
        key = new_tls_key()
        issuer = authority or self.authority
        pem = issuer.issue_client(firm, signing_request(key), now or datetime.now(UTC), serial=new_serial())
        (folder / "tls.key").write_bytes(key_to_pem(key))
        (folder / "tls.pem").write_bytes(pem)
        (folder / "root.pem").write_bytes(self.authority.certificate_pem)
        if authority is None:
            with self.store.transaction() as tx:
                tx.firms.invite(firm)
                tx.firms.join(firm, hashlib.sha256(firm.encode()).digest(), "0.1.0")
                tx.firms.approve(firm)
                tx.certificates.add(read_certificate(pem), pem)
        return folder

    def client(
        self,
        firm: str,
        keys: Path | None = None,
        account: Account | None = None,
        *,
        port: int | None = None,
        route: Route | None = None,
        **more: Any,
    ) -> LinkClient:
        """A firm's client. port: of a wire before the link; route: another way; more: as `LinkClient` takes it."""
        folder = keys or self.folder / firm / "keys"
        client = LinkClient(route or f"127.0.0.1:{port or self.port}", folder, account or Account(), **more)
        self._clients.append(client)
        return client

    def raw_channel(self, firm: str) -> grpc.Channel:
        """A channel with a firm's certificate and none of our client's manners."""
        keys = self.folder / firm / "keys"
        files = ((keys / name).read_bytes() for name in ("root.pem", "tls.key", "tls.pem"))
        options = [("grpc.max_send_message_length", -1)]
        return grpc.secure_channel(f"127.0.0.1:{self.port}", grpc.ssl_channel_credentials(*files), options)

    def message(
        self,
        firm: str,
        group: str = "job/1/0/join",
        body: bytes = b"x",
        arrays: Sequence[AnyArray] = (),
        **fields: float,
    ) -> Envelope:
        """A message for a firm; its large arrays are released."""
        refs = []
        for number, array in enumerate(arrays):
            if ArrayRef.needs_blob(array):
                store_array(array, self.home.released)
            refs.append(ArrayRef.of(f"a{number}", array))
        times = {"created_at": time.time(), "ttl": 60.0} | fields
        node = node_id(CONSORTIUM, firm)
        return Envelope.request(7, node, group, "query.dure", body, tuple(refs), times["created_at"], times["ttl"])

    def push(self, firm: str, *messages: Envelope) -> None:
        self.desk.push([Parcel(firm, message.encode()) for message in messages])

    def replies(self, *messages: Envelope, timeout: float = 10.0) -> list[Envelope]:
        ids = [message.message_id for message in messages]
        return [reply for _, reply in self.desk.replies(ids, wait=True, timeout_seconds=timeout)]


@contextlib.contextmanager
def running(site: LinkSite) -> Iterator[LinkSite]:
    try:
        site.start()
        yield site
    finally:
        site.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def blob(size_bytes: int, seed: int = 0) -> AnyArray:
    return np.random.default_rng(seed).integers(0, 1 << 16, size_bytes // 2, dtype=np.uint16)


def eventually(holds: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
