"""What the coordinator asks of the firms (`coordinator.firms.Firms`), over Dure's own Grid or any other."""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from dure_protocols.errors import DureError, MisuseError
from dure_protocols.frames import DURE_MESSAGE_TYPE, raw_bytes
from dure_protocols.messages import Hello, Present, decode, encode
from dure_protocols.secagg.codec import Words
from dure_server.coordinator.firms import Answer, Ask
from dure_server.flower.content import HeldArray, arrays_of, body_of, content, ndarray_of
from dure_server.flower.grid import GrpcGrid
from dure_server.link.blobs import map_array, store_array

NO_ARRAYS: Final[Mapping[str, bytes]] = MappingProxyType({})
FIRST_POLL_SECONDS: Final = 0.01
LONGEST_POLL_SECONDS: Final = 0.25


class GridFirmsError(DureError):
    """A Grid that is not Dure's did not take a message."""


class LinkFirms:
    """What the coordinator asks of the firms (`coordinator.firms.Firms`), over a GrpcGrid."""

    def __init__(self, grid: GrpcGrid, ttl_seconds: float) -> None:
        """`ttl_seconds`: how long a request counts for anything."""
        self._grid = grid
        self._ttl_seconds = ttl_seconds

    def connected(self) -> set[str]:
        """The firms whose agents are connected now, by their certificates."""
        return set(self._grid.connected())

    def node_of(self, firm: str) -> int | None:
        """A firm's node id, connected or not."""
        return self._grid.node_of(firm)

    def push(self, asks: Sequence[Ask]) -> list[str]:
        """Send requests; returns their ids in order. The same request twice has the same id and is sent once."""
        return list(self._grid.push_messages(self._message(ask) for ask in asks))

    def receive(self, ids: Sequence[str], timeout: float) -> Iterator[Answer]:
        """Answers to these requests as they come, until all are here or `timeout` seconds are over."""
        for reply in self._grid.receive(ids, timeout=timeout):
            yield _link_answer(reply)

    def forget(self, ids: Sequence[str]) -> None:
        """Drop requests, their answers and the answers' arrays."""
        self._grid.desk.forget(ids)

    def share(self, vector: Words) -> bytes:
        """Store a vector durably where every firm may fetch it. Returns its SHA-256, 32 bytes."""
        return bytes.fromhex(self._grid.share(vector).sha256)

    def load(self, digest: bytes, num_words: int) -> Words:
        """A vector that was shared before, mapped."""
        return self._grid.shared(digest.hex(), "uint64", (num_words,)).numpy().view(np.uint64)

    def retract(self, digests: Sequence[bytes]) -> None:
        """Delete shared vectors, but for those that some request still brings to a firm."""
        self._grid.desk.retract([digest.hex() for digest in digests])

    def _message(self, ask: Ask) -> Message:
        arrays = {name: self._grid.shared_words(digest.hex()) for name, digest in ask.arrays.items()}
        return Message(
            content(ask.body, arrays), ask.node, DURE_MESSAGE_TYPE, group_id=ask.place.group, ttl=self._ttl_seconds
        )


def _link_answer(reply: Message) -> Answer:
    ask_id, node = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
    if reply.has_error():
        return Answer(ask_id, node, error=reply.error.reason or "")
    arrays = arrays_of(reply)
    digests = {name: bytes.fromhex(array.sha256) for name, array in arrays.items() if isinstance(array, HeldArray)}
    return Answer(ask_id, node, body_of(reply), {name: array.numpy() for name, array in arrays.items()}, digests)


class GridFirms:
    """`coordinator.firms.Firms` over any flwr Grid: arrays travel inline, and an id lasts as long as the process.

    Such a Grid does not know which node is which firm, so each node is asked for its name once and again until it
    answers. The name is a claim; what a firm says in a job is signed. Vectors are kept in a folder, so that a
    coordinator that is started again goes on from the last finished round.
    """

    def __init__(self, grid: Grid, vectors: Path, *, hello_seconds: float = 60.0) -> None:
        """`vectors`: folder for what is shared; `hello_seconds`: how long to wait for a node to say its name."""
        vectors.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._grid, self._vectors, self._hello_seconds = grid, vectors, hello_seconds
        self._node_of: dict[str, int] = {}
        self._greeted: dict[int, tuple[str, float]] = {}
        self._ids: dict[tuple[str, int], str] = {}
        self._answers: dict[str, Answer] = {}

    def connected(self) -> set[str]:
        """The firms whose nodes the Grid counts as online and that have said their name."""
        nodes = set(self._grid.get_node_ids())
        self._hear_names()
        self._greet(nodes - set(self._node_of.values()))
        return {firm for firm, node in self._node_of.items() if node in nodes}

    def node_of(self, firm: str) -> int | None:
        """A firm's node id. Waits a while for one that has not said its name; None if it does not."""
        deadline = time.monotonic() + self._hello_seconds
        while firm not in self._node_of and firm not in self.connected() and time.monotonic() < deadline:
            time.sleep(LONGEST_POLL_SECONDS)
        return self._node_of.get(firm)

    def push(self, asks: Sequence[Ask]) -> list[str]:
        """Send requests that were not sent before; returns their ids in order."""
        new = [ask for ask in asks if (ask.place.group, ask.node) not in self._ids]
        messages = [self._message(ask.node, ask.body, ask.place.group, ask.arrays) for ask in new]
        for ask, message_id in zip(new, self._push(messages), strict=True):
            self._ids[ask.place.group, ask.node] = message_id
        return [self._ids[ask.place.group, ask.node] for ask in asks]

    def receive(self, ids: Sequence[str], timeout: float) -> Iterator[Answer]:
        """Answers as they come, until all are here or `timeout` seconds are over."""
        missing, deadline, pause = dict.fromkeys(ids), time.monotonic() + timeout, FIRST_POLL_SECONDS
        while missing:
            self._pull(ask_id for ask_id in missing if ask_id not in self._answers)
            for ask_id in [ask_id for ask_id in missing if ask_id in self._answers]:
                del missing[ask_id]
                yield self._answers[ask_id]
            if not missing or time.monotonic() + pause > deadline:
                return
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_POLL_SECONDS)

    def forget(self, ids: Sequence[str]) -> None:
        """Drop requests and answers. The Grid has dropped its own when they were pulled."""
        dropped = set(ids)
        self._ids = {place: ask_id for place, ask_id in self._ids.items() if ask_id not in dropped}
        for ask_id in dropped:
            self._answers.pop(ask_id, None)

    def share(self, vector: Words) -> bytes:
        """Keep a vector to send along with later requests. Returns its SHA-256."""
        return bytes.fromhex(store_array(vector, self._vectors))

    def load(self, digest: bytes, num_words: int) -> Words:
        """A vector that was shared before, mapped. Raises MisuseError if it is gone or of another length."""
        file = self._vectors / digest.hex()
        size_bytes = file.stat().st_size if file.exists() else -1
        if size_bytes != 8 * num_words:
            raise MisuseError(f"{file} should hold {8 * num_words} bytes; without that sum the job cannot go on")
        return map_array(file, "uint64", (num_words,)).view(np.uint64)

    def retract(self, digests: Sequence[bytes]) -> None:
        """Delete shared vectors. What was pushed took its own copy along."""
        for digest in digests:
            (self._vectors / digest.hex()).unlink(missing_ok=True)

    def _hear_names(self) -> None:
        """Take the answers to greetings that are here by now."""
        asked = {ask_id: node for node, (ask_id, _) in self._greeted.items() if ask_id}
        for reply in self._grid.pull_messages(list(asked)) if asked else ():
            node = asked[reply.metadata.reply_to_message_id]
            self._greeted[node] = ("", self._greeted[node][1])
            if firm := _name_in(reply):
                self._node_of[firm] = node

    def _greet(self, strangers: set[int]) -> None:
        """Ask nodes for their firms' names without waiting, and again those that have been silent for long."""
        now = time.monotonic()
        new = sorted(node for node in strangers if self._greeted.get(node, ("", 0.0))[1] <= now)
        messages = [self._message(node, encode(Hello()), f"hello/{node}") for node in new]
        for node, message_id in zip(new, self._push(messages), strict=True):
            self._greeted[node] = (message_id, now + self._hello_seconds)

    def _push(self, messages: Sequence[Message]) -> list[str]:
        ids = list(self._grid.push_messages(messages)) if messages else []
        if len(ids) != len(messages) or not all(ids):
            raise GridFirmsError(f"the Grid took {sum(map(bool, ids))} of {len(messages)} messages; see its own log")
        return ids

    def _pull(self, ids: Iterable[str]) -> None:
        if waiting := list(ids):
            for reply in self._grid.pull_messages(waiting):
                answer = _grid_answer(reply)
                self._answers[answer.ask_id] = answer

    def _message(self, node: int, body: bytes, group: str, arrays: Mapping[str, bytes] = NO_ARRAYS) -> Message:
        return Message(content(body, self._held(arrays)), node, DURE_MESSAGE_TYPE, group_id=group)

    def _held(self, arrays: Mapping[str, bytes]) -> dict[str, HeldArray]:
        files = {name: self._vectors / digest.hex() for name, digest in arrays.items()}
        return {
            name: HeldArray(map_array(file, "uint64", (file.stat().st_size // 8,)), file.name)
            for name, file in files.items()
        }


def _name_in(reply: Message) -> str | None:
    try:
        message = decode(body_of(reply))
    except DureError:
        return None
    return message.firm if isinstance(message, Present) else None


def _grid_answer(reply: Message) -> Answer:
    """An answer, or the error it comes to: a Grid hands over whatever a node has sent."""
    ask_id, node = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
    try:
        if not reply.has_error():
            arrays = {name: ndarray_of(array) for name, array in arrays_of(reply).items()}
            digests = {name: hashlib.sha256(raw_bytes(array)).digest() for name, array in arrays.items()}
            return Answer(ask_id, node, body_of(reply), arrays, digests)
        error = "app-failed"
    except DureError:
        error = "malformed"
    return Answer(ask_id, node, error=error)
