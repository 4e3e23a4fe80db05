"""Who is calling: the firm of a client certificate, admitted anew at every request.

Around every method of the firms' port, in this order:
(1) TLS has verified the chain to the consortium's root (gRPC, `require_client_auth`); not repeated here.
(2) The certificate is for clients, names one well-formed firm, and is valid *now*: a connection outlives certificates.
(3) The store still admits this firm with this certificate.
(4) While a stream is open, (2) and (3) are looked at once a second; a firm that fails is cut off at once.

A refusal becomes a gRPC status here and nowhere else. An unexpected error is logged here and named to nobody.
"""

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

import grpc
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from dure_protocols.certificates import CertificateFacts, read_certificate
from dure_protocols.errors import IdentityError
from dure_protocols.identity import check_firm_name
from dure_protocols.logs import from_now_on
from dure_server.link.errors import LinkRefusedError, abort, status_of
from dure_server.link.metrics import LinkMetrics

logger = logging.getLogger(__name__)

RECHECK_SECONDS = 1.0

Clock = Callable[[], datetime]
Admit = Callable[[str, str], None]
"""(firm, SHA-256 of the certificate's DER): raises IdentityError, with a text for the firm, if it may not speak now.
Called from a thread of its own."""


def system_clock() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)


Admitted = Callable[[], AbstractSet[tuple[str, str]]]
"""(firm, fingerprint) of all that may speak now, by one question to the store. Called from the same thread."""


@dataclass(frozen=True)
class Caller:
    """The firm that makes a request, by its verified certificate."""

    firm: str
    certificate: CertificateFacts


class Gate:
    """Admits callers to the firms' port, and cuts off those that are no longer admitted."""

    def __init__(
        self, admit: Admit, admitted: Admitted, clock: Clock = system_clock, metrics: LinkMetrics | None = None
    ) -> None:
        self._ask, self._ask_all = admit, admitted
        self._clock = clock
        self._metrics = metrics or LinkMetrics()
        self._thread = ThreadPoolExecutor(1, "admission")
        self._open: dict[Caller, set[asyncio.Task[Any]]] = {}
        self._cut_off: dict[asyncio.Task[Any], str] = {}

    def unary(
        self, method: Callable[[Caller, bytes], Awaitable[bytes]], admit: Admit | None = None
    ) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]:
        """A handler for one request and one answer. admit: who may, where that is not as for everything else."""

        @functools.wraps(method)
        async def handler(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            with self._metrics.call(method.__name__) as call:
                try:
                    return call.sent(await method(await self._admit(context, admit), call.received(request)))
                except Exception as error:  # noqa: BLE001  # every error leaves through one door
                    call.status = status_of(error)
                    await abort(context, error)

        return handler

    def stream(
        self, method: Callable[[Caller, Any], AsyncGenerator[bytes]]
    ) -> Callable[[Any, grpc.aio.ServicerContext], Awaitable[None]]:
        """A handler that streams its answer; the request may be a stream, too."""

        @functools.wraps(method)
        async def handler(request: Any, context: grpc.aio.ServicerContext) -> None:
            with self._metrics.call(method.__name__) as call:
                try:
                    caller = await self._admit(context)
                    await context.send_initial_metadata(())  # the agent sees that it is in before anything is said
                    # Written and not yielded, so that a cancellation always reaches the method and ends it at once.
                    with self._watched(caller):
                        async with aclosing(method(caller, call.received(request))) as items:
                            async for item in items:
                                await context.write(call.sent(item))
                except Exception as error:  # noqa: BLE001  # every error leaves through one door
                    call.status = status_of(error)
                    await abort(context, error)

        return handler

    async def watch(self) -> NoReturn:
        """For ever: look again whether those with open streams are still admitted."""
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            for caller in await self._doubtful():
                try:
                    await self._check(caller)
                except IdentityError as error:
                    self._cut(caller, str(error))
                except Exception:
                    logger.exception("whether %s is still admitted could not be asked; its streams stay", caller.firm)

    async def _doubtful(self) -> list[Caller]:
        """Those with open streams that have to be asked about one by one: most often nobody."""
        loop = asyncio.get_running_loop()
        try:
            admitted = await loop.run_in_executor(self._thread, self._ask_all)
        except Exception:
            logger.exception("who is still admitted could not be asked; all streams stay")
            return []
        now = self._clock()
        return [
            caller
            for caller in self._open
            if (caller.firm, caller.certificate.fingerprint) not in admitted or not caller.certificate.is_valid_at(now)
        ]

    def _cut(self, caller: Caller, reason: str) -> None:
        tasks = self._open.get(caller, set())
        logger.warning("%s is no longer admitted: %d open streams are closed", caller.firm, len(tasks))
        for task in tasks:
            self._cut_off[task] = reason
            task.cancel()

    @contextmanager
    def _watched(self, caller: Caller) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine always runs in a task
        self._open.setdefault(caller, set()).add(task)
        try:
            yield
        except asyncio.CancelledError:
            if (reason := self._cut_off.get(task)) is not None:
                raise LinkRefusedError(grpc.StatusCode.PERMISSION_DENIED, reason) from None
            raise
        finally:
            self._cut_off.pop(task, None)
            self._open[caller].discard(task)
            if not self._open[caller]:
                del self._open[caller]

    async def _admit(self, context: grpc.aio.ServicerContext, admit: Admit | None = None) -> Caller:
        try:
            caller = _identify(context.auth_context()["x509_pem_cert"][0])
        except (KeyError, IndexError, IdentityError) as error:
            raise LinkRefusedError(
                grpc.StatusCode.UNAUTHENTICATED, "a client certificate issued by `dure-agent join` is needed"
            ) from error
        from_now_on(firm=caller.firm)
        try:
            await self._check(caller, admit)
        except IdentityError as error:
            raise LinkRefusedError(grpc.StatusCode.PERMISSION_DENIED, str(error)) from error
        return caller

    async def _check(self, caller: Caller, admit: Admit | None = None) -> None:
        if not caller.certificate.is_valid_at(self._clock()):
            raise IdentityError("the certificate is not valid now; renew it, or ask the operator for an invitation")
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, admit or self._ask, caller.firm, caller.certificate.fingerprint)


@functools.lru_cache(4096)
def _identify(pem: bytes) -> Caller:
    """(2), but for the clock. Raises IdentityError."""
    facts = read_certificate(pem)
    try:
        usage = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError) as error:
        raise IdentityError("the certificate does not say what it is for") from error
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise IdentityError("the certificate is not for clients")
    return Caller(check_firm_name(facts.name), facts)
