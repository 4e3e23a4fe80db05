"""`dure-agent ui`: the firm's own page, on this machine."""

from typing import Annotated

import typer
from rich.console import Console

from dure_client.commands.join import HomeOption
from dure_client.commands.leave import leave_job
from dure_client.home import AgentHome


def ui(
    home: HomeOption,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            envvar="DURE_AGENT_UI_PORT",
            help="Port on 127.0.0.1; 0 for any. [default: 7490]",
        ),
    ] = None,
) -> None:
    """Serve this firm's own page on this machine, until Ctrl-C. It shows and does what the commands do."""
    from dure_client.page import serve  # noqa: PLC0415  # loads the web libraries
    from dure_client.page.access import CODE_SECONDS, Access  # noqa: PLC0415

    out = Console(highlight=False, soft_wrap=True)

    def tell(address: str, access: Access) -> None:
        # The code stands behind the #, which browsers keep to themselves: it is in no request and no log.
        out.print(f"This firm's page: {address}#{access.code}")
        out.print(
            f"The link works once, within {CODE_SECONDS // 60} minutes; or type its code, {access.code}, at {address}"
        )
        out.print("[dim]Only this machine reaches it. Ctrl-C ends it; the agent runs on.[/]")

    serve.serve(AgentHome(home), serve.PORT if port is None else port, tell, leave_job)
