"""`dure-agent jobs`, `review`, `approve`, `reject`, `accept`: what this firm takes part in, and with whom."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dure_client.absence import local_now, pause_in_force
from dure_client.commands.join import HomeOption
from dure_client.commands.models import SourceOption, approve_package, print_package
from dure_client.consent import novelties
from dure_client.home import AgentHome, write_file
from dure_client.jobs.approvals import KnownJob, Verdict, approved_by_people, decide, known_job, known_jobs
from dure_client.jobs.refusals import last_refusal
from dure_client.jobs.results import JobResult, ResultError
from dure_client.packages.admission import JobModel, job_model
from dure_client.packages.shelf import PackageShelf
from dure_client.policy import PackageStanding, Policy, PolicyError, check_job, pin_firm, read_text
from dure_client.vouches import read_vouches
from dure_models import registry
from dure_models.contract import DataContract
from dure_models.digest import model_digest
from dure_models.errors import UnknownModelError
from dure_protocols.errors import RefusedError
from dure_protocols.identity import fingerprint, grouped, same_fingerprint
from dure_protocols.job import JobFile
from dure_protocols.vouching import vouchers

JobArgument = Annotated[str, typer.Argument(help="The job's id, as `dure-agent jobs` lists it.")]
PackageOption = Annotated[str, typer.Option("--package", help="The model package's digest, where several fit the job.")]
_COLOURS = {"approved": "green", "running": "green", "finished": "green", "rejected": "red", "left": "red"}


def installed_models() -> dict[str, str]:
    """Name to digest of every model that is installed here whole. Imports none of them."""
    found = {}
    for name in registry.names():
        try:
            found[name] = model_digest(name)
        except UnknownModelError:  # announced twice, or not as a folder: as good as not there
            continue
    return found


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
    _print_review(agent_home, known, _model(agent_home, known, package), _out(), source=source)


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
    known = known_job(agent_home, job)
    own = known.job.digest().hex()
    if digest and not same_fingerprint(digest, own):
        raise PolicyError(
            f"job {job!r} has the digest {grouped(own)}, not {digest}: it is not the job file you reviewed. "
            f"Run `dure-agent review {job}` again"
        )
    model = _model(agent_home, known, package)
    if digest and model.package is not None and not package:
        raise PolicyError(f"job {job!r} runs a model package: name the one you reviewed, --package {model.package}")
    check_known(agent_home, known, model)
    if not digest:
        _print_review(agent_home, known, model, out)
        typer.confirm("Take part in this job?", abort=True)
    if model.package is not None:
        approve_package(agent_home, model.package, Policy.read(agent_home.policy_file))
    decide(agent_home, known.job, Verdict.APPROVED, datetime.now(UTC), package=model.package)
    out.print(f"[green]✓[/] {job} is approved. A running agent takes it up by itself; otherwise `dure-agent run`.")


def reject(job: JobArgument, home: HomeOption) -> None:
    """Say no to a job and to running its model package for it. `approve` takes that back."""
    agent_home = AgentHome(home)
    decide(agent_home, known_job(agent_home, job).job, Verdict.REJECTED, datetime.now(UTC))
    _out().print(f"{job} is rejected; the operator sees that this firm will not take part.")


def accept(
    firm: Annotated[str, typer.Argument(help="The other firm's name in the consortium.")],
    fingerprint: Annotated[str, typer.Argument(help="Its identity fingerprint, as its own people told you.")],
    home: HomeOption,
    replace: Annotated[bool, typer.Option("--replace", help="The firm confirmed that it has a new key.")] = False,
) -> None:
    """Accept another firm by the fingerprint of its identity key, compared over a way of your own."""
    file = AgentHome(home).policy_file
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(file, pin_firm(read_text(file), firm, fingerprint, replace=replace).encode())
    _out().print(f"[green]✓[/] {firm} is accepted. Jobs with it pass if they give it exactly this key.")


def _print_refusal(home: AgentHome, known: KnownJob, out: Console) -> None:
    """Why the agent refused something of the job last; the operator saw the code alone."""
    kept = last_refusal(home, known.job.id)
    if kept is not None:
        out.print(f"[yellow]{known.job.id}: refused on {kept.time} ({kept.code}):[/] {escape(kept.reason)}")


def _model(home: AgentHome, known: KnownJob, package: str = "") -> JobModel:
    """The job's model as a person would approve it: of what package, if it is not installed with Dure.

    A package that was changed here is approved anew from what was fetched, so its installed files do not count.
    """
    return job_model(home, known.job, package or None, for_approval=True)


def check_known(home: AgentHome, known: KnownJob, model: JobModel | None = None) -> None:
    """Hold a job against the policy, a person's yes aside, as if its package were approved. Raises RefusedError."""
    model = model or _model(home, known)
    check_job(
        Policy.read(home.policy_file),
        known.job,
        firm=home.config().firm,
        public_key=home.identity().public_bytes,
        installed=model.installed,
        vouches=read_vouches(home),
        package=PackageStanding.APPROVED if model.package is not None else None,
    )


def _print_review(home: AgentHome, known: KnownJob, model: JobModel, out: Console, *, source: bool = False) -> None:
    job = known.job
    rows = Table.grid(padding=(0, 2))
    simulated = " [yellow](simulated data)[/]" if job.simulated else ""
    contract = DataContract.of(job.contract)
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
    policy, own, given = Policy.read(home.policy_file), home.config().firm, read_vouches(home)
    for firm, key in job.identities().items():
        pinned = policy.firms.get(firm)
        is_known = pinned is not None and pinned == fingerprint(key)
        vouching = sorted(vouchers(given, job.consortium, firm, key, policy.firms)) if pinned is None else []
        no = f"[yellow]vouched for by {', '.join(vouching)}[/]" if vouching else "[red]no[/]"
        mark = "this firm" if firm == own else "[green]yes[/]" if is_known else no
        firms.add_row(firm, grouped(fingerprint(key)), mark)
    out.print(firms)
    out.print(_PRIVACY, style="dim")
    for words in novelties(job, approved_by_people(home, but=job.id)).values():
        out.print(f"[yellow]New here:[/] {escape(words)}")
    _print_refusal(home, known, out)
    if model.package is not None:
        print_package(PackageShelf(home.models), model.package, out, source=source, job=job)
    try:
        check_known(home, known, model)
    except RefusedError as error:
        out.print(f"[red]The policy refuses it ({error.code}):[/] {escape(str(error))}")
    else:
        out.print(f"[green]The policy admits it.[/] To take part: dure-agent approve {job.id}")


def _columns(contract: DataContract) -> Table:
    table = Table("Column", "Role", "Type", "Unit", "Range or categories", box=None, header_style="dim")
    for column in contract.columns:
        bounds = f"{column.range[0]:g} … {column.range[1]:g}" if column.range else ", ".join(column.categories)
        table.add_row(escape(column.name), column.role.value, column.type.value, escape(column.unit), escape(bounds))
    return table


_PRIVACY = (
    "The server learns sums over the firms of a round: of updates, row counts and metrics. Sums are public to all "
    "members and may reveal something about rows that only one firm has; this job adds no differential privacy. When a "
    "firm drops out of a round, the difference of two sums shows how many rows it has, unless minimum_difference in "
    "policy.toml is 2. Every firm checks each sum by a tag that the server cannot make; a server and a firm together "
    "can, and steer the model. Members of the roster can poison it."
)


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
    names = sorted(set(result.alone.test) | set(result.federated.test))
    table = Table(
        "On this firm's own test rows", "alone", "federated", box=None, header_style="dim", title=known.job.id
    )
    for name in names:
        table.add_row(name, _number(result.alone.test.get(name)), _number(result.federated.test.get(name)))
    out.print(table)
    out.print(f"Kept, as chosen on validation rows by {result.primary_metric}: the {result.keeps} model.")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
