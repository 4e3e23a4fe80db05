"""The firm's own HTTP proxy, where the agent may not connect outward by itself.

The proxy is asked by CONNECT for a tunnel to the server; TLS goes from the agent to the server through it, with the
firm's certificate, and the proxy sees nothing but ciphertext. Which proxy:

(1) `proxy` in agent.toml, if it is there; else the environment's `https_proxy` or `HTTPS_PROXY`.
(2) None for hosts in `no_proxy` or `NO_PROXY`, and, where the environment names the proxy, for this machine itself.
(3) User name and password: the file `proxy_credentials_file` of agent.toml, else $DURE_PROXY_CREDENTIALS, both
    "user:password"; else those that stand in the environment's URL. Never on a command line, in agent.toml or in a log.

Errors: ProxyError, with what to change.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote, unquote, urlsplit

from dure_protocols.errors import DureError

CREDENTIALS_VARIABLE: Final = "DURE_PROXY_CREDENTIALS"
MAX_CREDENTIALS_BYTES: Final = 1024


class ProxyError(DureError):
    """The proxy is not set as it must be."""


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy that knows CONNECT. Its repr and str show no password, nor a user name."""

    host: str
    port: int
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The proxy as a URL without credentials."""
        return f"http://{self}"

    def url_with_credentials(self) -> str:
        """For the library that opens the connection, and for nothing that is kept or shown."""
        if not self.user:
            return self.url
        return f"http://{quote(self.user, safe='')}:{quote(self.password, safe='')}@{self}"

    def refusal(self, status: int) -> str:
        """What to do when the proxy answers CONNECT with an HTTP status that is not 200."""
        if status == 407:
            given = "refuses the user name and password that it was given" if self.user else "wants a user name"
            return (
                f"the proxy {self} {given} (407): write user:password into a file of mode 0600 and run `dure-agent "
                f"proxy set {self.url} --credentials FILE`, or set {CREDENTIALS_VARIABLE}. Dure speaks Basic "
                "authentication only; a proxy that wants Kerberos or NTLM must let this machine pass without"
            )
        if status in {403, 405}:
            return (
                f"the proxy {self} does not allow a tunnel to the server ({status}): ask whoever runs the proxy to "
                "allow CONNECT to the server's host and port, without opening TLS on the way"
            )
        return (
            f"the proxy {self} could not connect to the server ({status}): check the server's address with `dure-agent "
            "status`, and ask whoever runs the proxy whether it may reach it"
        )


class ProxySettings(Protocol):
    """What of agent.toml is about the proxy."""

    @property
    def proxy(self) -> str | None:
        """URL without credentials."""
        ...

    @property
    def proxy_credentials_file(self) -> Path | None:
        """File with "user:password"."""
        ...


def proxy_for(host: str, settings: ProxySettings, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy by which a server's host is reached, or None. Raises ProxyError."""
    url = settings.proxy or _variable("https_proxy", environment)
    if not url or _is_excluded(host, _variable("no_proxy", environment)):
        return None
    if not settings.proxy and _is_this_machine(host):
        return None
    host_and_port, in_url = read_proxy_url(url)
    user, password = _credentials(settings.proxy_credentials_file, environment) or in_url
    return Proxy(*host_and_port, user, password)


def read_proxy_url(url: str) -> tuple[tuple[str, int], tuple[str, str]]:
    """((host, port), (user, password)) of a proxy's URL. Raises ProxyError, which does not repeat the URL."""
    expected = "a proxy is http://HOST:PORT"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port or 80
    except ValueError as error:
        raise ProxyError(f"{expected}; the URL given cannot be read") from error
    if parts.scheme != "http":
        raise ProxyError(f"{expected}; {parts.scheme}:// was given, and the way to the proxy itself has no TLS here")
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ProxyError(f"{expected}, with nothing behind it")
    return (parts.hostname, port), (unquote(parts.username or ""), unquote(parts.password or ""))


def _credentials(file: Path | None, environment: Mapping[str, str]) -> tuple[str, str] | None:
    if file is not None:
        return _split(_read_private(file), f"the file {file}")
    if given := environment.get(CREDENTIALS_VARIABLE):
        return _split(given, f"${CREDENTIALS_VARIABLE}")
    return None


def _split(text: str, where: str) -> tuple[str, str]:
    user, colon, password = text.strip("\r\n").partition(":")
    if not user or not colon or not (user + password).isprintable():
        raise ProxyError(f"{where} must hold user:password in one line")
    return user, password


def _read_private(file: Path) -> str:
    try:
        if file.stat().st_mode & 0o077:
            raise ProxyError(f"{file} may be read by other users of this machine: run `chmod 600 {file}`")
        with file.open(encoding="utf-8") as opened:
            return opened.read(MAX_CREDENTIALS_BYTES)
    except OSError as error:
        raise ProxyError(f"the proxy's credentials file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ProxyError(f"{file} must hold user:password as text") from error


def _variable(name: str, environment: Mapping[str, str]) -> str:
    return environment.get(name) or environment.get(name.upper()) or ""


def _is_excluded(host: str, no_proxy: str) -> bool:
    """Whether a host is in a list as the usual programs read it: names with all below them, addresses, networks, *."""
    address = _address(host)
    for item in filter(None, (part.strip().lower() for part in no_proxy.split(","))):
        name = item.removeprefix("*").removeprefix(".")
        if item == "*" or (address is None and (host.lower() == name or host.lower().endswith(f".{name}"))):
            return True
        if address is not None and "/" in item:
            try:
                if address in ipaddress.ip_network(item, strict=False):
                    return True
            except ValueError:
                continue
        elif address is not None and address == _address(item):
            return True
    return False


def _is_this_machine(host: str) -> bool:
    address = _address(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
