"""The event stream of a page: its fragments, again whenever they change."""

import asyncio
from collections.abc import AsyncIterator

from dure_server.console.render import Pages
from dure_server.console.views import Overview, change_mark, overview
from dure_server.store import Store, UnknownRowError

LOOK_SECONDS = 1.0
SILENCE_SECONDS = 15.0
"""After this long without an event a comment is sent, so that a dead connection is noticed."""
RETRY_MILLISECONDS = 2000


async def events(store: Store, pages: Pages, job: str | None, stopping: asyncio.Event) -> AsyncIterator[str]:
    """Server-sent events for one page, until the browser leaves or the server stops."""
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    sent: dict[str, str] = {}
    mark: tuple[object, ...] | None = None
    silent = 0.0
    while not stopping.is_set():
        news, mark = await asyncio.to_thread(_look, store, pages, job, mark)
        changed = {name: html for name, html in news.items() if sent.get(name) != html}
        for name, html in changed.items():
            yield _event(name, html)
        sent |= changed
        silent = 0.0 if changed else silent + LOOK_SECONDS
        if silent >= SILENCE_SECONDS:
            yield ": still here\n\n"
            silent = 0.0
        try:
            await asyncio.wait_for(stopping.wait(), LOOK_SECONDS)
        except TimeoutError:
            continue


def _look(
    store: Store, pages: Pages, job: str | None, mark: tuple[object, ...] | None
) -> tuple[dict[str, str], tuple[object, ...]]:
    with store.reading() as tx:
        now = change_mark(tx)
        if now == mark:
            return {}, now
        try:
            view: Overview = overview(tx, job)
        except UnknownRowError:
            return {}, now
    return pages.fragments(view), now


def _event(name: str, html: str) -> str:
    data = "".join(f"data: {line}\n" for line in html.splitlines()) or "data:\n"
    return f"event: {name}\n{data}\n"


class Seats:
    """How many streams may be open at once: each costs a query a second, and one person needs few."""

    def __init__(self, most: int = 24) -> None:
        self._free = most

    @property
    def are_taken(self) -> bool:
        """Whether none is left."""
        return self._free <= 0

    async def hold(self, stream: AsyncIterator[str]) -> AsyncIterator[str]:
        """A stream that holds a seat while it runs, however it ends."""
        self._free -= 1
        try:
            async for event in stream:
                yield event
        finally:
            self._free += 1
