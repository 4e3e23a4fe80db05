"""`dure-agent ledger show|verify|export`: what left this firm, and whether the account of it holds."""

from collections import deque
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dure_client.commands.join import HomeOption
from dure_client.home import AgentHome, HomeError
from dure_client.leaving import check_is_member
from dure_client.ledger import Totals, read_records
from dure_client.ledger_export import (
    Export,
    ExportError,
    check_target,
    countersigned_in,
    export,
    verify_export,
    verify_own,
)
from dure_client.ledger_page import page
from dure_protocols.certificates import certificate_der
from dure_protocols.identity import grouped
from dure_protocols.ledger import LedgerRecord, RecordKind

app = typer.Typer(no_args_is_help=True, help="What left this firm, record by record.")


def _out() -> Console:
    return Console(highlight=False, soft_wrap=True)


@app.command()
def show(
    home: HomeOption,
    job: Annotated[str, typer.Option("--job", help="Only what belongs to this job.")] = "",
    last: Annotated[int, typer.Option("--last", min=0, help="How many records to list; 0 for sums only.")] = 20,
) -> None:
    """List the newest records, and the sums by kind and by job."""
    totals, newest = Totals(), deque[LedgerRecord](maxlen=last)
    for record in read_records(AgentHome(home).ledger_file):
        if not job or record.entry.job == job:
            totals.add(record)
            newest.append(record)
    out = _out()
    if newest:
        out.print(_records(newest))
    out.print(_sums(totals))


def _records(records: deque[LedgerRecord]) -> Table:
    table = Table("No.", "Time (UTC)", "Kind", "Bytes", "Job", "Round", "SHA-256", box=None, header_style="dim")
    for record in records:
        entry = record.entry
        round_text = f"{entry.round}.{entry.attempt}" if entry.job else ""
        size = f"-{entry.size_bytes:,}" if entry.kind is RecordKind.NOT_SENT else f"{entry.size_bytes:,}"
        table.add_row(
            *(str(record.number), record.time[:19].replace("T", " "), entry.kind.value, size),
            *(escape(entry.job), round_text, entry.sha256.hex()[:12]),
        )
    table.columns[3].justify = "right"
    return table


def _sums(totals: Totals) -> Table:
    table = Table("What left", "Records", "Bytes", box=None, header_style="dim")
    for kind in sorted(totals.num_by_kind):
        table.add_row(kind.value, f"{totals.num_by_kind[kind]:,}", f"{totals.bytes_by_kind[kind]:,}")
    for job in sorted(totals.bytes_by_job):
        rounds = [number for name, number in totals.bytes_by_round if name == job]
        table.add_row(f"[dim]of which job {escape(job)}, {len(rounds)} sums[/]", "", f"{totals.bytes_by_job[job]:,}")
    table.add_row("[bold]in all[/]", f"{totals.num_records:,}", f"[bold]{totals.sent_bytes:,}[/]")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


@app.command()
def verify(
    home: HomeOption,
    file: Annotated[Path | None, typer.Argument(help="An exported ledger; without it, this firm's own.")] = None,
    fingerprint: Annotated[
        str, typer.Option("--fingerprint", help="Of the firm whose export it is, as you know it from that firm.")
    ] = "",
    root_fingerprint: Annotated[
        str, typer.Option("--root-fingerprint", help="Of the consortium, as its agreement gives it.")
    ] = "",
    witness: Annotated[
        list[Path] | None,
        typer.Option("--witness", help="Another firm's export: what it keeps of this one must be in the ledger."),
    ] = None,
) -> None:
    """Check the whole chain: every record, its place, its signature, and what others were told of it.

    An export is checked with nothing but the fingerprints: no home, no network.
    """
    if file is None:
        agent_home = AgentHome(home)
        check_is_member(agent_home)
        found = verify_own(agent_home.ledger_file, agent_home.config().firm, agent_home.identity(), _root(agent_home))
        whose = "This firm's ledger"
    else:
        if not fingerprint:
            raise typer.BadParameter(
                "give --fingerprint of the firm that exported it: without it, anybody's would pass"
            )
        held = [each for path in witness or () for each in countersigned_in(path)]
        found, whose = verify_export(file, fingerprint, root_fingerprint, held), str(file)
    _tell(found, whose, has_root=file is None or bool(root_fingerprint))
    if any(doubt.startswith(f"{found.firm}:") for doubt in found.doubts):
        raise typer.Exit(1)


def _tell(found: Export, whose: str, *, has_root: bool) -> None:
    out = _out()
    head, totals = found.head, found.totals
    out.print(f"[green]✓[/] {escape(whose)} holds: {head.number:,} records, {totals.sent_bytes:,} bytes left.")
    out.print(f"Its end, to note down and compare later: {head.number} · {grouped(head.hash.hex())}")
    own = found.countersigned
    if own is None:
        out.print("The server has countersigned none of it yet.")
    elif has_root:
        out.print(f"The server countersigned it up to record {own.statement.head.number:,} on {own.time}.")
    else:
        out.print(
            f"[yellow]![/] Record {own.statement.head.number:,} is countersigned by the root "
            f"{grouped(found.root_fingerprint)}; give --root-fingerprint to check that this is the consortium's."
        )
    for other in found.others:
        out.print(f"It keeps of {other.firm}: record {other.statement.head.number:,}, countersigned on {other.time}.")
    for doubt in found.doubts:
        out.print(f"[red]✗[/] {escape(doubt)}")


@app.command("export")
def export_to(
    file: Annotated[Path, typer.Argument(help="Where to write it; a page for people comes beside it, as .html.")],
    home: HomeOption,
) -> None:
    """Write the ledger as one file that anybody who knows the fingerprints can check offline, and a page about it."""
    agent_home = AgentHome(home)
    check_is_member(agent_home)
    check_target(agent_home.ledger_file, file)
    if file.suffix.lower() == ".html":
        raise ExportError(f"{file} is where the page about it will be: name a file that does not end in .html")
    page_file = file.with_suffix(".html")
    check_target(agent_home.ledger_file, page_file)
    made = export(agent_home.ledger_file, file, agent_home.config().firm, agent_home.identity(), _root(agent_home))
    page_file.write_text(page(made, file.name), encoding="utf-8")
    out = _out()
    out.print(
        f"[green]✓[/] {made.head.number:,} records are in {escape(str(file))}; {escape(str(page_file))} sums them up. "
        "To check it elsewhere:"
    )
    command = (
        f'  dure-agent ledger verify {escape(str(file))} --fingerprint "{grouped(agent_home.identity().fingerprint)}"'
    )
    if made.root_fingerprint:
        command += f' --root-fingerprint "{grouped(made.root_fingerprint)}"'
    out.print(command)


def _root(home: AgentHome) -> bytes:
    try:
        return certificate_der(home.root_file.read_bytes())
    except OSError as error:
        raise HomeError(f"{home.root_file} cannot be read: run `dure-agent join` first") from error
