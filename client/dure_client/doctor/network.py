"""The way to the server: proxy, DNS, a connection, and whose certificate is at its end.

A TLS handshake and nothing after it: no certificate of the firm's, no byte of a request.
"""

import base64
import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography import x509

from dure_client.doctor.finding import Finding, State
from dure_client.home import AgentConfig
from dure_client.link.channel import Route
from dure_client.link.proxy import Proxy, ProxyError

_TIMEOUT_SECONDS = 10.0
_UNREAD = "an issuer that cannot be read"
_EXEMPT = (
    "ask your network's people to exempt the server's host and port from TLS inspection. The agent goes on to refuse; "
    "nothing secret was sent"
)
_NOT_NOW, _ANOTHER_NAME = (9, 10), (62, 64)  # OpenSSL's X509_V_ERR_…: not yet or no longer valid; another host or IP


def network_findings(config: AgentConfig, root_file: Path, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Proxy, DNS, connection and TLS, each as far as those before it allow."""
    try:
        route = config.route(environment)
    except ProxyError as error:
        yield Finding("proxy", State.FAIL, "its settings are wrong", str(error))
        return
    yield Finding("proxy", State.OK, f"goes through {route.proxy}" if route.proxy else "none is set; connects itself")
    yield (name := _dns(route))
    if name.state is State.FAIL:
        return
    yield from _link(route, root_file)


def _dns(route: Route) -> Finding:
    if route.proxy is not None:
        host = route.proxy.host
        whose = f"the proxy's name {host}; the proxy itself looks up the server's"
    else:
        host = route.host
        whose = f"the server's name {host}"
    try:
        found = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})
    except OSError as error:
        advice = "correct the name (`dure-agent server set`, `dure-agent proxy set`), or this machine's DNS"
        return Finding("dns", State.FAIL, f"does not know {whose} ({error})", advice)
    return Finding("dns", State.OK, f"knows {whose}: {', '.join(found)}")


def _link(route: Route, root_file: Path) -> Iterator[Finding]:
    name = route.server_name or route.host
    try:
        root = root_file.read_text(encoding="ascii")
        _shake_hands(route, name, _context(root))
    except ssl.SSLCertVerificationError as error:
        yield Finding("link", State.OK, f"{route} is reached")
        yield _not_the_consortiums(route, name, error)
    except ssl.SSLError as error:
        yield _no_tls(route, name, error)
    except (OSError, http.client.HTTPException) as error:
        advice = _proxy_advice(route.proxy) if route.proxy else "allow this machine to connect to that host and port"
        advice += ", and ask the operator whether the server runs"
        yield Finding("link", State.FAIL, f"{route} is not reached ({error})", advice)
    else:
        yield Finding("link", State.OK, f"{route} is reached")
        yield Finding("tls", State.OK, f"the certificate there is the consortium's and names {name}; nobody is between")


def _not_the_consortiums(route: Route, name: str, error: ssl.SSLCertVerificationError) -> Finding:
    if error.verify_code in _NOT_NOW:
        advice = "set this machine's clock if it is wrong; else tell the operator"
        return Finding("tls", State.FAIL, "the server's certificate is not valid by this machine's clock", advice)
    if error.verify_code in _ANOTHER_NAME:
        advice = "ask the operator which name it has, then `dure-agent server set … --name NAME`"
        return Finding("tls", State.FAIL, f"the server's certificate does not name {name}", advice)
    return Finding(
        "tls",
        State.FAIL,
        f"somebody opens TLS on the way: the certificate there was issued by {_issuer(route, name)}, not by the "
        "consortium",
        _EXEMPT,
    )


def _no_tls(route: Route, name: str, error: ssl.SSLError) -> Finding:
    """The handshake came to no end; a certificate may have been shown all the same."""
    text, issuer = (
        f"{route} is reached, but no TLS 1.2 or newer comes about ({error.reason})",
        _issuer(route, name),
    )
    if issuer == _UNREAD:
        advice = "ask whether something on the way lets no TLS through; the port may be another service's"
        return Finding("link", State.FAIL, text, advice)
    return Finding("link", State.FAIL, f"{text}; the certificate there was issued by {issuer}", _EXEMPT)


def _issuer(route: Route, name: str) -> str:
    """Who issued what is shown there, as it says itself."""
    try:
        shown = _shake_hands(route, name, _context(None))
        words = x509.load_der_x509_certificate(shown).issuer.rfc4514_string()
    except (OSError, ValueError, http.client.HTTPException):
        return _UNREAD
    return f'"{"".join(letter for letter in words if letter.isprintable())[:200]}"'


def _context(root_pem: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # as the link
    context.set_alpn_protocols(["h2"])
    if root_pem is None:  # only to read who issued it, whatever it speaks
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=root_pem)
    return context


def _shake_hands(route: Route, name: str, context: ssl.SSLContext) -> bytes:
    """The certificate at the other end, DER. Raises OSError, ssl.SSLError among them, and HTTPException."""
    with _connection(route) as connection, context.wrap_socket(connection, server_hostname=name) as secured:
        return secured.getpeercert(binary_form=True) or b""


def _connection(route: Route) -> socket.socket:
    port = int(route.address.rpartition(":")[2])
    if route.proxy is None:
        return socket.create_connection((route.host, port), _TIMEOUT_SECONDS)
    asked = http.client.HTTPConnection(route.proxy.host, route.proxy.port, timeout=_TIMEOUT_SECONDS)
    asked.set_tunnel(route.host, port, _credentials(route.proxy))
    asked.connect()
    connection: socket.socket = asked.sock
    return connection


def _credentials(proxy: Proxy) -> dict[str, str]:
    if not proxy.user:
        return {}
    return {"Proxy-Authorization": "Basic " + base64.b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()}


def _proxy_advice(proxy: Proxy) -> str:
    return f"check `dure-agent proxy show`, and that {proxy} allows CONNECT to the server's host and port"
