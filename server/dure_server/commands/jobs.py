"""`dure-server job propose | start | pause | resume | stop | set | list | show`: the life of a job (design, 6)."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from dure_protocols.job import JobFile
from dure_server.commands.common import HomeOption, JsonOption, actor, opened, terminal
from dure_server.operation import changed_operation
from dure_server.store import JobState, RoundState
from dure_server.store.tables import Job
from dure_server.store.timeline import happening_of

app = typer.Typer(help="Propose, start, watch and stop training jobs.", no_args_is_help=True)
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]
_Seconds = Annotated[
    float | None, typer.Option(help="Longest wait for an answer in this phase; 0: the job's phase_seconds.")
]
_COLOURS = {JobState.RUNNING: "green", JobState.FINISHED: "green", JobState.FAILED: "red", JobState.STOPPED: "red"}


def mount(parent: typer.Typer) -> None:
    """Add `job` to the commands of `dure-server`."""
    parent.add_typer(app, name="job")


@app.command()
def propose(
    draft: Annotated[Path, typer.Argument(metavar="DRAFT", help="The job's draft, a TOML file; see docs/jobs.md.")],
    home: HomeOption,
) -> None:
    """Make a job file from a draft: its digest is fixed from here on, and it is what every firm approves."""
    from dure_server.jobs import propose as propose_job  # noqa: PLC0415  # loads the model, and so torch

    with opened(home) as (server_home, _, store):
        job = propose_job(server_home, store, draft, actor())
    out = terminal()
    out.print(f"[green]✓[/] Job [bold]{job.id}[/] is proposed to {', '.join(sorted(job.firms))}.")
    out.print(f"  digest {job.digest().hex()}")
    out.print(f"`dure-server job start {job.id}` asks the firms to approve it and trains when all have.")


@app.command()
def start(job: JobArgument, home: HomeOption) -> None:
    """Start a proposed job, or go on with a paused or failed one. Training begins when every firm has approved."""
    _set(home, job, JobState.RUNNING, "started")


@app.command()
def pause(job: JobArgument, home: HomeOption) -> None:
    """Pause a running job, at any moment; `resume` goes on from its last finished phase."""
    _set(home, job, JobState.PAUSED, "paused")


@app.command()
def resume(job: JobArgument, home: HomeOption) -> None:
    """Go on with a paused job: the same as `start`."""
    _set(home, job, JobState.RUNNING, "resumed")


@app.command(name="set")
def set_operation(
    job: JobArgument,
    home: HomeOption,
    quorum: Annotated[int | None, typer.Option(help="Fewest firms to begin an attempt with; 0: as agreed on.")] = None,
    join_seconds: _Seconds = None,
    update_seconds: _Seconds = None,
    vote_seconds: _Seconds = None,
    release_seconds: _Seconds = None,
    diverged_factor: Annotated[
        float | None, typer.Option(help="Stop when the selection metric is this many times its best …")
    ] = None,
    diverged_rounds: Annotated[
        int | None, typer.Option(help="… for so many rounds on end; 0 never stops for it.")
    ] = None,
    keep_sums: Annotated[
        bool | None, typer.Option("--keep-sums/--drop-sums", help="Whether published sums outlive their use.")
    ] = None,
) -> None:
    """Change how a job is run, from its next attempt on. Nothing that the firms agreed on changes."""
    asked = {
        "quorum": quorum,
        "join_seconds": join_seconds,
        "update_seconds": update_seconds,
        "vote_seconds": vote_seconds,
        "release_seconds": release_seconds,
        "diverged_factor": diverged_factor,
        "diverged_rounds": diverged_rounds,
        "keep_sums": keep_sums,
    }
    changes = {name: value for name, value in asked.items() if value is not None}
    with opened(home) as (_, _, store), store.transaction() as at:
        row = at.jobs.get(job)
        operation = changed_operation(JobFile.from_bytes(row.body), row.operation, changes)
        at.jobs.set_operation(job, operation.model_dump(exclude_defaults=True))
        if changes:
            at.audit.append(actor(), "job.set", job, {name: str(value) for name, value in changes.items()})
    told = ", ".join(f"{name} {value}" for name, value in operation.model_dump(exclude_none=True).items())
    terminal().print(f"[green]✓[/] Job {job} is run with {told}.")


@app.command()
def stop(job: JobArgument, home: HomeOption) -> None:
    """Stop a job for good. What was published stays."""
    _set(home, job, JobState.STOPPED, "stopped")


@app.command(name="list")
def list_jobs(home: HomeOption, as_json: JsonOption = False) -> None:
    """List the jobs, newest first."""
    with opened(home) as (_, _, store), store.reading() as at:
        jobs = at.jobs.all()
    if as_json:
        print(json.dumps([{"id": job.id, "title": job.title, "state": job.state.value} for job in jobs]))
        return
    if not jobs:
        terminal().print("No job yet. `dure-server job propose DRAFT` makes one.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("Job", "State", "Title"):
        table.add_column(title, no_wrap=True)
    for row in jobs:
        table.add_row(row.id, _coloured(row), escape(row.title))
    terminal().print(table)


@app.command()
def show(
    job: JobArgument,
    home: HomeOption,
    as_json: JsonOption = False,
    timeline: Annotated[bool, typer.Option("--timeline", help="Show what happened, in order, instead.")] = False,
) -> None:
    """Show a job: its state, what it waits for, and its rounds."""
    if timeline:
        _show_timeline(home, job, as_json)
        return
    with opened(home) as (_, _, store), store.reading() as at:
        row, rounds, progress = at.jobs.get(job), at.rounds.of(job), at.progress.get(job)
    done = [entry for entry in rounds if entry.state is RoundState.FINISHED]
    if as_json:
        waiting = progress.waiting_for if progress else []
        print(
            json.dumps(
                {
                    "id": row.id,
                    "state": row.state.value,
                    "reason": row.reason,
                    "digest": row.digest,
                    "sentence": progress.sentence if progress else "",
                    "waiting_for": waiting,
                    "rounds": [
                        {"number": e.number, "members": e.summed, "count": e.count, "metrics": e.metrics} for e in done
                    ],
                }
            )
        )
        return
    out = terminal()
    out.print(f"[bold]{row.id}[/] {escape(row.title)} — {_coloured(row)} {escape(row.reason)}")
    out.print(f"digest {row.digest}, {len(JobFile.from_bytes(row.body).firms)} firms")
    if progress is not None and row.state is JobState.RUNNING:  # else it is where the job once stood
        out.print(escape(progress.sentence))
    for entry in done:
        values = ", ".join(f"{name} {value:.4g}" for name, value in entry.metrics.items())
        what = _round_name(entry.number, row.num_rounds)
        rows_seen = f", {entry.count:.0f} rows" if 1 <= entry.number <= row.num_rounds and entry.count else ""
        out.print(f"  {what}: {len(entry.members)} firms{rows_seen}  {values}")


def _show_timeline(home: Path, job: str, as_json: bool) -> None:
    with opened(home) as (_, _, store), store.reading() as at:
        row = at.jobs.get(job)
        events = at.timeline.of(job)
    if as_json:
        print(json.dumps([{"at": event.at.isoformat(), **asdict(happening_of(event))} for event in events]))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for event in events:
        what = "" if event.round_number is None else _round_name(event.round_number, row.num_rounds)
        attempt = f", attempt {event.attempt}" if what and event.attempt and event.attempt > 1 else ""
        table.add_row(f"[dim]{event.at:%Y-%m-%d %H:%M:%S}[/]", what + attempt, escape(happening_of(event).sentence))
    terminal().print(table if events else "Nothing has happened yet.")


def _set(home: Path, job: str, state: JobState, act: str) -> None:
    with opened(home) as (_, _, store), store.transaction() as at:
        at.jobs.set_state(job, state)
        at.audit.append(actor(), f"job.{act}", job)
    terminal().print(f"[green]✓[/] Job {job} is {act}.")


def _round_name(number: int, num_rounds: int) -> str:
    if number == 0:
        return "statistics"
    return f"round {number}" if number <= num_rounds else "closing"


def _coloured(row: Job) -> str:
    return f"[{_COLOURS.get(row.state, 'yellow')}]{row.state.value}[/]"
