"""`dure-server`: the operator's commands."""

import sys
from importlib import import_module
from importlib.util import find_spec

import typer
from rich.console import Console
from rich.markup import escape

from dure_protocols.errors import DureError
from dure_server.commands import firms, home, models

app = typer.Typer(
    name="dure-server",
    help="Run a consortium's server: invite firms, start training jobs, watch them. It never sees a firm's data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (home.init, home.run, home.status, firms.invite, firms.firms, firms.approve, firms.revoke, home.upgrade):
    app.command(command.__name__)(command)

app.add_typer(models.app, name="model")

if find_spec("dure_server.commands.jobs") is not None:
    import_module("dure_server.commands.jobs").mount(app)


def main() -> None:
    """Run a command; what Dure raises on purpose becomes one sentence and exit code 1."""
    try:
        app()
    except DureError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/] {escape(str(error))}")
        sys.exit(1)


if __name__ == "__main__":
    main()
