"""`dure-agent vouch | vouches`: one firm's word for another's key."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dure_client.commands.join import HomeOption
from dure_client.home import AgentHome, write_file
from dure_client.policy import Policy, pin_firm
from dure_client.vouches import keep_vouch, read_vouch, read_vouches
from dure_protocols.identity import fingerprint as key_fingerprint
from dure_protocols.identity import grouped
from dure_protocols.vouching import Vouch


def vouch(
    firm: Annotated[str, typer.Argument(help="The firm that you vouch for.")],
    fingerprint: Annotated[str, typer.Argument(help="Its identity fingerprint, as its own people told you.")],
    home: HomeOption,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Where to write it; FIRM-by-YOU.vouch without.")
    ] = None,
) -> None:
    """Sign that a firm has this fingerprint, for firms that accept this one. Hand them the file; it is no secret."""
    agent_home = AgentHome(home)
    config = agent_home.config()
    pinned = pin_firm("", firm, fingerprint)  # checks both words
    made = Vouch.make(config.consortium, firm, Policy.parse(pinned).firms[firm], config.firm, agent_home.identity())
    file = out_file or Path(f"{firm}-by-{config.firm}.vouch")
    write_file(file, made.to_text().encode("ascii"), mode=0o644)
    out = Console(highlight=False, soft_wrap=True)
    out.print(f"[green]✓[/] {escape(str(file))} is written: hand it to the firms that are to take {firm}.")


def vouches(
    home: HomeOption,
    files: Annotated[list[Path] | None, typer.Argument(help="Vouches to take in, as other firms sent them.")] = None,
) -> None:
    """Take vouches in, and list those that are here and which of them count."""
    agent_home, out = AgentHome(home), Console(highlight=False, soft_wrap=True)
    for file in files or []:
        keep_vouch(agent_home, read_vouch(file))
    policy = Policy.read(agent_home.policy_file)
    table = Table("Firm", "Fingerprint", "Vouched by", "Counts", box=None, header_style="dim")
    for each in read_vouches(agent_home):
        counts = policy.firms.get(each.voucher) == key_fingerprint(each.voucher_key) and each.voucher != each.firm
        mark = "[green]yes[/]" if counts else f"[yellow]no: {each.voucher} is not accepted here with that key[/]"
        table.add_row(each.firm, grouped(each.fingerprint.hex()), each.voucher, mark)
    out.print(table if table.row_count else "[dim]No vouch was taken in yet.[/]")
    out.print(
        f"policy.toml asks for {policy.vouchers_needed} of them for a firm that is not accepted here."
        if policy.vouchers_needed
        else "[dim]policy.toml asks for none: vouchers_needed is 0, so no vouch counts.[/]"
    )
