"""`dure-agent ledger show|verify|export`: what left this firm, and whether the account of it holds."""

from collections import deque
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dure_client.commands.join import HomeOption
from dure_client.home import AgentHome
from dure_client.ledger import Totals, export, read_records, verify_export, verify_file
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
        table.add_row(f"[dim]of which job {escape(job)}, {len(rounds)} rounds[/]", "", f"{totals.bytes_by_job[job]:,}")
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
) -> None:
    """Check the whole chain: every record, its place, its signature, and the end that was noted."""
    if file is None:
        agent_home = AgentHome(home)
        verified = verify_file(agent_home.ledger_file, agent_home.identity().public_bytes)
        whose = "This firm's ledger"
    else:
        if not fingerprint:
            raise typer.BadParameter(
                "give --fingerprint of the firm that exported it: without it, anybody's would pass"
            )
        verified = verify_export(file, fingerprint)
        whose = str(file)
    out = _out()
    out.print(
        f"[green]✓[/] {escape(whose)} holds: {verified.head.number:,} records, {verified.sent_bytes:,} bytes left."
    )
    out.print(f"Its end, to note down and compare later: {verified.head.number} · {grouped(verified.head.hash.hex())}")


@app.command("export")
def export_to(
    file: Annotated[Path, typer.Argument(help="Where to write it.")],
    home: HomeOption,
) -> None:
    """Write the ledger as one file that anybody who knows this firm's fingerprint can check offline."""
    agent_home = AgentHome(home)
    head = export(agent_home.ledger_file, file, agent_home.config().firm, agent_home.identity())
    own = grouped(agent_home.identity().fingerprint)
    out = _out()
    out.print(f"[green]✓[/] {head.number:,} records are in {escape(str(file))}. To check it elsewhere:")
    out.print(f'  dure-agent ledger verify {escape(str(file))} --fingerprint "{own}"')
