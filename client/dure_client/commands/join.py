"""`dure-agent join`: take up an operator's invitation."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from dure_client.enrolment.join import ByProxy
from dure_client.enrolment.join import join as join_consortium
from dure_client.home import HOME_VARIABLE, AgentHome, HomeError, default_home
from dure_client.link.clock import clock_sentence
from dure_client.link.proxy import Proxy, ProxyError, read_proxy_url
from dure_protocols.identity import grouped
from dure_protocols.invitation import MAX_INVITATION_CHARACTERS, read_invitation

HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar=HOME_VARIABLE, help="Folder of this firm's agent.", default_factory=default_home),
]


def join(
    invitation: Annotated[Path, typer.Option("--invitation", help="The file that the operator handed over.")],
    fingerprint: Annotated[
        str,
        typer.Option("--fingerprint", help="The consortium root's fingerprint, told over another way than the file."),
    ],
    home: HomeOption,
    proxy: Annotated[
        str | None, typer.Option("--proxy", help="The firm's HTTP proxy, http://HOST:PORT, if it needs one.")
    ] = None,
    proxy_credentials: Annotated[
        Path | None, typer.Option("--proxy-credentials", help='File of mode 0600 with the proxy\'s "user:password".')
    ] = None,
) -> None:
    """Join a consortium: make this firm's keys here, and ask for a certificate."""
    by_proxy = ByProxy(named_proxy(proxy), proxy_credentials.resolve() if proxy_credentials else None)
    joined = join_consortium(AgentHome(home), read_invitation(_read(invitation)), fingerprint, by_proxy=by_proxy)
    out = Console(highlight=False, soft_wrap=True)
    out.print(
        f"[green]✓[/] {joined.config.firm} has joined the consortium [bold]{escape(joined.config.consortium)}[/].",
        end="\n\n",
    )
    out.print("This firm's identity fingerprint, to compare with the operator over the phone:")
    out.print(f"  [bold]{grouped(joined.identity_fingerprint)}[/]\n")
    out.print(
        "The operator compares it and approves. Until then: `dure-agent status`. You may delete the invitation file."
    )
    if sentence := clock_sentence(joined.clock_ahead_seconds or 0.0):
        out.print(f"\n[yellow]Note:[/] {sentence}")


def named_proxy(url: str | None) -> str | None:
    """Check a proxy's URL from a command line. Raises ProxyError: a password there would be seen by everybody."""
    if url is None:
        return None
    address, credentials = read_proxy_url(url)
    if any(credentials):
        raise ProxyError(
            "a password on a command line is seen by every user of this machine: write user:password into a file of "
            "mode 0600 and name that file"
        )
    return Proxy(*address).url


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_INVITATION_CHARACTERS + 1)
    except OSError as error:
        raise HomeError(f"the invitation {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise HomeError(f"{path} is not a text file; name the file that the operator handed over") from error
