"""`dure-server invite`, `firms`, `approve`, `revoke`: who belongs to the consortium."""

import json
import os
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from dure_protocols.identity import grouped
from dure_server.commands.common import HomeOption, JsonOption, actor, opened, terminal
from dure_server.enrolment.operator import Operator
from dure_server.settings import SettingsError
from dure_server.store import StoreConflictError
from dure_server.store.tables import Firm, FirmStatus

FirmArgument = Annotated[str, typer.Argument(metavar="FIRM", help="The firm's name.")]
_SECONDS = {"m": 60, "h": 3600, "d": 86400}


def invite(
    firm: FirmArgument,
    home: HomeOption,
    expires: Annotated[str, typer.Option(help="How long the invitation lives, such as 7d, 12h or 30m.")] = "7d",
    output: Annotated[Path | None, typer.Option(help="File for the invitation; FIRM.invitation if not given.")] = None,
) -> None:
    """Invite a firm: write an invitation that works once, to hand to the firm's administrator."""
    path = output or Path(f"{firm}.invitation")
    if path.exists():
        raise SettingsError(f"{path} exists; remove it, or name another file with --output")
    life = _life(expires)
    with opened(home) as (_, settings, store):
        operator = Operator(store, settings.enrolment_url, actor())
        invitation = operator.invite(firm, life)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(invitation.to_text())
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written ({error.strerror}); name another file with --output and invite {firm} again"
        ) from error
    out = terminal()
    out.print(f"[green]✓[/] The invitation for {firm} is in [bold]{escape(str(path))}[/], valid for {expires}.\n")
    out.print("Hand over the file. Tell the firm this root fingerprint by another way (contract, phone):")
    out.print(f"  [bold]{grouped(invitation.root_fingerprint)}[/]\n")
    out.print(f"The firm runs: dure-agent join --invitation {escape(path.name)} --fingerprint '…'")


def firms(home: HomeOption, as_json: JsonOption = False) -> None:
    """List the firms, how they stand, and their identity fingerprints."""
    with opened(home) as (_, _, store), store.reading() as tx:
        rows, breaks = tx.firms.all(), tx.ledger_heads.breaks()
    if as_json:
        print(json.dumps([{**_firm(row), "ledger_breaks": breaks.get(row.name, 0)} for row in rows]))
        return
    if not rows:
        terminal().print("No firm yet. `dure-server invite FIRM` invites one.")
        return
    # Two lines a firm: a fingerprint fills a terminal's width by itself, and must be readable whole.
    out = terminal()
    for row in rows:
        colour = {FirmStatus.APPROVED: "green", FirmStatus.REVOKED: "red"}.get(row.status, "yellow")
        connected = "connected" if row.connected_since else "not connected"
        out.print(f"[bold]{row.name}[/]  [{colour}]{row.status.value}[/]  [dim]{connected}[/]")
        out.print(f"  {grouped(row.identity_fingerprint) if row.identity_fingerprint else 'has not joined yet'}")
        if row.link_refusal:
            out.print(f"  [yellow]its agent was refused:[/] {escape(row.link_refusal)}")
        if row.name in breaks:
            out.print(
                f"  [yellow]its ledger was broken off[/] ({breaks[row.name]} so far): docs/ledger.md says by what"
            )


def approve(
    firm: FirmArgument,
    home: HomeOption,
    fingerprint: Annotated[
        str | None, typer.Option(help="The firm's identity fingerprint, as its people read it to you.")
    ] = None,
) -> None:
    """Approve a firm that has joined, once its fingerprint was compared with the firm's people."""
    with opened(home) as (_, settings, store):
        with store.reading() as tx:
            known = tx.firms.get(firm).identity_fingerprint
        if known is None:
            raise StoreConflictError(f"{firm} has not joined yet: its administrator runs `dure-agent join` first")
        operator = Operator(store, settings.enrolment_url, actor())
        operator.approve(firm, fingerprint if fingerprint is not None else _compared(firm, known))
    terminal().print(f"[green]✓[/] {firm} is approved and may use the link.")


def revoke(
    firm: FirmArgument,
    home: HomeOption,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Shut a firm out, from its next request on. It can be invited again."""
    with opened(home) as (_, settings, store):
        with store.reading() as tx:
            tx.firms.get(firm)
        if not yes and not (sys.stdin.isatty() and typer.confirm(f"Shut {firm} out of the consortium now?")):
            raise SettingsError(f"{firm} was not revoked: confirm, or give --yes")
        Operator(store, settings.enrolment_url, actor()).revoke(firm)
    terminal().print(f"[green]✓[/] {firm} is revoked.")


def _compared(firm: str, known: str) -> str:
    """Let a person compare. Raises SettingsError without one."""
    if not sys.stdin.isatty():
        raise SettingsError(
            f"approve {firm} with --fingerprint and the digits that its people read to you; "
            "`dure-agent status` shows them at the firm"
        )
    out = terminal()
    out.print(f"{firm} joined with this identity:\n  [bold]{grouped(known)}[/]\n")
    if not typer.confirm("Did the firm's people read the same 64 digits to you, over another way?"):
        raise SettingsError(f"{firm} was not approved. If the digits differ, run `dure-server revoke {firm}`")
    return known


def _life(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,5})([mhd])", text)
    if match is None:
        raise SettingsError(f"--expires {text!r} is no span of time: write 7d, 12h or 30m")
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def _firm(row: Firm) -> dict[str, str | None]:
    times = {name: getattr(row, name) for name in ("invited_at", "joined_at", "approved_at", "connected_since")}
    return {
        "name": row.name,
        "status": row.status.value,
        "identity_fingerprint": row.identity_fingerprint,
        "identity_key": row.identity_key.hex() if row.identity_key else None,
        "agent_version": row.agent_version,
        "link_refusal": row.link_refusal,
        **{name: value.isoformat() if value else None for name, value in times.items()},
    }
