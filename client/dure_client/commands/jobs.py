"""`dure-agent jobs`, `review`, `approve`, `reject`, `accept`: what this firm takes part in, and with whom."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dure_client.absence import local_now, pause_in_force
from dure_client.commands.join import HomeOption
from dure_client.commands.models import SourceOption, print_package
from dure_client.home import AgentHome, write_file
from dure_client.jobs import review as deciding
from dure_client.jobs.approvals import KnownJob, known_job, known_jobs
from dure_client.jobs.refusals import last_refusal
from dure_client.jobs.results import JobResult, ResultError
from dure_client.packages.shelf import PackageShelf
from dure_client.policy import pin_firm, read_text
from dure_models.contract import DataContract
from dure_protocols.identity import fingerprint as fingerprint_of
from dure_protocols.identity import grouped, same_fingerprint
from dure_protocols.job import JobFile

JobArgument = Annotated[str, typer.Argument(help="The job's id, as `dure-agent jobs` lists it.")]
PackageOption = Annotated[str, typer.Option("--package", help="The model package's digest, where several fit the job.")]
_COLOURS = {"approved": "green", "running": "green", "finished": "green", "rejected": "red", "left": "red"}


def _out() -> Console:
    return Console(highlight=False, soft_wrap=True)


def jobs(home: HomeOption) -> None:
    """List the jobs that the operator proposed, and where each stands here."""
    agent_home, out = AgentHome(home), _out()
    found = known_jobs(agent_home)
    if not found:
        out.print("No job has been proposed to this firm yet. It learns of jobs while `dure-agent run` is connected.")
        return
    table = Table("Job", "Title", "Model", "Firms", "State", box=None, header_style="dim")
    for known in found:
        job, state = known.job, known.state
        progress = f" (round {known.next_round} of {job.rounds})" if state == "running" else ""
        coloured = f"[{_COLOURS.get(state, 'yellow')}]{state}[/]{progress}"
        table.add_row(job.id, escape(job.title), escape(job.model.name), str(len(job.firms)), coloured)
    out.print(table)
    for name in (None, *(known.job.id for known in found)):
        paused = pause_in_force(agent_home, name, local_now())
        if paused is not None:
            end = f"until {paused.until.astimezone():%Y-%m-%d %H:%M}" if paused.until else "until `dure-agent resume`"
            out.print(f"[yellow]{name or 'Every job'} is paused here {end}.[/]")
    for known in found:
        _print_refusal(agent_home, known, out)
        _print_result(agent_home, known, out)


def review(job: JobArgument, home: HomeOption, source: SourceOption = False, package: PackageOption = "") -> None:
    """Show what a job asks of this firm, the model package it would run, and whether the policy would admit it."""
    agent_home = AgentHome(home)
    known = known_job(agent_home, job)
    _print_review(agent_home, deciding.review(agent_home, known, package), _out(), source=source)


def approve(
    job: JobArgument,
    home: HomeOption,
    digest: Annotated[
        str, typer.Option("--digest", help="The job file's digest, as reviewed; without it you are asked.")
    ] = "",
    package: PackageOption = "",
) -> None:
    """Say yes to a job file and its model package, exactly as they are now. Refused if the policy does not admit it."""
    agent_home, out = AgentHome(home), _out()
    if digest:
        found = deciding.reviewed(agent_home, job, digest, package)
    else:
        found = deciding.review(agent_home, known_job(agent_home, job), package)
        if found.refusal is None:
            _print_review(agent_home, found, out)
            typer.confirm("Take part in this job?", abort=True)
    deciding.approve(agent_home, found, datetime.now(UTC))
    out.print(f"[green]✓[/] {job} is approved. A running agent takes it up by itself; otherwise `dure-agent run`.")


def reject(job: JobArgument, home: HomeOption) -> None:
    """Say no to a job and to running its model package for it. `approve` takes that back."""
    deciding.reject(AgentHome(home), job, datetime.now(UTC))
    _out().print(f"{job} is rejected; the operator sees that this firm will not take part.")


def accept(
    firm: Annotated[str, typer.Argument(help="The other firm's name in the consortium.")],
    fingerprint: Annotated[str, typer.Argument(help="Its identity fingerprint, as its own people told you.")],
    home: HomeOption,
    replace: Annotated[bool, typer.Option("--replace", help="The firm confirmed that it has a new key.")] = False,
) -> None:
    """Accept another firm by the fingerprint of its identity key, compared over a way of your own."""
    agent_home, out = AgentHome(home), _out()
    file = agent_home.policy_file
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(file, pin_firm(read_text(file), firm, fingerprint, replace=replace).encode())
    out.print(f"[green]✓[/] {firm} is accepted. Jobs with it pass if they give it exactly this key.")
    for known in known_jobs(agent_home):
        key = known.job.identities().get(firm)
        if key is None:
            out.print(f"[yellow]The job {known.job.id} has no firm {firm}[/]: {', '.join(sorted(known.job.firms))}.")
        elif not same_fingerprint(fingerprint, fingerprint_of(key)):
            out.print(f"[yellow]The job {known.job.id} gives {firm} another key[/], {grouped(fingerprint_of(key))}.")


def _print_refusal(home: AgentHome, known: KnownJob, out: Console) -> None:
    """Why the agent refused something of the job last; the operator saw the code alone."""
    kept = last_refusal(home, known.job.id)
    if kept is not None:
        out.print(f"[yellow]{known.job.id}: refused on {kept.time} ({kept.code}):[/] {escape(kept.reason)}")


def _print_review(home: AgentHome, found: deciding.Review, out: Console, *, source: bool = False) -> None:
    known, job = found.known, found.known.job
    rows = Table.grid(padding=(0, 2))
    simulated = " [yellow](simulated data)[/]" if job.simulated else ""
    contract = found.contract
    for name, value in (
        ("Job", f"[bold]{job.id}[/] · {escape(job.title)}{simulated}"),
        ("Consortium", escape(job.consortium)),
        ("Digest", grouped(job.digest().hex())),
        ("State", known.state),
        ("Purpose", escape(job.purpose or "none named")),
        ("Agreement", escape(str(job.agreement or "none named"))),
        ("Model", f"{escape(job.model.name)}, {job.model.parameters:,} parameters, options {job.model.options}"),
        ("Model digest", grouped(job.model.digest)),
        ("Contract", f"{escape(contract.title)} ({contract.name}); check yours with `dure-agent data check`"),
        ("Contract digest", grouped(contract.digest())),
        ("Rounds", f"{job.rounds}, sums of at least {job.minimum_cohort} firms"),
        ("If a firm drops out", _drop_outs(job)),
        ("Travels", f"{job.codec.bits} bits a parameter before headroom, masked; rounds report {_round_metrics(job)}"),
    ):
        rows.add_row(f"[dim]{name}[/]", value)
    out.print(rows)
    out.print(_columns(contract))
    firms = Table("Firm", "Fingerprint", "Accepted here", box=None, header_style="dim")
    for member in found.members:
        vouched = f"[yellow]vouched for by {', '.join(member.vouched_by)}[/]" if member.vouched_by else "[red]no[/]"
        mark = "this firm" if member.is_this_firm else "[green]yes[/]" if member.is_accepted else vouched
        firms.add_row(member.firm, grouped(member.fingerprint), mark)
    out.print(firms)
    out.print(deciding.PRIVACY, style="dim")
    for words in found.novelties:
        out.print(f"[yellow]New here:[/] {escape(words)}")
    if found.refusal is None or found.last_refused is None or found.last_refused.reason != str(found.refusal):
        _print_refusal(home, known, out)
    if found.model.package is not None:
        print_package(PackageShelf(home.models), found.model.package, out, source=source, job=job)
    if found.refusal is not None:
        out.print(f"[red]The policy refuses it ({found.refusal.code}):[/] {escape(str(found.refusal))}")
    elif known.state in {"proposed", "rejected"}:
        out.print(f"[green]The policy admits it.[/] To take part: dure-agent approve {job.id}")
    else:
        out.print(f"[green]The policy admits it.[/] Here it is {known.state}.")


def _columns(contract: DataContract) -> Table:
    table = Table("Column", "Role", "Type", "Unit", "Range or categories", box=None, header_style="dim")
    for column in contract.columns:
        bounds = f"{column.range[0]:g} … {column.range[1]:g}" if column.range else ", ".join(column.categories)
        table.add_row(escape(column.name), column.role.value, column.type.value, escape(column.unit), escape(bounds))
    return table


def _drop_outs(job: JobFile) -> str:
    if job.threshold is None:
        return "a fresh attempt without it (retry mode)"
    return f"the others open the sum, if at least {job.threshold} of {len(job.firms)} agree (threshold mode)"


def _round_metrics(job: JobFile) -> str:
    return ", ".join(job.model.round_metrics) or "no metrics"


def _print_result(home: AgentHome, known: KnownJob, out: Console) -> None:
    try:
        result = JobResult.read(home.job_folder(known.job.id) / "result.json")
    except ResultError:
        return
    metric, alone, federated = result.primary_metric, result.alone, result.federated
    names = sorted(set(alone.test) | set(federated.test))
    table = Table(
        "On this firm's own test rows", "alone", "federated", box=None, header_style="dim", title=known.job.id
    )
    for name in names:
        table.add_row(name, _number(alone.test.get(name)), _number(federated.test.get(name)))
    decided = _number(alone.validation.get(metric)), _number(federated.validation.get(metric))
    table.add_row(f"{metric} on validation rows, which decide", *decided)
    out.print(table)
    out.print(f"Kept, as chosen on validation rows by {metric}: the {result.keeps} model.")
    if result.is_other_way_round_on_test:
        out.print("[dim]On the test rows it is the other way round: the two are close, or the rows few.[/]")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
