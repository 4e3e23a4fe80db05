"""`dure-agent`: the firm's program. Each command is in a module of `dure_client.commands`.

An error that Dure raises on purpose is one red sentence and exit code 1 (of `run`, 78 where only a person helps);
`--debug` shows where it came from.
"""

import os
from typing import Annotated

import click
import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from dure_client.commands import data, install, jobs, ledger, models, pause, policy, run, server, vouch
from dure_client.commands.doctor import doctor
from dure_client.commands.join import join
from dure_client.commands.leave import leave
from dure_client.commands.status import status
from dure_client.commands.ui import ui
from dure_protocols.errors import DureError


class _Friendly(TyperGroup):
    """Turns errors that tell a person what to do into that sentence."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except DureError as error:
            if ctx.params.get("debug"):
                raise
            # Text, not markup: an error may quote brackets of a file or a path.
            Console(stderr=True, soft_wrap=True, highlight=False).print(Text(f"Error: {error}", style="red"))
            raise typer.Exit(run.exit_status(error) if ctx.invoked_subcommand == "run" else 1) from error


# Typer's own tracebacks print local variables, and those can be keys.
app = typer.Typer(
    cls=_Friendly,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A firm's agent: trains on the firm's own data and lets nothing out but what is encrypted and recorded.",
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Options of every command."""
    del debug  # read by _Friendly


app.command()(join)
app.command()(status)
app.command()(doctor)
app.command()(run.run)
app.command()(ui)
app.command()(jobs.jobs)
app.command()(jobs.review)
app.command()(jobs.approve)
app.command()(jobs.reject)
app.command()(jobs.accept)
app.command()(vouch.vouch)
app.command()(vouch.vouches)
app.command()(leave)
app.command()(pause.pause)
app.command()(pause.resume)
app.command()(install.install)
app.command()(install.uninstall)
app.add_typer(data.app, name="data")
app.add_typer(ledger.app, name="ledger")
app.add_typer(models.app, name="model")
app.add_typer(policy.app, name="policy")
app.add_typer(server.server_app, name="server")
app.add_typer(server.proxy_app, name="proxy")


def main() -> None:
    """The console script."""
    os.umask(0o077)  # whatever a command writes is this user's alone, also where a library writes it
    app(prog_name="dure-agent")


if __name__ == "__main__":
    main()
