"""What stands between the pages and everybody else, until they have a sign-in.

(1) They listen on 127.0.0.1 only (`process`). (2) A request must name this machine in its Host header: a page elsewhere
that points its own name at 127.0.0.1 (DNS rebinding) is refused. (3) Nothing here changes anything: GET and HEAD only.
(4) Browsers are told to load, frame and send nothing from or to elsewhere.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dure_server.problems import ProblemError, problem_response

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class ForeignHostError(ProblemError):
    """The request was meant for another host."""

    status, code, title = 421, "foreign-host", "The request was meant for another host"


class ReadOnlyError(ProblemError):
    """The console changes nothing yet."""

    status, code, title = 405, "read-only", "The console only shows"


class Guard:
    """ASGI middleware around the whole console."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await problem_response(refusal)(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> ProblemError | None:
        host = Headers(scope=scope).get("host", "").lower()
        if host not in self._hosts:
            return ForeignHostError(f"open the console as http://{min(self._hosts)}, on the server's own machine")
        if scope["method"] not in {"GET", "HEAD"}:
            return ReadOnlyError("the console only shows; `dure-server` on the command line acts")
        return None
