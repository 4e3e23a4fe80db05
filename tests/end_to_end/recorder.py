"""A recorder on the wire between one firm's agent and its server.

It ends the agent's TLS with the server's own key, which a test owns, notes every byte that the agent sent, and passes
it on over TLS of its own, with the firm's key where the server asks for one. The agent sees the server it knows.
"""

import asyncio
import contextlib
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from dure_server.settings import ServerHome

READ_BYTES = 1 << 16
HOST = "127.0.0.1"


@dataclass
class Connection:
    """One connection of the agent. `sent`: (Unix time of arrival, plaintext); `raw_bytes`: what TLS made of it."""

    sent: list[tuple[float, bytes]] = field(default_factory=list)
    raw_bytes: int = 0
    source_port: int = 0
    caller: str | None = None
    protocol: str | None = None
    refused: str = ""
    is_over: bool = False

    @property
    def stream(self) -> bytes:
        return b"".join(part for _, part in self.sent)

    def arrival_of(self, end: int) -> float:
        """When the byte before offset `end` had arrived."""
        for arrived, part in self.sent:
            end -= len(part)
            if end <= 0:
                return arrived
        raise AssertionError(f"{end} bytes more were asked for than came")


class Recorder:
    """Listens on `port` for one of a server's ports. With `keys`, a firm's folder, it asks for and shows a client
    certificate."""

    def __init__(self, server: ServerHome, target_port: int, keys: Path | None = None, host: str = HOST) -> None:
        self._server, self._target, self._keys = server, (host, target_port), keys
        self.connections: list[Connection] = []
        self._open: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, host, 0), self._loop)
        self._listener = listening.result(10)
        self.port = int(self._listener.sockets[0].getsockname()[1])

    def close(self) -> None:
        async def end() -> None:
            self._listener.close()
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        connection = Connection(source_port=writer.get_extra_info("peername")[1])
        self.connections.append(connection)
        try:
            await _Relay(connection, reader, writer, self._as_server()).run(self._target, self._as_client())
        except (ssl.SSLError, OSError, EOFError) as error:
            connection.refused = str(error)
        except asyncio.CancelledError:
            pass
        finally:
            self._open.discard(task)
            writer.transport.abort()
            connection.is_over = True

    def _as_server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._server.server_certificate_file, self._server.server_key_file)
        if self._keys is not None:
            context.load_verify_locations(self._server.root_file)
            context.verify_mode = ssl.CERT_REQUIRED
            context.set_alpn_protocols(["h2"])
        return context

    def _as_client(self) -> ssl.SSLContext:
        """Read anew for each connection: a firm renews its key."""
        context = ssl.create_default_context(cafile=str(self._server.root_file))
        if self._keys is not None:
            context.load_cert_chain(self._keys / "tls.pem", self._keys / "tls.key")
            context.set_alpn_protocols(["h2"])
        return context


class _Relay:
    """One connection: TLS towards the agent by hand, so that its bytes can be counted before and after."""

    def __init__(
        self,
        connection: Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        context: ssl.SSLContext,
    ) -> None:
        self._connection, self._reader, self._writer = connection, reader, writer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def run(self, target: tuple[str, int], context: ssl.SSLContext) -> None:
        await self._handshake()
        up_reader, up_writer = await asyncio.open_connection(*target, ssl=context)
        both = [asyncio.create_task(self._up(up_writer)), asyncio.create_task(self._down(up_reader))]
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            up_writer.transport.abort()

    async def _handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._receive()
                continue
            finally:
                with contextlib.suppress(OSError):
                    await self._flush()
            break
        der = self._tls.getpeercert(binary_form=True)
        self._connection.caller = None if der is None else _common_name(der)
        self._connection.protocol = self._tls.selected_alpn_protocol()

    async def _receive(self) -> None:
        raw = await self._reader.read(READ_BYTES)
        if not raw:
            raise EOFError("the agent closed the connection")
        self._connection.raw_bytes += len(raw)
        self._incoming.write(raw)

    async def _flush(self) -> None:
        if self._outgoing.pending:
            self._writer.write(self._outgoing.read())
            await self._writer.drain()

    async def _up(self, target: asyncio.StreamWriter) -> None:
        while True:
            try:
                plain = self._tls.read(READ_BYTES)
                if not plain:  # the agent closed TLS in order
                    return
                self._connection.sent.append((time.time(), plain))
                target.write(plain)
                await target.drain()
            except ssl.SSLWantReadError:
                await self._flush()
                try:
                    await self._receive()
                except EOFError:
                    return

    async def _down(self, source: asyncio.StreamReader) -> None:
        while data := await source.read(READ_BYTES):
            self._tls.write(data)
            await self._flush()


def _common_name(der: bytes) -> str:
    return str(x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
