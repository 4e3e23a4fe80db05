"""What the coordinator asks of the firms (`coordinator.firms.Firms`), over Dure's own Grid or any other."""

import hashlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from dure_protocols.errors import MessageError
from dure_protocols.frames import DURE_MESSAGE_TYPE, AnyArray, raw_bytes
from dure_protocols.messages import Hello, Present, decode, encode
from dure_protocols.secagg.codec import Words
from dure_server.coordinator.firms import Answer, Ask
from dure_server.flower.content import HeldArray, arrays_of, body_of, content
from dure_server.flower.grid import GrpcGrid

NO_ARRAYS: Mapping[str, bytes] = MappingProxyType({})


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
    """`coordinator.firms.Firms` over any flwr Grid. Arrays travel inline, nothing outlives the process.

    Such a Grid does not know which node is which firm, so nodes are asked; what a firm says later is signed.
    """

    def __init__(self, grid: Grid, *, hello_seconds: float = 60.0, poll_seconds: float = 0.05) -> None:
        self._grid, self._hello_seconds, self._poll_seconds = grid, hello_seconds, poll_seconds
        self._shared: dict[bytes, AnyArray] = {}
        self._node_of: dict[str, int] = {}
        self._ids: dict[tuple[str, int], str] = {}
        self._answers: dict[str, Answer] = {}
        self._hellos = itertools.count()

    def connected(self) -> set[str]:
        """The firms whose nodes the Grid counts as online. Nodes not seen before are asked for their firm."""
        nodes = set(self._grid.get_node_ids())
        strangers = nodes - set(self._node_of.values())
        if strangers:
            group = f"hello/{next(self._hellos)}"
            messages = [self._message(node, encode(Hello()), group) for node in sorted(strangers)]
            for reply in self._grid.send_and_receive(messages, timeout=self._hello_seconds):
                if firm := _name_in(reply):
                    self._node_of[firm] = reply.metadata.src_node_id
        return {firm for firm, node in self._node_of.items() if node in nodes}

    def node_of(self, firm: str) -> int | None:
        """A firm's node id, or None if it has not said its name yet."""
        return self._node_of.get(firm)

    def push(self, asks: Sequence[Ask]) -> list[str]:
        """Send requests that were not sent before; returns their ids in order."""
        new = [ask for ask in asks if (ask.place.group, ask.node) not in self._ids]
        messages = [self._message(ask.node, ask.body, ask.place.group, ask.arrays) for ask in new]
        for ask, message_id in zip(new, self._grid.push_messages(messages), strict=True):
            self._ids[ask.place.group, ask.node] = message_id
        return [self._ids[ask.place.group, ask.node] for ask in asks]

    def receive(self, ids: Sequence[str], timeout: float) -> Iterator[Answer]:
        """Answers as they come, until all are here or `timeout` seconds are over."""
        missing, deadline = dict.fromkeys(ids), time.monotonic() + timeout
        while missing:
            waiting = [ask_id for ask_id in missing if ask_id not in self._answers]
            for reply in self._grid.pull_messages(waiting) if waiting else ():
                self._answers[reply.metadata.reply_to_message_id] = _grid_answer(reply)
            for ask_id in [ask_id for ask_id in missing if ask_id in self._answers]:
                del missing[ask_id]
                yield self._answers[ask_id]
            if not missing or time.monotonic() > deadline:
                return
            time.sleep(self._poll_seconds)

    def forget(self, ids: Sequence[str]) -> None:
        """Drop answers. The Grid has dropped its own when they were pulled."""
        for ask_id in ids:
            self._answers.pop(ask_id, None)

    def share(self, vector: Words) -> bytes:
        """Keep a vector to send along with later requests. Returns its SHA-256."""
        digest = hashlib.sha256(vector.data).digest()
        self._shared[digest] = vector
        return digest

    def load(self, digest: bytes, num_words: int) -> Words:
        """A vector that was shared before. Raises MessageError if it is none of this process."""
        vector = self._shared.get(digest)
        if vector is None or vector.shape != (num_words,):
            raise MessageError("on this runtime a job cannot go on after a restart; propose it again")
        return vector.view(np.uint64)

    def _message(self, node: int, body: bytes, group: str, arrays: Mapping[str, bytes] = NO_ARRAYS) -> Message:
        named = {name: HeldArray(self._shared[digest]) for name, digest in arrays.items()}
        return self._grid.create_message(content(body, named), DURE_MESSAGE_TYPE, node, group)


def _name_in(reply: Message) -> str | None:
    if reply.has_error():
        return None
    try:
        message = decode(body_of(reply))
    except MessageError:
        return None
    return message.firm if isinstance(message, Present) else None


def _grid_answer(reply: Message) -> Answer:
    ask_id, node = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
    if reply.has_error():
        return Answer(ask_id, node, error="app-failed")
    arrays = {name: array.numpy() for name, array in arrays_of(reply).items()}
    digests = {name: hashlib.sha256(raw_bytes(array)).digest() for name, array in arrays.items()}
    return Answer(ask_id, node, body_of(reply), arrays, digests)
