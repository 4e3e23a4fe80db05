"""`dure-agent server` and `dure-agent proxy`: where the server is now, and by which way it is reached.

Both write agent.toml; a running agent follows within seconds and its jobs go on. What the server *is* stays pinned: the
consortium's root, and the name that its certificate has had since this firm joined.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dure_client.commands.join import HomeOption, named_proxy
from dure_client.home import AgentConfig, AgentHome, HomeError

server_app = typer.Typer(no_args_is_help=True, help="Where the consortium's server is.")
proxy_app = typer.Typer(no_args_is_help=True, help="The firm's own HTTP proxy, if the agent needs one.")


@server_app.command("set")
def set_server(
    address: Annotated[str, typer.Argument(metavar="HOST[:PORT]", help="Where the link is now.")],
    home: HomeOption,
    enrolment_port: Annotated[
        int | None, typer.Option("--enrolment-port", min=1, max=65535, help="Port of enrolment, if it moved, too.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The name that the server's certificate has, if that is another now.")
    ] = None,
) -> None:
    """Tell the agent that the server has moved. Keys, certificate and jobs stay as they are."""
    agent_home = AgentHome(home)
    config = agent_home.written_config()
    host, port = _host_and_port(address, config.link_port)
    changes = {
        "server_host": host,
        "link_port": port,
        "enrolment_port": enrolment_port or config.enrolment_port,
        "server_name": name or config.server_name or config.server_host,
    }
    _write(agent_home, config, changes)


@server_app.command("show")
def show_server(home: HomeOption) -> None:
    """Show where the agent looks for the server, and which name it expects there."""
    _print(AgentHome(home).config())


@proxy_app.command("set")
def set_proxy(
    url: Annotated[str, typer.Argument(metavar="http://HOST:PORT", help="The proxy, without user name and password.")],
    home: HomeOption,
    credentials: Annotated[
        Path | None, typer.Option("--credentials", help='File of mode 0600 with "user:password".')
    ] = None,
) -> None:
    """Reach the server through a proxy, whatever the environment says."""
    agent_home = AgentHome(home)
    changes = {"proxy": named_proxy(url), "proxy_credentials_file": credentials.resolve() if credentials else None}
    _write(agent_home, agent_home.written_config(), changes)


@proxy_app.command("clear")
def clear_proxy(home: HomeOption) -> None:
    """Reach the server as the environment says: through its https_proxy, or directly."""
    agent_home = AgentHome(home)
    _write(agent_home, agent_home.written_config(), {"proxy": None, "proxy_credentials_file": None})


def _write(home: AgentHome, config: AgentConfig, changes: Mapping[str, object]) -> None:
    changed = AgentConfig.model_validate(config.model_dump() | dict(changes))
    changed.route(os.environ)  # before it is kept: can it be used at all?
    home.write_config(changed)
    _print(changed)


def _print(config: AgentConfig) -> None:
    route = config.route(os.environ)
    out = Console(highlight=False, soft_wrap=True, markup=False)
    out.print(f"Server: {route}; its certificate must be the consortium's and name {route.server_name}")


def _host_and_port(address: str, port: int) -> tuple[str, int]:
    """Take HOST, HOST:PORT or [IPV6]:PORT apart. Raises HomeError."""
    host, colon, digits = address.rpartition(":")
    if not colon or address.endswith("]") or (":" in host and not host.startswith("[")):  # a bare IPv6 address
        host, digits = address, str(port)
    host = host.removeprefix("[").removesuffix("]")
    if not 0 < len(host) <= 253 or "/" in host or not digits.isdecimal() or not 0 < int(digits) < 65536:
        raise HomeError(f"{address!r} is no address of a server: write HOST, HOST:PORT or [IPV6]:PORT")
    return host, int(digits)
