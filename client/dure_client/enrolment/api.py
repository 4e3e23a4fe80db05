"""The enrolment API as a firm sees it: HTTPS with every outgoing byte recorded, every answer bounded and checked.

EnrolmentError            joining failed; the text says what to do
├── FingerprintError      the consortium's root is not the one the person was told of: nothing secret was sent
├── ServerUnreachableError
└── ServerRefusedError    the server's own words; `code` for programs
"""

import contextlib
import hashlib
import re
import ssl
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from dure_client.link.client import EgressRecorder
from dure_client.link.clock import ServerClock
from dure_client.link.proxy import Proxy
from dure_protocols.enrolment import API_PREFIX, MAX_ANSWER_BYTES, Problem
from dure_protocols.errors import DureError
from dure_protocols.ledger import Entry, RecordKind

TIMEOUT_SECONDS = 15.0
Answer = TypeVar("Answer", bound=BaseModel)


class EnrolmentError(DureError):
    """The firm could not join or could not ask how it stands."""


class FingerprintError(EnrolmentError):
    """The consortium's root is not the one that the person was told of over another way."""


class ServerUnreachableError(EnrolmentError):
    """No answer, or the connection is not the consortium's."""


class ServerRefusedError(EnrolmentError):
    """The server refused, in its own words."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class EnrolmentApi:
    """One connection's worth of requests. Without `root_pem` the server's certificate is *not* checked.

    The recorder gets each request's bytes, line, headers and body as they go onto the connection, before they do. A
    connection that never came about is taken back with a NOT_SENT record. Through a proxy the same bytes go over the
    same TLS to the server; what the proxy itself is told (the server's host and port, the firm's name and password for
    it) stays in the firm's network and is not recorded.
    """

    def __init__(
        self,
        url: str,
        recorder: EgressRecorder,
        root_pem: bytes | None,
        *,
        proxy: Proxy | None = None,
        server_name: str = "",
        clock: ServerClock | None = None,
    ) -> None:
        """`server_name`: what the certificate must name, the URL's host if empty. `clock` learns the server's time."""
        self._url = url
        self._recorder = recorder
        self._proxy = proxy
        self._clock = clock or ServerClock()
        # Nothing from the environment, no .netrc: they would put bytes into requests that nobody approved.
        self._client = httpx.Client(
            base_url=url + API_PREFIX,
            verify=_tls(root_pem, server_name),
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
            proxy=_for_httpx(proxy),
            headers={"user-agent": f"dure-agent/{version('dure')}", "accept": "application/json"},
        )
        for name in ("accept-encoding", "connection"):  # nothing goes out that serves no purpose
            del self._client.headers[name]

    def get(self, path: str, form: type[Answer]) -> Answer:
        """GET a path under the API; the answer as a `form`. Raises an EnrolmentError."""
        return self._ask(self._client.build_request("GET", path), form)

    def post(self, path: str, request: BaseModel, form: type[Answer]) -> Answer:
        """POST a model as JSON; the answer as a `form`. Raises an EnrolmentError."""
        body = request.model_dump_json().encode()
        headers = {"content-type": "application/json"}
        return self._ask(self._client.build_request("POST", path, content=body, headers=headers), form)

    def get_bytes(self, path: str, max_bytes: int) -> bytes:
        """GET a path under the API; the answer as it is. Raises an EnrolmentError, also for more than `max_bytes`."""
        return self._send(self._client.build_request("GET", path), max_bytes)

    def _ask(self, request: httpx.Request, form: type[Answer]) -> Answer:
        try:
            return form.model_validate_json(self._send(request, MAX_ANSWER_BYTES))
        except ValidationError as error:
            raise EnrolmentError(
                f"{self._url} did not answer like a Dure server of this version: check the address, then the versions"
            ) from error

    def _send(self, request: httpx.Request, max_bytes: int) -> bytes:
        sent = wire_bytes(request)
        entry = Entry(RecordKind.ENROLMENT, len(sent), hashlib.sha256(sent).digest())
        self._recorder.record(entry)
        asked_at = self._clock.start()
        try:
            response = self._client.send(request, stream=True)
            try:
                content = self._bounded(response, max_bytes)
            finally:
                response.close()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            self._recorder.record(Entry(RecordKind.NOT_SENT, entry.size_bytes, entry.sha256))
            raise self._unreachable(error) from error
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        self._hear_time(response, asked_at)
        if not response.is_success:
            raise self._refused(response.status_code, content)
        return content

    def _hear_time(self, response: httpx.Response, asked_at: float) -> None:
        """Take the server's time from the Date header: whole seconds, rounded down."""
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            told = parsedate_to_datetime(response.headers.get("date", ""))
            self._clock.hear(told.timestamp() + 0.5, asked_at)

    def _bounded(self, response: httpx.Response, max_bytes: int) -> bytes:
        content = bytearray()
        for part in response.iter_raw():
            content.extend(part)
            if len(content) > max_bytes:
                raise EnrolmentError(f"{self._url} sent more than {max_bytes} bytes; it is no Dure server")
        return bytes(content)

    def _unreachable(self, error: httpx.HTTPError) -> ServerUnreachableError:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return ServerUnreachableError(
                f"{self._url} shows a certificate that the consortium's root did not sign for this address, or one "
                f"that is not valid by this machine's clock ({self._clock.local_utc():%Y-%m-%d %H:%M} UTC). Nothing "
                "secret was sent. Set the clock if it is wrong. Ask the operator which addresses the server's "
                "certificate names; if this one is among them, somebody is in between"
            )
        if self._proxy is not None and isinstance(error, httpx.ProxyError):
            status = re.match(r"\d{3}", str(error))
            return ServerUnreachableError(self._proxy.refusal(int(status[0]) if status else 502))
        by_proxy = f" through the proxy {self._proxy}" if self._proxy else ""
        return ServerUnreachableError(
            f"{self._url} cannot be reached{by_proxy} ({str(error) or type(error).__name__}): check that this machine "
            "may open connections to that address and port, and that the operator's server runs"
        )

    @staticmethod
    def _refused(status: int, content: bytes) -> ServerRefusedError:
        try:
            problem = Problem.model_validate_json(content)
        except ValidationError:
            return ServerRefusedError(f"http-{status}", f"the server refused with HTTP status {status}")
        # The words come from a server: no character of them may act on a terminal.
        words = "".join(c for c in problem.detail if c.isprintable())[:1000]
        return ServerRefusedError(problem.type.rpartition(":")[2], f"the server refused: {words}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()


def wire_bytes(request: httpx.Request) -> bytes:
    """An HTTP/1.1 request as it goes onto the connection."""
    line = b"%s %s HTTP/1.1\r\n" % (request.method.encode(), request.url.raw_path)
    headers = b"".join(b"%s: %s\r\n" % pair for pair in request.headers.raw)
    return line + headers + b"\r\n" + request.content


class _NamedContext(ssl.SSLContext):
    """Checks for one name, if it is given, whatever address the connection goes to."""

    name = ""

    def wrap_socket(self, *arguments: Any, **keywords: Any) -> ssl.SSLSocket:
        """As the base class does, with the name put in."""
        named = {"server_hostname": self.name} if self.name else {}
        return super().wrap_socket(*arguments, **(keywords | named))


def _tls(root_pem: bytes | None, server_name: str) -> ssl.SSLContext:
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.name = server_name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if root_pem is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=root_pem.decode("ascii"))
    return context


def _for_httpx(proxy: Proxy | None) -> httpx.Proxy | None:
    if proxy is None:
        return None
    return httpx.Proxy(proxy.url, auth=(proxy.user, proxy.password) if proxy.user else None)
