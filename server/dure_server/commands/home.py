"""`dure-server init`, `upgrade`, `status`, `run`: the server itself."""

import json
import os
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from dure_protocols.identity import grouped
from dure_server.commands.common import HomeOption, JsonOption, actor, opened, terminal
from dure_server.logs import log_to_stderr
from dure_server.settings import (
    DEFAULT_CONSOLE_PORT,
    DEFAULT_ENROLMENT_PORT,
    DEFAULT_LINK_PORT,
    STORE_VARIABLE,
    ServerHome,
    ServerSettings,
)
from dure_server.setup import make_home, renew_server_certificate_if_due
from dure_server.store import Store
from dure_server.supervise import run_server, stop_signals


def init(
    home: HomeOption,
    consortium: Annotated[str, typer.Option(help="The consortium's name, as firms will see it.")],
    host: Annotated[str, typer.Option(help="Host name or address by which firms reach this server.")],
    bind: Annotated[str, typer.Option(help="Address that link and enrolment listen on.")] = "0.0.0.0",  # noqa: S104
    link_port: Annotated[int, typer.Option(help="Port of the link (gRPC, mutual TLS).")] = DEFAULT_LINK_PORT,
    enrolment_port: Annotated[int, typer.Option(help="Port of enrolment (HTTPS).")] = DEFAULT_ENROLMENT_PORT,
    console_port: Annotated[int, typer.Option(help="Port of the console, loopback only.")] = DEFAULT_CONSOLE_PORT,
) -> None:
    """Make a consortium: its root, the server's certificate, the store. $DURE_STORE_URL names a PostgreSQL database."""
    settings = ServerSettings.checked(
        {
            "consortium": consortium,
            "public_host": host,
            "bind_host": bind,
            "link_port": link_port,
            "enrolment_port": enrolment_port,
            "console_port": console_port,
            "store_url": os.environ.get(STORE_VARIABLE) or None,
        }
    )
    authority = make_home(ServerHome(home), settings, actor(), datetime.now(UTC))
    out = terminal()
    out.print(f"[green]✓[/] The consortium [bold]{escape(consortium)}[/] lives in {escape(str(home))}.\n")
    out.print("Its root fingerprint, which firms must hear another way than by the invitation (contract, phone):")
    out.print(f"  [bold]{grouped(authority.fingerprint)}[/]\n")
    out.print("Next: `dure-server run`, and `dure-server invite FIRM` for each firm.")
    out.print(f"[dim]Keep a copy of {escape(str(home / 'pki'))} in a safe: whoever has root.key is the consortium.[/]")


def upgrade(home: HomeOption) -> None:
    """Bring the store of an older version to this one. Make a backup first; stop `dure-server run`."""
    server = ServerHome(home)
    Store.create(server.store_url(server.settings())).close()
    terminal().print("[green]✓[/] The store is of this dure-server's version.")


def status(home: HomeOption, as_json: JsonOption = False) -> None:
    """Show the consortium, where the server listens, firms and jobs."""
    with opened(home) as (_, settings, store), store.reading() as tx:
        consortium, firms, jobs = tx.consortium.get(), tx.firms.all(), tx.jobs.all()
        audited = tx.audit.verify()
    if as_json:
        found = {
            "consortium": consortium.name,
            "root_fingerprint": consortium.root_fingerprint,
            "console_url": settings.console_url,
            "enrolment_url": settings.enrolment_url,
            "link_port": settings.link_port,
            "firms": {firm.name: firm.status.value for firm in firms},
            "jobs": {job.id: job.state.value for job in jobs},
            "audit_events": audited,
        }
        print(json.dumps(found))
        return
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("Consortium", f"[bold]{escape(consortium.name)}[/]"),
        ("Root fingerprint", grouped(consortium.root_fingerprint)),
        ("Enrolment", settings.enrolment_url),
        ("Link", f"{settings.public_host}, port {settings.link_port}"),
        ("Console", f"{settings.console_url} (this machine only)"),
        ("Firms", ", ".join(f"{firm.name} ({firm.status.value})" for firm in firms) or "none yet"),
        ("Jobs", ", ".join(f"{job.id} ({job.state.value})" for job in jobs) or "none yet"),
        ("Audit log", f"{audited} events, chain intact"),
    ):
        table.add_row(f"[dim]{name}[/]", value)
    terminal().print(table)


def run(
    home: HomeOption, as_json: Annotated[bool, typer.Option("--json", help="Print and log JSON lines.")] = False
) -> None:
    """Run the server until Ctrl-C or SIGTERM: link, console, enrolment, and a coordinator for each running job."""
    log_to_stderr("supervisor", as_json=as_json)
    with stop_signals() as stopped, opened(home) as (server, settings, store):
        renew_server_certificate_if_due(server, settings, datetime.now(UTC))

        def ready() -> None:
            if as_json:
                urls = {
                    "event": "ready",
                    "console": settings.console_url,
                    "enrolment": settings.enrolment_url,
                    "link": f"{settings.public_host}:{settings.link_port}",
                }
                print(json.dumps(urls), flush=True)
            else:
                out = terminal()
                out.print(f"[green]✓[/] {escape(settings.consortium)} is up. Console: [bold]{settings.console_url}[/]")
                out.print("[dim]Ctrl-C stops everything. Jobs go on from their last finished phase at the next run.[/]")

        run_server(server, settings, store, ready, stopped, json_logs=as_json)
