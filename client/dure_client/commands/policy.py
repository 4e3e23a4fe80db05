"""`dure-agent policy show|explain|check|init|allow`: what this firm consents to."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dure_client.commands.join import HomeOption
from dure_client.home import AgentHome, write_file
from dure_client.jobs import review
from dure_client.jobs.approvals import approved_by_people, known_job
from dure_client.jobs.review import installed_models
from dure_client.packages.shelf import PackageShelf, Shelved
from dure_client.policy import DEFAULT_TEXT, Policy, PolicyError, allow_model, read_text
from dure_client.policy_checks import check_decision, check_sandbox
from dure_client.policy_words import in_words
from dure_client.trainer.sandbox import find_sandbox
from dure_protocols.errors import RefusalCode, RefusedError
from dure_protocols.identity import grouped, same_fingerprint

app = typer.Typer(no_args_is_help=True, help="What this firm consents to (policy.toml).")


_PLAIN_FIELDS = (
    "approve_jobs",
    "minimum_cohort",
    "minimum_difference",
    "minimum_statistics_difference",
    "minimum_rows",
    "vouchers_needed",
    "allow_any_installed_model",
    "allow_native_code",
    "require_sandbox",
    "trainer_memory_gib",
    "trainer_processors",
)


def _out() -> Console:
    return Console(highlight=False, soft_wrap=True)


@app.command()
def show(home: HomeOption) -> None:
    """Print the policy in force, the allowed models and the accepted firms."""
    agent_home, out = AgentHome(home), _out()
    file = agent_home.policy_file
    policy, here = Policy.read(file), set(installed_models().items())
    here |= {
        (each.manifest.name, each.manifest.model_digest)
        for each in PackageShelf(agent_home.models).all()
        if each.approved_at
    }
    origin = str(file) if file.exists() else f"{file} does not exist: the strict default is in force"
    out.print(f"[dim]{escape(origin)}[/]")
    rows = Table.grid(padding=(0, 2))
    for name in _PLAIN_FIELDS:
        rows.add_row(f"[dim]{name}[/]", str(getattr(policy, name)).lower())
    rows.add_row("[dim]gpu_devices[/]", escape(", ".join(map(str, policy.gpu_devices))) or "none")
    rows.add_row("[dim]ask_person[/]", ", ".join(policy.ask_person) or "nothing beyond approve_jobs")
    rows.add_row("[dim]purposes[/]", escape(", ".join(policy.purposes)) or "any, but a person approves each job")
    agreed = "; ".join(map(str, policy.agreements))
    rows.add_row("[dim]agreements[/]", escape(agreed) or "any, but a person approves each job")
    rows.add_row("[dim]maintenance[/]", escape(", ".join(policy.maintenance)) or "never")
    rows.add_row("[dim]shifts[/]", escape("; ".join(map(str, policy.shifts))) or "no limits")
    out.print(rows)
    models = Table("Allowed model", "Digest", "Installed here", box=None, header_style="dim")
    for model in policy.allowed_models:
        is_here = (model.name, model.digest) in here
        models.add_row(escape(model.name), grouped(model.digest), "[green]yes[/]" if is_here else "[yellow]no[/]")
    firms = Table("Accepted firm", "Fingerprint", box=None, header_style="dim")
    for firm, accepted in policy.firms.items():
        firms.add_row(firm, grouped(accepted))
    out.print(models if policy.allowed_models else "[dim]No model is on the allow-list.[/]")
    out.print(firms if policy.firms else "[dim]No other firm is accepted yet.[/]")


@app.command()
def explain(home: HomeOption) -> None:
    """Say in words what the policy in force means."""
    policy, out = Policy.read(AgentHome(home).policy_file), _out()
    for sentence in in_words(policy):
        out.print(f"- {escape(sentence)}")


@app.command()
def check(job: Annotated[str, typer.Argument(help="The job's id.")], home: HomeOption) -> None:
    """Hold a job that was proposed here against the policy, and say what the agent would do. Exit status 1: refuse.

    Where nothing but a person's yes is missing, that is said, and the exit status is 0.
    """
    agent_home, out = AgentHome(home), _out()
    known = known_job(agent_home, job)
    try:
        policy = Policy.read(agent_home.policy_file)
        if known.state != "left":  # who left says so, whatever else is amiss
            review.check(agent_home, known)
            check_sandbox(policy, find_sandbox())
        before = approved_by_people(agent_home, but=job)
        check_decision(policy, known.job, known.decision, before)
    except RefusedError as error:
        if error.code is RefusalCode.NOT_APPROVED:
            out.print("[yellow]The policy admits it; a person's yes is missing.[/] The operator sees not-approved.")
            out.print(escape(str(error)))
            return
        out.print(f"[red]Refused; the operator sees the code {error.code}, and nothing more.[/]")
        out.print(escape(str(error)))
        raise typer.Exit(1) from error
    out.print("[green]The agent takes part.[/]")


@app.command()
def init(home: HomeOption) -> None:
    """Write a policy.toml with explanations. An existing one is left alone."""
    file = AgentHome(home).policy_file
    if file.exists():
        raise PolicyError(f"{file} is already there; edit it, then run `dure-agent policy show`")
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(file, DEFAULT_TEXT.encode())
    _out().print(f"{escape(str(file))} is written.")


@app.command()
def allow(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    home: HomeOption,
    digest: Annotated[str, typer.Option("--digest", help="Of its code; without it, of what is installed here.")] = "",
    package: Annotated[str, typer.Option("--package", help="A fetched package's digest, where several fit.")] = "",
) -> None:
    """Put a model on the allow-list, bound to the digest of its code; a package that was fetched is installed."""
    agent_home, installed = AgentHome(home), installed_models()
    fetched = _fetched(agent_home, model, digest, package) if package or model not in installed else None
    if fetched is not None:
        digest, native = fetched.manifest.model_digest, Policy.read(agent_home.policy_file).allow_native_code
        PackageShelf(agent_home.models).install(fetched.digest, datetime.now(UTC), allow_native_code=native)
    if not digest and model not in installed:
        known = ", ".join(installed) or "none"
        raise PolicyError(
            f"the model {model!r} is not here (installed: {known}); run `dure-agent model fetch {model}`, "
            "or give --digest"
        )
    wanted = digest or installed[model]
    file = agent_home.policy_file
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(file, allow_model(read_text(file), model, wanted).encode())
    _out().print(f"[green]✓[/] {escape(model)} is allowed with digest {grouped(wanted)}.")


def _fetched(home: AgentHome, model: str, digest: str, package: str) -> Shelved | None:
    """The one fetched package that offers the model, with that digest of its code, or its own, if they are given.

    None if there is none and none was named. Raises PolicyError if several fit: one is installed that people have read.
    """
    named = [each for each in PackageShelf(home.models).all() if each.manifest.name == model]
    fitting = [each for each in named if not digest or same_fingerprint(digest, each.manifest.model_digest)]
    found = [each for each in fitting if not package or same_fingerprint(package, each.digest)]
    if package and not found:
        raise PolicyError(
            f"no fetched package {package[:80]!r} offers the model {model!r} with that code; `dure-agent model list` "
            "shows what is here"
        )
    if len(found) > 1:
        listed = "".join(
            f"\n  - {each.manifest.version} by {each.manifest.author}: --package {each.digest}" for each in found
        )
        raise PolicyError(
            f"several packages of the model {model!r} are here; read them with `dure-agent model show DIGEST "
            f"--source`, then say which you mean:{listed}"
        )
    return found[0] if found else None
