"""`dure-agent leave`: stop taking part in a job, or in the consortium, for good."""

import os
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from dure_client import leaving
from dure_client.commands.join import HomeOption
from dure_client.health import Health, read_health
from dure_client.home import AgentHome, HomeError
from dure_client.jobs.approvals import known_job
from dure_client.ledger import Ledger
from dure_client.link.client import LinkClient
from dure_client.link.errors import LinkError
from dure_protocols.errors import DureError
from dure_protocols.leaving import Leave, LeaveReceipt, told_runs

POLL_SECONDS = 0.1
PAGE_SECONDS = 5.0
"""How long the firm's page waits for the server's receipt."""


def leave(
    home: HomeOption,
    job: Annotated[str, typer.Argument(help="The job's id, as `dure-agent jobs` lists it.")] = "",
    consortium: Annotated[bool, typer.Option("--consortium", help="Leave everything, and erase this firm's keys.")] = (
        False
    ),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="How long to try to reach the server.")] = 15.0,
) -> None:
    """Leave a job, or with --consortium everything: stops now, erases keys, tells the server. Cannot be taken back."""
    if bool(job) is consortium:
        raise HomeError("name the job to leave, or --consortium to leave everything")
    agent_home, out = AgentHome(home), Console(highlight=False, soft_wrap=True)
    told = leaving.stored_receipt(agent_home, job)
    if told is not None:
        if told.leave.is_about_consortium and not _agent_runs(agent_home):
            leaving.erase_keys(agent_home)
        _print_receipt(agent_home, told, out)
        return
    config = agent_home.config()
    if job:
        known_job(agent_home, job)
    _print_remains(agent_home, [job] if job else agent_home.job_names(), out)
    what = f"job {job}" if job else f"the consortium {config.consortium}; this firm's keys will be erased"
    if not yes and not leaving.leave_file(agent_home, job).exists():
        typer.confirm(f"Leave {what}? This cannot be taken back.", abort=True)
    statement = leaving.declare(agent_home, job, datetime.now(UTC))
    out.print(f"[green]✓[/] Left {escape(what)}: nothing of it is answered or computed here any more.")
    receipt = _tell(agent_home, statement, seconds, out)
    if receipt is None:
        out.print(
            "[yellow]The server has not heard of it yet.[/] The agent tells it when it is reachable "
            "(`dure-agent run`), or repeat this command. Nothing leaves meanwhile but that statement."
        )
        return
    _print_receipt(agent_home, receipt, out)


def leave_job(home: AgentHome, job: str, seconds: float = PAGE_SECONDS) -> str:
    """Leave a job as the command does. Returns how it went, in a sentence; called by the firm's page.

    Raises LeavingError, HomeError, ApprovalError.
    """
    receipt = _tell(home, leaving.declare(home, job, datetime.now(UTC)), seconds, Console(quiet=True))
    if receipt is None:
        return f"This firm left {job}. The server hears of it once it is reachable and the agent runs."
    num_sums = sum(part.num_sums for part in receipt.parts)
    return f"This firm left {job}, and the server has receipted it. {num_sums} published sums hold its updates."


def _tell(home: AgentHome, statement: Leave, seconds: float, out: Console) -> LeaveReceipt | None:
    """Have it carried out: by the agent that runs here, or by this process."""
    if _agent_runs(home):
        out.print("[dim]The agent that runs here gives up what it is doing and tells the server.[/]")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            receipt = leaving.stored_receipt(home, statement.job)
            if receipt is not None and not leaving.must_erase_keys(home):
                return receipt
            time.sleep(POLL_SECONDS)
        return leaving.stored_receipt(home, statement.job)
    for job in leaving.left_jobs(home):
        leaving.erase_job(home, job)
    out.print("[green]✓[/] Its keys are erased.")
    if not home.has_joined:  # on a SuperLink, which has no way to be told; the operator sees the refusals
        return None
    try:
        return _send(home, statement, seconds)
    except (LinkError, DureError) as error:
        out.print(f"[yellow]{escape(str(error))}[/]")
        return None


def _agent_runs(home: AgentHome) -> bool:
    return home.has_joined and read_health(home, datetime.now(UTC)) is not Health.NOT_RUNNING


def _send(home: AgentHome, statement: Leave, seconds: float) -> LeaveReceipt:
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(home.ledger_file, home.identity()))
        link = LinkClient(home.config().route(os.environ), home.keys, ledger)
        stack.callback(link.close)
        return leaving.conclude(home, statement, link.leave(statement.encode(), seconds))


def _print_remains(home: AgentHome, jobs: list[str], out: Console) -> None:
    """By the firm's own account. One that cannot be given keeps nobody from leaving."""
    try:
        remains = leaving.what_remains(home, jobs)
    except (DureError, OSError) as error:
        out.print(f"[yellow]What remains cannot be told from the ledger:[/] {escape(str(error))}. The server's receipt")
        out.print("lists the published sums that hold this firm's updates.")
        remains = []
    for one in remains:
        out.print(f"[bold]{one.job}[/]")
        out.print(f"  Remains, and cannot be taken back: what was released in rounds {told_runs(one.opened)}.")
        if one.uploaded and one.mode != "retry":
            out.print(f"  The others may have opened sums of rounds {told_runs(one.uploaded)}, too (threshold mode).")
        elif one.uploaded:
            out.print(f"  Uploaded under masks and never opened: rounds {told_runs(one.uploaded)}.")
    out.print(
        "[dim]In these sums this firm's updates are added to those of others, and with them in every model computed "
        "since. Elsewhere there are besides: this firm's signed messages, and masked vectors, if somebody kept them; "
        "the keys to those masks are erased here. Rows, single updates and counts never left. Data, models and ledger "
        "stay on this machine.[/]"
    )


def _print_receipt(home: AgentHome, receipt: LeaveReceipt, out: Console) -> None:
    out.print(f"[green]✓[/] The server has receipted it on {leaving.when(receipt.at)}.")
    for part in receipt.parts:
        out.print(
            f"  {part.job}: {part.num_sums} published sums hold this firm's update: rounds {told_runs(part.rounds)}."
        )
    if receipt.leave.is_about_consortium:
        out.print("  This firm's certificate is revoked.")
        if leaving.must_erase_keys(home):
            out.print("  [yellow]Its keys are not erased yet[/]: the agent tries again, and its log says what failed.")
        else:
            out.print("  Its keys are erased here.")
    out.print("[dim]Both sides keep the statement and the receipt.[/]")
