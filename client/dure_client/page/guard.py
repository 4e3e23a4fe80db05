"""Which requests the firm's page hears at all, before anybody asks who sends them.

(1) It listens on 127.0.0.1 only (`serve`). (2) The Host header names this machine and port: a page elsewhere that
points its own name at 127.0.0.1 (DNS rebinding) is refused. (3) A request that may change something comes from a page
of this very origin, other ports of this machine excluded: its Origin header says so, and Sec-Fetch-Site, where a
browser sends it, does not contradict. (4) Browsers are told to load, frame and send nothing from or to elsewhere.

The caller MUST also, for whatever is not public: ask for a session, and for the session's token in every form (`app`).
"""

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from dure_pages.guard import is_meant_for, own_hosts, with_headers

_SAFE = frozenset({"GET", "HEAD"})


class Guard:
    """ASGI middleware around the whole page."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app, self._hosts = app, own_hosts(port)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, with_headers(send, has_forms=True))

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        if not is_meant_for(scope, self._hosts):  # (2)
            here = next(host for host in self._hosts if host.startswith("127."))
            return PlainTextResponse(f"Open this page as http://{here}, on the agent's own machine.\n", 421)
        if scope["method"] in _SAFE:
            return None
        is_own = headers.get("origin", "").lower() == f"http://{headers['host'].lower()}"
        if not is_own or headers.get("sec-fetch-site", "same-origin") != "same-origin":  # (3)
            return PlainTextResponse("The request did not come from this page, so nothing was done.\n", 403)
        return None
