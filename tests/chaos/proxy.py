"""A TCP proxy between one firm's agent and the link, whose connections can be cut, stalled and slowed down.

It passes bytes and understands none of them: TLS goes through it end to end.
"""

import asyncio
import threading
from collections.abc import Callable

HOST = "127.0.0.1"
READ_BYTES = 1 << 16
SLOW_BYTES_PER_SECOND = 1 << 16


class Proxy:
    """Listens on `port` for the port of a link on this machine. Methods may be called from any thread."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._open: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._is_cut = self._is_slow = False
        self._listener = self._wait(self._listen())
        self.port = int(self._listener.sockets[0].getsockname()[1])

    def cut(self, seconds: float) -> None:
        """Close every connection, and refuse new ones for a while. Returns once they are closed."""

        def mend() -> None:
            self._is_cut = False

        async def cut() -> None:
            self._is_cut = True
            await self._close_all()
            self._loop.call_later(seconds, mend)

        self._wait(cut())

    def stall(self, seconds: float) -> None:
        """Keep the connections and pass nothing for a while, either way; what comes meanwhile is passed on then."""
        self._for_a_while(self._flows.clear, self._flows.set, seconds)

    def slow(self, seconds: float) -> None:
        """Pass no more than 64 KiB a second and direction for a while."""

        def turn(on: bool) -> None:
            self._is_slow = on

        self._for_a_while(lambda: turn(True), lambda: turn(False), seconds)

    @property
    def num_connections(self) -> int:
        """Connections that are open now."""
        return len(self._open)

    def close(self) -> None:
        """End everything."""

        async def end() -> None:
            self._listener.close()
            await self._close_all()

        self._wait(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _for_a_while(self, begin: Callable[[], None], end: Callable[[], None], seconds: float) -> None:
        async def both() -> None:
            begin()
            self._loop.call_later(seconds, end)

        self._wait(both())

    def _wait(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _listen(self) -> asyncio.Server:
        self._flows.set()
        return await asyncio.start_server(self._serve, HOST, 0)

    async def _close_all(self) -> None:
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        other = None
        try:
            up, other = await asyncio.open_connection(HOST, self._target_port)
            both = [asyncio.create_task(self._pass(reader, other)), asyncio.create_task(self._pass(up, writer))]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in both:
                    each.cancel()
                await asyncio.gather(*both, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.transport.abort()
            if other is not None:
                other.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(READ_BYTES):
            await self._flows.wait()
            if self._is_slow:
                await asyncio.sleep(len(data) / SLOW_BYTES_PER_SECOND)
            target.write(data)
            await target.drain()
