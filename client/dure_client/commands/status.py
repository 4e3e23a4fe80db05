"""`dure-agent status`: who this agent is, whether the consortium has approved it, which jobs it knows."""

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dure_client.commands.join import HomeOption
from dure_client.enrolment.api import EnrolmentError
from dure_client.enrolment.join import ask_state
from dure_client.health import Health, read_health
from dure_client.home import AgentHome
from dure_client.leaving import check_is_member
from dure_client.link.clock import clock_sentence
from dure_client.link.standing import LinkStanding
from dure_protocols.identity import grouped
from dure_protocols.ledger import LedgerError

_MEANING = {
    "joined": "waiting for the operator's approval",
    "approved": "approved",
    "left": "left by this firm's own word",
    "revoked": "revoked: talk to the consortium's operator",
    "invited": "invited anew: run `dure-agent join` with the new invitation",
}
_HEALTH = {
    Health.OK: "[green]runs, connected[/]",
    Health.NOT_RUNNING: "[yellow]does not run: `dure-agent run`[/]",
    Health.CERTIFICATE: "[red]runs, but its certificate is not valid now[/]",
    Health.DISK: "[red]runs, but the disk is nearly full[/]",
    Health.NOT_CONNECTED: "[yellow]runs, and does not reach the link; logs/agent.log says why[/]",
}


@dataclass(frozen=True)
class Status:
    """What `dure-agent status --json` prints."""

    firm: str
    consortium: str
    server: str
    identity_fingerprint: str
    certificate_not_after: str
    certificate_is_valid: bool
    approval: str
    """joined, approved, revoked, invited; or unknown where the server was not asked or did not answer."""
    approval_note: str
    health: Health
    """How the agent on this home is; `--probe` makes an exit status of it."""
    proxy: str | None
    """host:port of the proxy that the link goes through."""
    server_version: str | None
    protocol: int | None
    """What the agent last spoke with the server; None if it has not been connected yet."""
    clock_ahead_seconds: float | None
    """By how much this machine's clock was ahead of the server's when the server last told its time."""
    clock_note: str
    jobs: list[str]


def read_status(home: AgentHome, now: datetime) -> Status:
    """Look into the home and ask the server. Raises HomeError if the firm has not joined."""
    config = home.config()
    check_is_member(home)
    certificate = home.certificate()
    standing = LinkStanding.read(home.standing_file)
    ahead = standing.clock_ahead_seconds if standing else None
    try:
        state = ask_state(home)
        approval, ahead = state.answer.status, state.clock_ahead_seconds
        note = _MEANING.get(approval, approval)
    except LedgerError:
        # Only one process writes the ledger, and nothing may leave that is not in it.
        approval, note = "unknown", "not asked: the agent runs here and is the one that speaks to the server"
    except EnrolmentError as error:
        approval, note = "unknown", f"not known: {error}"
    return Status(
        firm=config.firm,
        consortium=config.consortium,
        server=config.link_address,
        identity_fingerprint=home.identity().fingerprint,
        certificate_not_after=certificate.not_after.isoformat(),
        certificate_is_valid=certificate.is_valid_at(now - timedelta(seconds=ahead or 0.0)),
        approval=approval,
        approval_note=note,
        health=read_health(home, now),
        proxy=str(proxy) if (proxy := config.route(os.environ).proxy) else None,
        server_version=standing.server_version if standing else None,
        protocol=standing.protocol if standing else None,
        clock_ahead_seconds=ahead,
        clock_note="not compared yet" if ahead is None else clock_sentence(ahead) or "in step with the server's",
        jobs=home.job_names(),
    )


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
