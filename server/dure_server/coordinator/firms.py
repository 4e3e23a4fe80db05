"""What a coordinator needs of a link to the firms. Implemented over any Flower Grid by `dure_server.flower`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dure_protocols.frames import Place
from dure_protocols.secagg.codec import Words


@dataclass(frozen=True)
class Ask:
    """One request to one firm. arrays: name to the SHA-256 of a vector that was shared before."""

    node: int
    place: Place
    body: bytes
    arrays: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A firm's reply: a message's bytes, arrays (mapped, read-only) and the SHA-256 of each array's bytes, or an error.

    error: the code that the agent's app failed with; the reason stayed at the firm.
    """

    ask_id: str
    node: int
    body: bytes = b""
    arrays: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    digests: Mapping[str, bytes] = field(default_factory=dict)
    error: str | None = None


class Firms(Protocol):
    """The link as the coordinator sees it."""

    def connected(self) -> set[str]:
        """The firms whose agents are connected now. A name is a claim until a signature proves it."""

    def node_of(self, firm: str) -> int | None:
        """A firm's node id, connected or not; None if this runtime has not seen it yet."""

    def push(self, asks: Sequence[Ask]) -> list[str]:
        """Send requests; returns their ids in order. The same request twice has the same id and is sent once."""

    def receive(self, ids: Sequence[str], timeout: float) -> Iterator[Answer]:
        """Answers to these requests as they come, until all are here or `timeout` seconds are over."""

    def forget(self, ids: Sequence[str]) -> None:
        """Drop requests, their answers and the answers' arrays."""

    def share(self, vector: Words) -> bytes:
        """Store a vector durably where every firm may fetch it. Returns its SHA-256, 32 bytes."""

    def load(self, digest: bytes, num_words: int) -> Words:
        """A vector that was shared before, mapped."""

    def retract(self, digests: Sequence[bytes]) -> None:
        """Delete shared vectors, but for those that some request still brings to a firm."""
