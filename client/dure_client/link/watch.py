"""Who is told how the link does."""

from typing import Protocol


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
