"""Whether this server's ports are free, asked before anything starts."""

import errno
import socket
from dataclasses import dataclass

from dure_server.settings import ServerSettings, SettingsError


@dataclass(frozen=True)
class Port:
    """A port that the server will listen on. `setting`: its name in server.toml."""

    setting: str
    host: str
    number: int

    @property
    def flag(self) -> str:
        """The option of `dure-server init` that sets it."""
        return "--" + self.setting.replace("_", "-")


def ports_of(settings: ServerSettings) -> list[Port]:
    """The three ports of a server."""
    return [
        Port("link_port", settings.bind_host, settings.link_port),
        Port("enrolment_port", settings.bind_host, settings.enrolment_port),
        Port("console_port", "127.0.0.1", settings.console_port),
    ]


def check_ports_are_free(settings: ServerSettings) -> None:
    """Raise SettingsError naming the first port that cannot be had, its setting and what to do."""
    for port in ports_of(settings):
        family = socket.AF_INET6 if ":" in port.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As the servers do: a port whose last connections are still dying away is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((port.host, port.number))
            except OSError as error:
                raise SettingsError(_why(port, error)) from error


def _why(port: Port, error: OSError) -> str:
    where = f"port {port.number} on {port.host}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"{where} is used by another program. Stop that program, or choose another {port.setting} in server.toml "
            f"(`dure-server init {port.flag}` sets it for a new home)"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"this machine has no address {port.host}: change bind_host in server.toml"
    return f"{where} cannot be listened on ({error.strerror}): choose another {port.setting} in server.toml"
