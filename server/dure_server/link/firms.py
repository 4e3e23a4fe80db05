"""What an agent may ask of the link: the methods of the firms' port. Every one has passed the gate.

Subscribe  stream down   the protocol chosen and the server's time (Welcome), what is unanswered, then every message at
                         once; the open stream is the firm's liveness
Reply      unary         the first reply to a message counts, and only when its blobs are whole
Upload     both ways     Announce up, Stored down, the rest of the blob up, Stored (complete) down
Download   stream down   a blob that a message to this firm released, from an offset on
Renew      unary         a new certificate for a signing request
Leave      unary         the receipt for a signed statement that the firm leaves a job or the consortium
Witness    unary         where the firm's ledger ends, signed; the server's countersignature, and the same of partners
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from importlib.metadata import version
from typing import NoReturn

import grpc

from dure_protocols.errors import IdentityError
from dure_protocols.frames import MAX_CSR_BYTES, MAX_REQUEST_BYTES, Announce, Envelope, Fetch, Subscribe, Welcome
from dure_protocols.leaving import MAX_LEAVE_BYTES
from dure_protocols.versions import SPOKEN, ProtocolRange, chosen_protocol, refusal_sentence
from dure_server.link.blobs import BlobFolder
from dure_server.link.errors import LinkRefusedError
from dure_server.link.exchange import Exchange
from dure_server.link.gate import Admit, Caller, Gate
from dure_server.link.journal import Journal, Upload

logger = logging.getLogger(__name__)

SERVICE = "dure.link.Firm"

Renew = Callable[[str, bytes], bytes]
"""(firm, signing request as PEM) -> certificate as PEM; raises IdentityError. Called from a thread of its own."""
Leave = Callable[[str, bytes], bytes]
"""(firm, statement) -> receipt, see `dure_protocols.leaving`; raises IdentityError, MessageError. From that thread."""
Presence = Callable[[str, bool, str], None]
"""(firm, is connected, agent version): told when an agent comes or goes. Called from the same thread."""
Refused = Callable[[str, str, str], None]
"""(firm, agent version, why): told when an agent is refused for its version. Called from the same thread."""
Deposit = Callable[[str, bytes], bytes]
"""(firm, its statement) -> the answer; raises IdentityError. Called from the same thread."""


class FirmService:
    """One link process's side towards the agents."""

    def __init__(
        self,
        journal: Journal,
        blobs: BlobFolder,
        exchange: Exchange,
        *,
        renew: Renew,
        leave: Leave,
        admit_leaver: Admit,
        presence: Presence,
        refused: Refused,
        deposit: Deposit,
        protocols: ProtocolRange = SPOKEN,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`protocols`: what is spoken with agents; `clock`: Unix time in seconds, which agents are told."""
        self._journal = journal
        self._blobs = blobs
        self._exchange = exchange
        self._renew, self._leave, self._admit_leaver = renew, leave, admit_leaver
        self._presence = presence
        self._refused = refused
        self._deposit = deposit
        self._protocols = protocols
        self._clock = clock
        self._version = version("dure")
        self._thread = ThreadPoolExecutor(1, "membership")

    def handlers(self, gate: Gate) -> grpc.GenericRpcHandler:
        """The methods as gRPC serves them, each behind the gate. Requests and answers are raw bytes."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Subscribe": grpc.unary_stream_rpc_method_handler(gate.stream(self.subscribe)),
                "Reply": grpc.unary_unary_rpc_method_handler(gate.unary(self.reply)),
                "Upload": grpc.stream_stream_rpc_method_handler(gate.stream(self.upload)),
                "Download": grpc.unary_stream_rpc_method_handler(gate.stream(self.download)),
                "Renew": grpc.unary_unary_rpc_method_handler(gate.unary(self.renew)),
                "Leave": grpc.unary_unary_rpc_method_handler(gate.unary(self.leave, self._admit_leaver)),
                "Witness": grpc.unary_unary_rpc_method_handler(gate.unary(self.witness)),
            },
        )

    async def subscribe(self, caller: Caller, request: bytes) -> AsyncGenerator[bytes]:
        """Every unanswered message, then each new one at once, until the agent goes or connects anew.

        An agent without a protocol in common hears which version to install, and the operator sees it, too.
        """
        asked = Subscribe.decode(_limited(request, MAX_REQUEST_BYTES))
        protocol = chosen_protocol(self._protocols, asked.protocols)
        if protocol is None:
            await self._refuse_version(caller.firm, asked)
        else:
            async with aclosing(self._deliver(caller.firm, asked, protocol)) as items:
                async for item in items:
                    yield item
        raise LinkRefusedError(grpc.StatusCode.ABORTED, "a newer connection of this firm took over")

    async def _deliver(self, firm: str, asked: Subscribe, protocol: int) -> AsyncGenerator[bytes]:
        agent_version = asked.agent_version
        try:
            with self._exchange.subscribed(firm, agent_version) as subscription:
                if asked.expects_welcome:
                    yield Welcome(self._version, protocol, self._clock()).encode()
                await self._tell_presence(firm, True, agent_version)
                sent = set()
                for message_id, body in await self._journal.unanswered(firm, self._clock()):
                    sent.add(message_id)
                    yield body
                while (message := await subscription.news.get()) is not None:
                    if message.envelope.message_id not in sent:
                        yield message.body
                    sent.discard(message.envelope.message_id)  # pushed between subscribing and reading the journal
        finally:
            if firm not in self._exchange.connected():
                await self._tell_presence(firm, False, agent_version)

    async def reply(self, caller: Caller, request: bytes) -> bytes:
        """Record a reply.

        (1) It is well-formed. (2) It answers a message that exists and was sent to this firm. (3) It is the first, or
        the same again. (4) Every blob it names is here, whole. Then it is durable before it is acknowledged.
        """
        reply = Envelope.decode(request)  # (1)
        known = await self._journal.request(reply.reply_to, caller.firm)  # (2)
        if known is None or not reply.answers(Envelope.decode(known[0])):
            raise LinkRefusedError(grpc.StatusCode.NOT_FOUND, "no message to this firm waits for this reply (any more)")
        recorded = known[1]
        if recorded is None:
            uploads = [Upload(caller.firm, ref.sha256) for ref in reply.blobs]
            for ref, upload in zip(reply.blobs, uploads, strict=True):  # (4)
                if not self._blobs.is_complete(upload, ref.size_bytes):
                    raise LinkRefusedError(
                        grpc.StatusCode.FAILED_PRECONDITION,
                        f"upload blob {ref.sha256[:16]}… before the reply naming it",
                    )
            digests = [upload.digest for upload in uploads]
            recorded = await self._journal.record_reply(reply.reply_to, request, digests)
            self._exchange.answered(reply.reply_to)
        if recorded != request:  # (3)
            raise LinkRefusedError(grpc.StatusCode.ALREADY_EXISTS, "another reply to this message was recorded before")
        return b""

    async def upload(self, caller: Caller, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """Take a blob into the firm's own folder."""
        chunks = aiter(requests)
        announced = Announce.decode(_limited(await anext(chunks, b""), MAX_REQUEST_BYTES))
        async with aclosing(self._blobs.upload(caller.firm, announced, chunks)) as progress:
            async for stored in progress:
                yield stored.encode()

    async def download(self, caller: Caller, request: bytes) -> AsyncGenerator[bytes]:
        """A blob that some message released to this firm."""
        wanted = Fetch.decode(_limited(request, MAX_REQUEST_BYTES))
        if not await self._journal.may_fetch(caller.firm, wanted.sha256):
            raise LinkRefusedError(grpc.StatusCode.NOT_FOUND, "no message released this blob to this firm")
        async with aclosing(self._blobs.download(wanted)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def renew(self, caller: Caller, request: bytes) -> bytes:
        """A new certificate for the caller's own name, whatever the request says."""
        return await self._decided(self._renew, caller, _limited(request, MAX_CSR_BYTES))

    async def witness(self, caller: Caller, request: bytes) -> bytes:
        """Countersign where the caller's ledger ends; the answer says what is held of it and of its partners."""
        return await self._decided(self._deposit, caller, _limited(request, MAX_REQUEST_BYTES))

    async def _decided(self, decide: Callable[[str, bytes], bytes], caller: Caller, request: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, decide, caller.firm, request)
        except IdentityError as error:
            raise LinkRefusedError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error

    async def leave(self, caller: Caller, request: bytes) -> bytes:
        """Record, durably, that the caller leaves. Returns the receipt."""
        statement = _limited(request, MAX_LEAVE_BYTES)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._leave, caller.firm, statement)
        except IdentityError as error:
            raise LinkRefusedError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error

    async def _refuse_version(self, firm: str, asked: Subscribe) -> NoReturn:
        why = refusal_sentence(asked.agent_version, asked.protocols, self._version, self._protocols)
        logger.warning("%s is refused: %s", firm, why)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._refused, firm, asked.agent_version, why)
        except Exception:
            logger.exception("could not note that %s is refused for its version", firm)
        raise LinkRefusedError(grpc.StatusCode.FAILED_PRECONDITION, why)

    async def _tell_presence(self, firm: str, connected: bool, agent_version: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._presence, firm, connected, agent_version)
        except Exception:
            logger.exception("could not note that %s is %s", firm, "here" if connected else "gone")


def _limited(request: bytes, limit_bytes: int) -> bytes:
    if len(request) > limit_bytes:
        raise LinkRefusedError(
            grpc.StatusCode.INVALID_ARGUMENT, f"a request of {len(request)} bytes came; {limit_bytes} are allowed"
        )
    return request
