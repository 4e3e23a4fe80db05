"""`dure-agent join`: take up an operator's invitation."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from dure_client.enrolment.join import join as join_consortium
from dure_client.home import HOME_VARIABLE, AgentHome, HomeError, default_home
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
) -> None:
    """Join a consortium: make this firm's keys here, and ask for a certificate."""
    joined = join_consortium(AgentHome(home), read_invitation(_read(invitation)), fingerprint)
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


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_INVITATION_CHARACTERS + 1)
    except OSError as error:
        raise HomeError(f"the invitation {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise HomeError(f"{path} is not a text file; name the file that the operator handed over") from error
