"""Who is connected and who waits: the only state the link keeps in memory, and none that a restart loses.

What a subscriber has not been given from here it is given from the journal when it connects again; what a waiting
coordinator has not heard of from here it finds in the journal when it asks again.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from dure_server.link.journal import Pushed


class Subscription:
    """One agent's open stream: its messages in the order of their push, then None once a newer stream took over."""

    def __init__(self, agent_version: str) -> None:
        self.agent_version = agent_version
        self.news: asyncio.Queue[Pushed | None] = asyncio.Queue()


class Exchange:
    """Hands messages to the streams that are open, and word of replies to the coordinators that wait."""

    def __init__(self) -> None:
        self._subscriptions: dict[str, Subscription] = {}
        self._listeners: set[asyncio.Queue[str]] = set()

    @contextmanager
    def subscribed(self, firm: str, agent_version: str) -> Iterator[Subscription]:
        """Take a firm's place; an older stream of it is told to end."""
        mine = Subscription(agent_version)
        if older := self._subscriptions.get(firm):
            older.news.put_nowait(None)
        self._subscriptions[firm] = mine
        try:
            yield mine
        finally:
            if self._subscriptions.get(firm) is mine:
                del self._subscriptions[firm]

    def deliver(self, pushed: Iterable[Pushed]) -> None:
        """Give messages to the streams of their firms, where there are any."""
        for message in pushed:
            if subscription := self._subscriptions.get(message.firm):
                subscription.news.put_nowait(message)

    def connected(self) -> dict[str, str]:
        """Firm -> agent version of every open stream."""
        return {firm: subscription.agent_version for firm, subscription in self._subscriptions.items()}

    @contextmanager
    def listening(self) -> Iterator[asyncio.Queue[str]]:
        """A queue of the ids of messages that are answered from now on."""
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)

    def answered(self, message_id: str) -> None:
        """Tell who listens that a reply is in the journal."""
        for queue in self._listeners:
            queue.put_nowait(message_id)
