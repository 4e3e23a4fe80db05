"""Where the server meets Flower, and the only place: flwr's Grid over the link, and Dure's one form of `Message`.

A Flower message of Dure is RecordDict{"dure": ConfigRecord{"body": bytes}} and, where there are arrays, {"arrays":
ArrayRecord}; anything else is refused with MisuseError. Arrays that arrive stay mapped files, so memory is that of one
model however many firms there are. A message's id follows from its run, group, type and node: pushing it again after a
restart changes nothing and finds the recorded reply.

Public names of flwr only, but for `TaskIdentity`: `Message(content, node, type)` reads it, so a process has one run.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

import numpy as np

from dure_protocols.errors import MisuseError
from dure_protocols.frames import (
    COORDINATOR_NODE_ID,
    DURE_MESSAGE_TYPE,
    AnyArray,
    ArrayRef,
    Envelope,
    node_id,
)
from dure_protocols.secagg.codec import Words
from dure_server.coordinator.firms import Answer, Ask
from dure_server.link.blobs import map_array, store_array
from dure_server.link.desk_client import DeskClient
from dure_server.link.desk_frames import Parcel

# Before flwr is imported: a consortium's server tells nobody outside that it exists.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

BODY_RECORD: Final = "dure"
BODY_KEY: Final = "body"
ARRAY_RECORD: Final = "arrays"
APP_FAILED: Final = 2  # flwr's number for "the ClientApp raised"; the reason is a code and never a text


class HeldArray(Array):
    """A Flower Array around an ndarray (a mapped file, or memory), serialised only if a runtime asks for bytes.

    `sha256`: of the raw little-endian bytes, where somebody has checked it; "" where nobody has.
    """

    def __init__(self, ndarray: AnyArray, sha256: str = "") -> None:
        self.__dict__.update(ndarray=ndarray, sha256=sha256)
        super().__init__(str(ndarray.dtype), tuple(ndarray.shape), "numpy.ndarray", b"")

    @property
    def data(self) -> bytes:
        """The bytes as Flower's own runtimes carry them."""
        return Array(self.numpy()).data

    @data.setter
    def data(self, _value: bytes) -> None:
        pass

    @property
    def sha256(self) -> str:
        """Digest of the raw bytes, or ""."""
        return str(self.__dict__["sha256"])

    def numpy(self) -> AnyArray:
        """The array itself, not a copy."""
        held: AnyArray = self.__dict__["ndarray"]
        return held


# Flower's own runtimes write a class's name into what they carry and read it back by that name.
HeldArray.__qualname__ = Array.__qualname__


def content(body: bytes, arrays: Mapping[str, Array] | None = None) -> RecordDict:
    """A message's content in Dure's one form."""
    records = RecordDict({BODY_RECORD: ConfigRecord({BODY_KEY: body})})
    if arrays:
        record = ArrayRecord()
        for name, array in arrays.items():  # filled key by key: ArrayRecord(dict) would copy every array
            record[name] = array
        records[ARRAY_RECORD] = record
    return records


def body_of(message: Message) -> bytes:
    """The body of a message. Raises MisuseError if the message is not of Dure's form."""
    if not message.has_content() or set(message.content) - {BODY_RECORD, ARRAY_RECORD}:
        raise MisuseError("a message of Dure has the records 'dure' and 'arrays' and no others")
    record = message.content.get(BODY_RECORD)
    if not isinstance(record, ConfigRecord) or set(record) != {BODY_KEY} or not isinstance(record[BODY_KEY], bytes):
        raise MisuseError("a message of Dure has its body, as bytes, in the record 'dure' and nothing else there")
    return bytes(record[BODY_KEY])


def arrays_of(message: Message) -> dict[str, Array]:
    """The arrays of a message, by name. Raises MisuseError if it is not of Dure's form."""
    record = message.content.get(ARRAY_RECORD, ArrayRecord())
    if not isinstance(record, ArrayRecord):
        raise MisuseError("the record 'arrays' of a message of Dure holds arrays")
    return dict(record.items())


class GrpcGrid(Grid):
    """flwr's Grid over the link's desk. The coordinator runs on the link's machine and shares its blob folders."""

    def __init__(self, desk_socket: Path, uploads: Path, released: Path, run_id: int, consortium: str) -> None:
        """`run_id` numbers the job's run (63 bits); Flower allows one a process, so this claims the process."""
        self.desk = DeskClient(desk_socket)
        self._uploads = uploads
        self._released = released
        self._run_id = run_id
        self._consortium = consortium
        self._firm_of: dict[int, str] = {}
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, run_id, COORDINATOR_NODE_ID

    def set_run(self, run: object) -> None:  # noqa: ARG002  # the face is flwr's
        """Not offered: the run is given to the constructor."""
        raise MisuseError("a GrpcGrid's run is given when it is built")

    @property
    def run(self) -> NoReturn:
        """Not offered: flwr's `Run` is private, and only its legacy server asks for it."""
        raise MisuseError("a GrpcGrid has no flwr Run; use run_id")

    @property
    def run_id(self) -> int:
        """The run that this grid's messages belong to."""
        return self._run_id

    def node_of(self, firm: str) -> int:
        """A firm's node, connected or not."""
        number = node_id(self._consortium, firm)
        self._firm_of[number] = firm
        return number

    def connected(self) -> dict[str, str]:
        """Firm -> agent version of every agent that is connected."""
        return self.desk.connected()

    def get_node_ids(self) -> Iterable[int]:
        """Nodes of the firms whose agents are connected."""
        return [self.node_of(firm) for firm in self.connected()]

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """The same as `Message(...)`, which is how flwr wants it done."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Record messages and deliver them; they are on disk when this returns. Returns their ids, in order.

        Raises MisuseError if a message is not of Dure's form, GridError if the link refuses.
        """
        # An array that is in many messages is written and hashed once. It is held here so that its id stays its own.
        shared: dict[int, tuple[Array, str]] = {}
        parcels, ids = [], []
        for message in messages:
            envelope = self._envelope(message, shared)
            parcels.append(Parcel(self._firm(envelope.dst_node), envelope.encode()))
            ids.append(envelope.message_id)
        self.desk.push(parcels)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages that are here by now."""
        return list(self.receive(list(message_ids), wait=False))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and wait for the replies, at most `timeout` seconds."""
        return list(self.send_and_stream(messages, timeout=timeout))

    def send_and_stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Like `send_and_receive`, but each reply as soon as it is there. The messages are out when this returns."""
        started = time.monotonic()
        ids = list(self.push_messages(messages))
        left = None if timeout is None else max(0.0, timeout - (time.monotonic() - started))
        return self.receive(ids, timeout=left)

    def receive(self, ids: Sequence[str], *, timeout: float | None = None, wait: bool = True) -> Iterator[Message]:
        """The replies to messages that were pushed, each as soon as it is there. May be closed at any moment."""
        for firm, reply in self.desk.replies(ids, wait=wait, timeout_seconds=timeout):
            yield self._message(firm, reply)

    def forget(self, replies: Iterable[Message]) -> None:
        """Drop messages whose replies are used up, and the blobs those brought."""
        self.desk.forget([reply.metadata.reply_to_message_id for reply in replies])

    def share(self, array: AnyArray) -> HeldArray:
        """Write an array durably where firms may fetch it once a message brings it to them."""
        return self.shared(store_array(array, self._released), array.dtype.name, tuple(array.shape))

    def shared(self, sha256: str, dtype: str, shape: tuple[int, ...]) -> HeldArray:
        """An array that was shared before, also by an earlier process of this job. Raises MisuseError if it is gone."""
        file = self._released / sha256
        if not file.exists():
            raise MisuseError(f"blob {sha256[:16]}… is not released (any more)")
        return HeldArray(map_array(file, dtype, shape), sha256)

    def shared_words(self, sha256: str) -> HeldArray:
        """A vector of ring words that was shared before, as long as its file is."""
        file = self._released / sha256
        size_bytes = file.stat().st_size if file.exists() else 0
        return self.shared(sha256, "uint64", (size_bytes // 8,))

    def retract(self, arrays: Iterable[HeldArray]) -> None:
        """Delete shared arrays that no message brings to a firm any more."""
        self.desk.retract([array.sha256 for array in arrays])

    def _firm(self, node: int) -> str:
        if node not in self._firm_of:
            self.get_node_ids()
        try:
            return self._firm_of[node]
        except KeyError:
            raise MisuseError(f"node {node} is no connected firm; call node_of(firm) for one that is not") from None

    def _envelope(self, message: Message, shared: dict[int, tuple[Array, str]]) -> Envelope:
        metadata = message.metadata
        return Envelope.request(
            run_id=self._run_id,
            dst_node=metadata.dst_node_id,
            group=metadata.group_id,
            message_type=metadata.message_type,
            body=body_of(message),
            arrays=tuple(self._reference(name, array, shared) for name, array in arrays_of(message).items()),
            created_at=metadata.created_at,
            ttl=metadata.ttl,
        )

    def _reference(self, name: str, array: Array, shared: dict[int, tuple[Array, str]]) -> ArrayRef:
        ndarray = array.numpy()
        if not ArrayRef.needs_blob(ndarray):
            return ArrayRef.of(name, ndarray)
        if isinstance(array, HeldArray) and array.sha256 and (self._released / array.sha256).exists():
            return ArrayRef.of(name, ndarray, array.sha256)
        if id(array) not in shared:
            shared[id(array)] = (array, store_array(ndarray, self._released))
        return ArrayRef.of(name, ndarray, shared[id(array)][1])

    def _message(self, firm: str, reply: Envelope) -> Message:
        metadata = Metadata(
            run_id=reply.run_id,
            message_id=reply.message_id,
            src_node_id=reply.src_node,
            dst_node_id=reply.dst_node,
            reply_to_message_id=reply.reply_to,
            group_id=reply.group,
            created_at=reply.created_at,
            ttl=reply.ttl,
            message_type=reply.message_type,
        )
        # `metadata=` is how flwr itself rebuilds a message that has arrived; it is missing from its overloads.
        if reply.error_code is not None:
            return Message(error=Error(APP_FAILED, reply.error_code), metadata=metadata)  # type: ignore[call-overload, no-any-return]
        arrays: dict[str, Array] = {}
        for ref in reply.arrays:
            file = self._uploads / firm / ref.sha256
            held = map_array(file, ref.dtype, ref.shape) if ref.inline is None else ref.view(ref.inline)
            arrays[ref.name] = HeldArray(held, ref.sha256)
        return Message(content=content(reply.body, arrays), metadata=metadata)  # type: ignore[call-overload, no-any-return]


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
            yield _answer(reply)

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


def _answer(reply: Message) -> Answer:
    ask_id, node = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
    if reply.has_error():
        return Answer(ask_id, node, error=reply.error.reason or "")
    arrays = arrays_of(reply)
    digests = {name: bytes.fromhex(array.sha256) for name, array in arrays.items() if isinstance(array, HeldArray)}
    return Answer(ask_id, node, body_of(reply), {name: array.numpy() for name, array in arrays.items()}, digests)
