"""`dure-agent doctor`: what is enforced on this host, and what stands in the way, with what to do."""

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dure_client.commands.join import HomeOption
from dure_client.doctor import State, examine
from dure_client.home import AgentHome
from dure_client.trainer.sandbox import find_sandbox

_COLOURS = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}


def doctor(
    home: HomeOption,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """Try what a trainer may do on this host, and look at network, clock, certificate, disk and keys.

    Exit status: 0 if nothing failed, 1 if something did.
    """
    findings = list(examine(AgentHome(home), find_sandbox(), datetime.now(UTC), os.environ))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        table = Table.grid(padding=(0, 2))
        for finding in findings:
            advice = f"\n[dim]→ {escape(finding.advice)}[/]" if finding.advice else ""
            state = f"[{_COLOURS[finding.state]}]{finding.state:4}[/]"
            table.add_row(state, finding.name, escape(finding.text) + advice)
        Console(highlight=False).print(table)
    raise typer.Exit(any(finding.state is State.FAIL for finding in findings))
