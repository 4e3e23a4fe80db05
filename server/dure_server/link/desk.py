"""What a coordinator may ask of the link: the methods of the desk, a Unix socket that only this user may open.

They do not exist on the firms' port. All of them may be repeated.

    Push      record messages and deliver them; one that is recorded already stays, if it says the same
    Replies   stream of the replies to some messages, each as soon as it comes
    Connected which agents have a stream open
    Forget    drop messages whose replies are used up, and the blobs those brought
    ForgetRun drop all messages of a run
    Retract   delete released blobs that no message brings any more
    Metrics   what the link counts, as Prometheus reads it
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import grpc

from dure_protocols.errors import MessageError
from dure_protocols.frames import Envelope, node_id
from dure_server.link import desk_frames
from dure_server.link.blobs import BlobFolder
from dure_server.link.desk_frames import SERVICE, Parcel, ReplyQuery
from dure_server.link.errors import abort
from dure_server.link.exchange import Exchange
from dure_server.link.journal import Journal, Pushed, Upload
from dure_server.link.metrics import LinkMetrics


class DeskService:
    """One link process's side towards the coordinators."""

    def __init__(
        self, consortium: str, journal: Journal, blobs: BlobFolder, exchange: Exchange, metrics: LinkMetrics
    ) -> None:
        self._consortium = consortium
        self._journal = journal
        self._blobs = blobs
        self._exchange = exchange
        self._metrics = metrics

    def handlers(self) -> grpc.GenericRpcHandler:
        """The methods as gRPC serves them. Requests and answers are raw bytes."""
        unary = {
            "Push": self.push,
            "Connected": self.connected,
            "Forget": self.forget,
            "ForgetRun": self.forget_run,
            "Retract": self.retract,
            "Metrics": self.metrics,
        }
        methods = {name: grpc.unary_unary_rpc_method_handler(_unary(method)) for name, method in unary.items()}
        methods["Replies"] = grpc.unary_stream_rpc_method_handler(self._replies)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def push(self, request: bytes) -> bytes:
        """Record and deliver messages. Refused as a whole if one's id was used for another message before."""
        pushed = [self._checked(parcel) for parcel in desk_frames.decode_push(request)]
        self._exchange.deliver(await self._journal.push(pushed))
        return b""

    async def replies(self, request: bytes) -> AsyncGenerator[bytes]:
        """Each wanted reply once; ends when all have come, or at once without `wait`."""
        query = ReplyQuery.decode(request)
        missing, look_for = set(query.ids), list(query.ids)
        with self._exchange.listening() as news:
            while True:
                for answer in await self._journal.answers(look_for):
                    if answer.message_id in missing:
                        missing.discard(answer.message_id)
                        yield Parcel(answer.firm, answer.reply).encode()
                if not missing or not query.wait:
                    return
                heard = {await news.get()}
                while not news.empty():
                    heard.add(news.get_nowait())
                look_for = sorted(heard & missing)

    async def connected(self, _request: bytes) -> bytes:
        """Which agents have a stream open."""
        return desk_frames.encode_presence(self._exchange.connected())

    async def forget(self, request: bytes) -> bytes:
        """Drop messages, and the uploads nobody needs any more."""
        self._drop(await self._journal.forget(desk_frames.decode_ids(request)))
        return b""

    async def forget_run(self, request: bytes) -> bytes:
        """Drop all messages of a run, and the uploads nobody needs any more."""
        self._drop(await self._journal.forget_run(desk_frames.decode_run(request)))
        return b""

    async def retract(self, request: bytes) -> bytes:
        """Delete released blobs, but for those that some message still brings to a firm."""
        for digest in desk_frames.decode_digests(request):
            if not await self._journal.is_released(digest):
                self._blobs.drop_released(digest)
        return b""

    async def metrics(self, _request: bytes) -> bytes:
        """What the link counts. That it answers at all says that it works."""
        return self._metrics.text()

    def _checked(self, parcel: Parcel) -> Pushed:
        envelope = Envelope.decode(parcel.envelope)
        if envelope.reply_to:
            raise MessageError("a reply came where a message to a firm was expected")
        if envelope.dst_node != node_id(self._consortium, parcel.firm):
            raise MessageError(f"{envelope!r} is for node {envelope.dst_node}, which is not {parcel.firm}")
        return Pushed(parcel.firm, envelope, parcel.envelope)

    def _drop(self, uploads: Sequence[Upload]) -> None:
        for upload in uploads:
            self._blobs.drop_upload(upload)

    async def _replies(self, request: bytes, context: grpc.aio.ServicerContext) -> AsyncGenerator[bytes]:
        try:
            async for item in self.replies(request):
                yield item
        except Exception as error:  # noqa: BLE001  # every error leaves through one door
            await abort(context, error)


def _unary(
    method: Callable[[bytes], Awaitable[bytes]],
) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]:
    async def handler(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            return await method(request)
        except Exception as error:  # noqa: BLE001  # every error leaves through one door
            await abort(context, error)

    return handler
