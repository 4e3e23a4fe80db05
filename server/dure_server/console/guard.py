"""What stands between the pages and everybody else, until they have a sign-in.

(1) They listen on 127.0.0.1 only (`process`). (2) A request must name this machine in its Host header: a page elsewhere
that points its own name at 127.0.0.1 (DNS rebinding) is refused. (3) Nothing here changes anything: GET and HEAD only.
(4) Browsers are told to load, frame and send nothing from or to elsewhere.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from dure_pages.guard import is_meant_for, own_hosts, with_headers
from dure_server.problems import ProblemError, problem_response


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
        self._hosts = own_hosts(port)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        answering = with_headers(send, has_forms=False)
        refusal = self._refusal(scope)
        await (self._app if refusal is None else problem_response(refusal))(scope, receive, answering)

    def _refusal(self, scope: Scope) -> ProblemError | None:
        if not is_meant_for(scope, self._hosts):
            return ForeignHostError(f"open the console as http://{min(self._hosts)}, on the server's own machine")
        if scope["method"] not in {"GET", "HEAD"}:
            return ReadOnlyError("the console only shows; `dure-server` on the command line acts")
        return None
