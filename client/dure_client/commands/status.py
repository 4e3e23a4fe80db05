"""`dure-agent status`: who this agent is, whether the consortium has approved it, which jobs it knows."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dure_client.commands.join import HomeOption
from dure_client.health import Health, read_health
from dure_client.home import AgentHome
from dure_client.link.clock import clock_sentence
from dure_client.status import Status, read_status
from dure_protocols.identity import grouped

_HEALTH = {
    Health.OK: "[green]runs, connected[/]",
    Health.NOT_RUNNING: "[yellow]does not run: `dure-agent run`[/]",
    Health.CERTIFICATE: "[red]runs, but its certificate is not valid now[/]",
    Health.DISK: "[red]runs, but the disk is nearly full[/]",
    Health.NOT_CONNECTED: "[yellow]runs, and does not reach the link; logs/agent.log says why[/]",
}


def status(
    home: HomeOption,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Ask nobody; only tell how the agent is, by exit status too: 0 well, 1 not running, 3 other trouble.",
        ),
    ] = False,
) -> None:
    """Show who this agent is, whether it is approved, and the jobs it knows."""
    if probe:
        health = read_health(AgentHome(home), datetime.now(UTC))
        print(json.dumps({"health": health}) if as_json else health.value)
        raise typer.Exit(health.exit_status)
    found = read_status(AgentHome(home), datetime.now(UTC))
    if as_json:
        print(json.dumps(asdict(found)))
        return
    until = datetime.fromisoformat(found.certificate_not_after)
    validity = (
        f"valid until {until:%Y-%m-%d %H:%M} UTC"
        if found.certificate_is_valid
        else (f"[red]not valid now[/] (ended {until:%Y-%m-%d %H:%M} UTC): ask the operator for a new invitation")
    )
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("Firm", f"[bold]{found.firm}[/]"),
        ("Consortium", escape(found.consortium)),
        ("Server", escape(_server(found))),
        ("Approval", f"[{_colour(found.approval)}]{escape(found.approval_note)}[/]"),
        ("Agent", _HEALTH[found.health]),
        ("Fingerprint", grouped(found.identity_fingerprint)),
        ("Certificate", validity),
        ("Clock", f"[{'yellow' if _is_off(found) else 'default'}]{escape(found.clock_note)}[/]"),
        ("Jobs", ", ".join(found.jobs) or "none yet"),
    ):
        table.add_row(f"[dim]{name}[/]", value)
    Console(highlight=False, soft_wrap=True).print(table)


def _server(found: Status) -> str:
    spoken = f" (Dure {found.server_version}, protocol {found.protocol})" if found.server_version else ""
    return found.server + spoken + (f", through the proxy {found.proxy}" if found.proxy else "")


def _is_off(found: Status) -> bool:
    return bool(clock_sentence(found.clock_ahead_seconds or 0.0))


def _colour(approval: str) -> str:
    return {"approved": "green", "revoked": "red"}.get(approval, "yellow")
