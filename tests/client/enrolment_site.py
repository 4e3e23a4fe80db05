"""A consortium's enrolment API that runs, for tests of what a firm says to it; and an impostor in its place."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import uvicorn

from dure_protocols.certificates import (
    Authority,
    new_tls_key,
)
from dure_protocols.ledger import Entry
from dure_server.enrolment.operator import Operator
from dure_server.settings import ServerHome, ServerSettings
from dure_server.store import Store


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Site:
    """A consortium's server with its enrolment API running."""

    home: ServerHome
    settings: ServerSettings
    authority: Authority
    store: Store
    operator: Operator


@contextmanager
def running(server: uvicorn.Server) -> Iterator[None]:
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)


@dataclass
class Recorder:
    """Remembers what it was told; can be told to fail."""

    entries: list[Entry] = field(default_factory=list)
    fails: bool = False

    def record(self, entry: Entry) -> None:
        if self.fails:
            raise OSError("the disk is full")
        self.entries.append(entry)


class Impostor:
    """Listens with TLS where a server should be, answers with one thing, and keeps every byte it was sent."""

    def __init__(self, key_pem: bytes, certificate_pem: bytes, folder: Path, answers: list[bytes]) -> None:
        folder.mkdir()
        (folder / "key").write_bytes(key_pem)
        (folder / "pem").write_bytes(certificate_pem)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "pem", folder / "key")
        self._answers = answers
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.received: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            try:
                raw, _ = self._socket.accept()
                with raw, self._context.wrap_socket(raw, server_side=True) as connection:
                    connection.settimeout(5)
                    self.received.append(self._request(connection))
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\nConnection: close\r\n\r\n"
                    connection.sendall(head.encode() + answer)
            except OSError:
                continue

    @staticmethod
    def _request(connection: ssl.SSLSocket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        while len(body) < length:
            part = connection.recv(65536)
            data, body = data + part, body + part
        return data

    def close(self) -> None:
        self._socket.close()


ImpostorOf = Callable[[Authority, list[bytes]], Impostor]


def another_authority() -> Authority:
    return Authority.create("Millers", datetime.now(UTC), key=new_tls_key(), serial=1)


def root_json(authority: Authority) -> bytes:
    pem = authority.certificate_pem.decode().replace("\n", "\\n")
    return f'{{"consortium": "Millers", "certificate": "{pem}"}}'.encode()


class Cut(Exception):  # noqa: N818
    """The power goes."""
