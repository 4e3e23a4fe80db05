"""`dure-agent pause` and `resume`: sit out for a while, in one job or in all."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dure_client import absence
from dure_client.commands.join import HomeOption
from dure_client.home import AgentHome
from dure_client.jobs.approvals import known_job

JobArgument = Annotated[str, typer.Argument(help="One job's id; all jobs without it.")]


def pause(
    home: HomeOption,
    job: JobArgument = "",
    hours: Annotated[
        float | None, typer.Option("--hours", min=0.01, help="For so long; left out: until `resume`.")
    ] = None,
) -> None:
    """Take part in no new round from now on. A round that has begun is brought to its end; the others go on."""
    agent_home = _checked(home, job)
    until = absence.local_now() + timedelta(hours=hours) if hours is not None else None
    absence.pause(agent_home, job or None, until)
    end = f"until {until:%Y-%m-%d %H:%M}" if until else f"until `dure-agent resume{f' {job}' if job else ''}`"
    _out().print(f"[green]✓[/] {job or 'Every job'} is paused here {end}. The operator sees that this firm is paused.")


def resume(home: HomeOption, job: JobArgument = "") -> None:
    """Take a pause back: this firm is in the next attempt."""
    agent_home = _checked(home, job)
    was_paused = absence.resume(agent_home, job or None)
    _out().print(f"[green]✓[/] {job or 'Every job'} goes on here." if was_paused else "Nothing was paused.")
    still = absence.pause_in_force(agent_home, None, absence.local_now()) if job else None
    if still is not None:
        _out().print("All jobs are paused besides: `dure-agent resume` takes that back.")


def _checked(home: Path, job: str) -> AgentHome:
    agent_home = AgentHome(home)
    agent_home.config()
    if job:
        known_job(agent_home, job)
    return agent_home


def _out() -> Console:
    return Console(highlight=False, soft_wrap=True)
