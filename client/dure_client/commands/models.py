"""`dure-agent model fetch | list | show`, and how `review` shows a model package."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dure_client.commands.join import HomeOption
from dure_client.home import AgentHome
from dure_client.packages.fetch import fetch_now
from dure_client.packages.looking import SAID, look
from dure_client.packages.shelf import PackageShelf
from dure_protocols.job import JobFile

app = typer.Typer(help="Model packages of the consortium's registry.", no_args_is_help=True)
SourceOption = Annotated[bool, typer.Option("--source", help="Show every file of the model package, in pages.")]
_DIFF_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def _out() -> Console:
    return Console(highlight=False, soft_wrap=True)


@app.command()
def fetch(
    home: HomeOption,
    wanted: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name or a package digest; none: all.")] = "",
) -> None:
    """Get packages from the consortium's registry, to be read. None is installed, or runs, before you approve it."""
    agent_home, out = AgentHome(home), _out()
    digests = fetch_now(agent_home, wanted)
    for each in (each for each in PackageShelf(agent_home.models).all() if each.digest in digests):
        manifest = each.manifest
        out.print(f"[green]✓[/] {manifest.name} {manifest.version} is here: {each.digest}")
        if each.approved_at is None:
            out.print(f"  It is not installed. To read it: dure-agent model show {each.digest} --source")
    if not digests:
        out.print("The registry offers no model package.")


@app.command(name="list")
def list_packages(home: HomeOption) -> None:
    """List the packages that are here. The registry is not asked: `fetch` does that."""
    packages = list(PackageShelf(AgentHome(home).models).all())
    if not packages:
        _out().print("No model package is here. `dure-agent model fetch` gets those of the consortium's registry.")
        return
    table = Table("Model", "Version", "Author", "Approved", "Package digest", box=None, header_style="dim")
    for each in packages:
        approved = f"[green]{each.approved_at:%Y-%m-%d %H:%M}[/]" if each.approved_at else "[yellow]no[/]"
        table.add_row(each.manifest.name, each.manifest.version, escape(each.manifest.author), approved, each.digest)
    _out().print(table)


@app.command()
def show(
    package: Annotated[str, typer.Argument(metavar="DIGEST", help="The package's digest, as `list` shows it.")],
    home: HomeOption,
    source: SourceOption = False,
) -> None:
    """Show a package: its manifest, what is new in it, and with --source all of it."""
    print_package(PackageShelf(AgentHome(home).models), package, _out(), source=source)


def print_package(
    shelf: PackageShelf, digest: str, out: Console, *, source: bool = False, job: JobFile | None = None
) -> None:
    """Manifest, files, what was approved before and the difference to it; with `source` every file in full.

    `job`: the job that would run it, whose terms are held against what the package says. Raises PackageError.
    """
    view = look(shelf, digest, job)
    rows = Table.grid(padding=(0, 2))
    files = f"{len(view.files)}, {view.num_bytes:,} bytes; --source shows them"
    for name, value in (*view.facts, ("Files", files)):
        rows.add_row(Text(name, style="dim"), Text(value))
    out.print(rows)
    out.print(SAID, style="dim")
    for warning in view.warnings:
        out.print(Text(warning, style="yellow"))
    before = view.before
    if before is not None:
        out.print(Text(f"New since {before.manifest.version}, approved {before.approved_at:%Y-%m-%d}:", style="bold"))
        for line in view.changes:
            out.print(Text(line, style=_DIFF_STYLES.get(line[:1], "")))
    else:
        out.print("No package of this model was approved here before: read all of it (--source).")
    if source:
        _print_paged("".join(f"=== {path}\n{text}\n" for path, text in view.files.items()), out)


def _print_paged(text: str, out: Console) -> None:
    if out.is_terminal:
        with out.pager():
            out.print(Text(text))
    else:
        out.print(Text(text))
