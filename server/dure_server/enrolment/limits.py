"""What strangers may cost the enrolment API: bytes of a request, requests of an address."""

from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dure_server.enrolment.errors import TooManyRequestsError
from dure_server.problems import ProblemError, problem_response


class TooLargeError(ProblemError):
    """A request's body is over the limit."""

    status, code, title = 413, "too-large", "The request is too large"


class RateLimit:
    """A bucket of `burst` requests for each address, filled again at `each_second`. Remembers `addresses` at most."""

    def __init__(
        self, clock: Callable[[], float], *, burst: int = 60, each_second: float = 2.0, addresses: int = 10_000
    ) -> None:
        self._clock = clock
        self._burst = burst
        self._each_second = each_second
        self._addresses = addresses
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> None:
        """Count one request. Raises TooManyRequestsError."""
        now = self._clock()
        left, since = self._buckets.pop(address, (float(self._burst), now))
        left = min(self._burst, left + (now - since) * self._each_second)
        self._buckets[address] = (max(left - 1, 0.0), now)
        while len(self._buckets) > self._addresses:
            self._buckets.popitem(last=False)
        if left < 1:
            error = TooManyRequestsError("this address asks too often; wait a minute and try again")
            error.retry_after_seconds = max(1, round((1 - left) / self._each_second))
            raise error


class Limits:
    """ASGI middleware around the whole API: rate first, then size, before any of a request is parsed."""

    def __init__(self, app: ASGIApp, rate: RateLimit, max_body_bytes: int) -> None:
        self._app = app
        self._rate = rate
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            # The address of the TCP peer, never X-Forwarded-For: anyone can write that header.
            self._rate.take(scope["client"][0] if scope.get("client") else "")
            # The body is small by rule, so it is taken whole here; the app behind never sees one that is too large.
            body = await self._body(scope, receive)
        except ProblemError as error:
            await problem_response(error)(scope, receive, send)
            return
        delivered = False

        async def once() -> Message:
            nonlocal delivered
            if delivered:
                return await receive()
            delivered = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, once, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._max_body_bytes:
            raise self._too_large()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return bytes(body)
            body.extend(message.get("body", b""))
            if len(body) > self._max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"a request may have {self._max_body_bytes} bytes at most")
