"""`dure-agent policy show|init|allow`: what this firm consents to."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dure_client.commands.join import HomeOption
from dure_client.home import AgentHome, write_file
from dure_client.jobs.review import installed_models
from dure_client.policy import DEFAULT_TEXT, Policy, PolicyError, allow_model, read_text
from dure_protocols.identity import grouped

app = typer.Typer(no_args_is_help=True, help="What this firm consents to (policy.toml).")


def _out() -> Console:
    return Console(highlight=False, soft_wrap=True)


@app.command()
def show(home: HomeOption) -> None:
    """Print the policy in force, the allowed models and the accepted firms."""
    file, out = AgentHome(home).policy_file, _out()
    policy, installed = Policy.read(file), installed_models()
    origin = str(file) if file.exists() else f"{file} does not exist: the strict default is in force"
    out.print(f"[dim]{escape(origin)}[/]")
    rows = Table.grid(padding=(0, 2))
    for name in ("approve_jobs", "minimum_cohort", "minimum_difference", "minimum_rows", "allow_any_installed_model"):
        rows.add_row(f"[dim]{name}[/]", str(getattr(policy, name)).lower())
    rows.add_row("[dim]maintenance[/]", escape(", ".join(policy.maintenance)) or "never")
    out.print(rows)
    models = Table("Allowed model", "Digest", "Installed here", box=None, header_style="dim")
    for model in policy.allowed_models:
        is_here = installed.get(model.name) == model.digest
        models.add_row(escape(model.name), grouped(model.digest), "[green]yes[/]" if is_here else "[yellow]no[/]")
    firms = Table("Accepted firm", "Fingerprint", box=None, header_style="dim")
    for firm, accepted in policy.firms.items():
        firms.add_row(firm, grouped(accepted))
    out.print(models if policy.allowed_models else "[dim]No model is on the allow-list.[/]")
    out.print(firms if policy.firms else "[dim]No other firm is accepted yet.[/]")


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
) -> None:
    """Put a model on the allow-list, bound to the digest of its code."""
    installed = installed_models()
    if not digest and model not in installed:
        known = ", ".join(installed) or "none"
        raise PolicyError(
            f"the model {model!r} is not installed here (installed: {known}); install it, or give --digest"
        )
    wanted = digest or installed[model]
    file = AgentHome(home).policy_file
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(file, allow_model(read_text(file), model, wanted).encode())
    _out().print(f"[green]✓[/] {escape(model)} is allowed with digest {grouped(wanted)}.")
