"""What may lie between an agent and its server: a wire that a test can cut, and a firm's HTTP proxy.

Both pass bytes on as they are; TLS goes through them from end to end.
"""

import asyncio
import base64
import socket
import threading
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

T = TypeVar("T")

HOST = "127.0.0.1"
READ_BYTES = 1 << 14


@dataclass
class Tunnel:
    """One connection: what an HTTP proxy was asked, and the bytes that passed, from the agent (up) and to it (down)."""

    head: bytes = b""
    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)
    num_up: int = 0
    num_down: int = 0


class Wire:
    """Listens on loopback and passes connections on to a port.

    cuts: ("up" | "down", bytes) for one connection after the other; it is cut once so many have passed that way.
    keeps: whether the bytes themselves are kept, or only counted.
    """

    def __init__(
        self,
        target_port: int,
        *,
        target_host: str = HOST,
        cuts: Iterable[tuple[str, int]] = (),
        listen_host: str = HOST,
        port: int = 0,
        keeps: bool = False,
    ) -> None:
        self.target = (target_host, target_port)
        self.tunnels: list[Tunnel] = []
        self._cuts = list(cuts)
        self._keeps = keeps
        self._is_down = False
        self._open: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._flows = self._run(_event())
        self._listener = self._run(asyncio.start_server(self._serve, listen_host, port))
        self.port = int(self._listener.sockets[0].getsockname()[1])

    def cut_after(self, cuts: Iterable[tuple[str, int]]) -> None:
        """Cut the connections that come next, as `cuts` of the constructor says."""
        self._cuts = list(cuts)

    def cut(self) -> None:
        """Cut every connection that is open. New ones go through."""
        self._run(self._abort_all())

    def down(self) -> None:
        """Cut every connection, and every new one at once, until `up`."""
        self._is_down = True
        self.cut()

    def up(self) -> None:
        """Let connections go through again."""
        self._is_down = False
        self._loop.call_soon_threadsafe(self._flows.set)

    def freeze(self) -> None:
        """Let nothing through and close nothing, as a network does that loses every packet, until `up`."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    @property
    def num_up(self) -> int:
        """Bytes that agents sent."""
        return sum(tunnel.num_up for tunnel in self.tunnels)

    @property
    def num_down(self) -> int:
        """Bytes that agents got."""
        return sum(tunnel.num_down for tunnel in self.tunnels)

    def close(self) -> None:
        """Stop listening and cut what is open."""
        self._loop.call_soon_threadsafe(self._listener.close)
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _way(self, tunnel: Tunnel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        """Where a new connection goes: (host, port). None: nowhere."""
        return None if self._is_down else self.target

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        tunnel = Tunnel()
        writers = [writer]
        try:
            await self._flows.wait()
            target = await self._way(tunnel, reader, writer)
            if target is None:
                return
            self.tunnels.append(tunnel)
            far_reader, far_writer = await asyncio.open_connection(*target)
            writers.append(far_writer)
            cut = self._cuts.pop(0) if self._cuts else ("", 0)
            pumps = [
                asyncio.create_task(self._pump(reader, far_writer, tunnel, "up", cut)),
                asyncio.create_task(self._pump(far_reader, writer, tunnel, "down", cut)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(task)
            for each in writers:
                each.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        tunnel: Tunnel,
        direction: str,
        cut: tuple[str, int],
    ) -> None:
        passed = 0
        limit = cut[1] if cut[0] == direction else None
        while data := await reader.read(READ_BYTES):
            await self._flows.wait()
            if limit is not None:
                data = data[: limit - passed]
            passed += len(data)
            if direction == "up":
                tunnel.num_up += len(data)
            else:
                tunnel.num_down += len(data)
            if self._keeps:
                (tunnel.up if direction == "up" else tunnel.down).extend(data)
            writer.write(data)
            await writer.drain()
            if passed == limit:
                return

    async def _abort_all(self) -> None:
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


class ConnectProxy(Wire):
    """A firm's HTTP proxy: knows CONNECT and nothing else, keeps all it sees.

    names: host name to the address behind it, as only the proxy's own DNS knows; credentials: "user:password" that it
    wants; refuses: an HTTP status to answer every CONNECT with.
    """

    def __init__(self, *, names: Mapping[str, str] | None = None, credentials: str = "", refuses: int = 0) -> None:
        self.names = dict(names or {})
        self.credentials = credentials
        self.refuses = refuses
        self.heads: list[bytes] = []
        super().__init__(0, keeps=True)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def _way(self, tunnel: Tunnel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        tunnel.head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(tunnel.head)
        method, target, _ = tunnel.head.decode("ascii").split("\r\n")[0].split(" ")
        status = self._status(method, tunnel.head)
        if self._is_down or status != 200:
            writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
            return None
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await writer.drain()
        host, _, port = target.rpartition(":")
        return self.names.get(host, host), int(port)

    def _status(self, method: str, head: bytes) -> int:
        if self.refuses:
            return self.refuses
        if method != "CONNECT":
            return 405
        wanted = b"Basic " + base64.b64encode(self.credentials.encode())
        given = [
            line.split(b":", 1)[1].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"proxy-auth")
        ]
        if self.credentials and given != [wanted]:
            return 407
        return 200


async def _event() -> asyncio.Event:
    made = asyncio.Event()
    made.set()
    return made


def is_tls(stream: bytes) -> bool:
    """Whether a stream is TLS records from its first byte to its last, the last one perhaps cut."""
    at = 0
    while at + 5 <= len(stream):
        kind, major = stream[at], stream[at + 1]
        if kind not in {20, 21, 22, 23} or major != 3:
            return False
        at += 5 + int.from_bytes(stream[at + 3 : at + 5], "big")
    return bool(stream)


def loopback_takes(address: str) -> bool:
    """Whether this machine listens on another address of the loopback network than 127.0.0.1."""
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
