"""One gRPC channel to the link: where it goes, by which way, and whose certificate it believes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from dure_client.link.errors import CutOffError, LinkError
from dure_client.link.proxy import Proxy
from dure_protocols.frames import MAX_ENVELOPE_BYTES

SERVICE: Final = "dure.link.Firm"
_NOT_REACHED: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
)

OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    ("grpc.max_receive_message_length", MAX_ENVELOPE_BYTES + 1024),
    ("grpc.max_send_message_length", MAX_ENVELOPE_BYTES + 1024),
    # Keeps firewalls from forgetting the connection. A dead one is noticed within the sum of the two (docs/links.md).
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 8_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 10_000),  # the time that TCP, CONNECT and TLS may take, whatever the name says
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),  # two agents in one process must not share a connection
    ("grpc.enable_retries", 0),  # a retry hidden in gRPC would leave unrecorded
)


@dataclass(frozen=True)
class Route:
    """How a server is reached, and how it is known.

    address: host:port; server_name: the name that its certificate must have, the address's host if empty; proxy: the
    firm's own, by which the connection is made. Whatever the route, only the consortium's root is believed.
    """

    address: str
    server_name: str = ""
    proxy: Proxy | None = None

    @property
    def host(self) -> str:
        """The address without its port, and without the brackets of IPv6."""
        return self.address.rpartition(":")[0].strip("[]")

    def __str__(self) -> str:
        return f"{self.address} through the proxy {self.proxy}" if self.proxy else self.address


def open_channel(route: Route, credentials_folder: Path) -> grpc.Channel:
    """A channel that connects when it is first used. The folder holds tls.key, tls.pem, root.pem. Raises LinkError."""
    try:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=(credentials_folder / "root.pem").read_bytes(),
            private_key=(credentials_folder / "tls.key").read_bytes(),
            certificate_chain=(credentials_folder / "tls.pem").read_bytes(),
        )
    except OSError as error:
        raise LinkError(f"{error.filename} cannot be read: run `dure-agent join` first") from error
    options = list(OPTIONS)
    if route.proxy is None:
        options.append(("grpc.enable_http_proxy", 0))  # the environment is read in one place, link/proxy.py
    else:
        options.append(("grpc.http_proxy", route.proxy.url_with_credentials()))
    if route.server_name and route.server_name != route.host:
        options.append(("grpc.ssl_target_name_override", route.server_name))
    return grpc.secure_channel(route.address, credentials, options)


def why_not_there(channel: grpc.Channel, timeout_seconds: float) -> Exception | None:
    """Try once to reach the link. None: it is there; else why not.

    It opens an upload and announces nothing, which the link refuses: any answer of the link's own will do. So nothing
    leaves but the method's name, and gRPC, which connects for a call only, tells why it could not.
    """
    try:
        list(channel.stream_stream(f"/{SERVICE}/Upload")(iter(()), timeout=timeout_seconds))
    except grpc.RpcError as error:
        return error if error.code() in _NOT_REACHED else None
    except ValueError:  # grpc's way to say that the channel was closed meanwhile
        return CutOffError("the connection was renewed")
    return None
