"""flwr's Grid over Dure's link.

Arrays that arrive stay mapped files, so memory is that of one model however many firms there are. A message's id
follows from its run, group, type and node: pushing it again after a restart changes nothing and finds the recorded
reply.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn

from flwr.app import Array, Error, Message, Metadata, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from dure_protocols.errors import MisuseError
from dure_protocols.frames import COORDINATOR_NODE_ID, AnyArray, ArrayRef, Envelope, node_id
from dure_server.flower.content import HeldArray, arrays_of, body_of, content
from dure_server.link.blobs import map_array, store_array
from dure_server.link.desk_client import DeskClient
from dure_server.link.desk_frames import Parcel

APP_FAILED: Final = 2  # flwr's number for "the ClientApp raised"; the reason is a code and never a text


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
