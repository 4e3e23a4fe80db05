"""What keeps a page on its machine, for whoever builds the guard of a role around it.

(1) A request must name this machine in its Host header: a page elsewhere that points its own name at 127.0.0.1 (DNS
rebinding) is refused. (2) Browsers are told to load, frame and send nothing from or to elsewhere.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Scope, Send

_HEADERS = {
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
)


def own_hosts(port: int) -> frozenset[str]:
    """The names that a browser on this machine may have for a page at this port, as a Host header writes them."""
    return frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]"))


def is_meant_for(scope: Scope, hosts: frozenset[str]) -> bool:
    """(1) Whether a request names one of the hosts."""
    return Headers(scope=scope).get("host", "").lower() in hosts


def with_headers(send: Send, *, has_forms: bool) -> Send:
    """(2) `send` with the headers on every response that do not already have them.

    A page with forms tells its own origin who sent one: with no referrer at all, browsers write `Origin: null`.
    """
    forms = "form-action 'self'" if has_forms else "form-action 'none'"
    headers = _HEADERS | {
        "content-security-policy": "; ".join((*_POLICY, forms)),
        "referrer-policy": "same-origin" if has_forms else "no-referrer",
    }

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = MutableHeaders(scope=message)
            for name, value in headers.items():
                present.setdefault(name, value)
        await send(message)

    return sending
