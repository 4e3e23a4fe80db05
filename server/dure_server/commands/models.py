"""`dure-server model publish | list`: the consortium's registry of model packages."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from dure_protocols.identity import grouped
from dure_protocols.model_package import MAX_PACKAGE_BYTES
from dure_server.commands.common import HomeOption, actor, opened, terminal
from dure_server.models import ModelRegistry, RegistryError

app = typer.Typer(help="The consortium's registry of model packages.", no_args_is_help=True)


@app.command()
def publish(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A package, as `dure model pack` makes it.")],
    home: HomeOption,
) -> None:
    """Offer a model package to the firms. They fetch, read and approve it themselves; nothing is sent to them."""
    try:
        with file.open("rb") as opened_file:
            data = opened_file.read(MAX_PACKAGE_BYTES + 1)
    except OSError as error:
        raise RegistryError(f"{file} cannot be read: {error.strerror}") from error
    with opened(home) as (server_home, _, store):
        package = ModelRegistry(server_home.models).publish(data)
        manifest = package.manifest
        with store.transaction() as at:
            detail = {"package": package.digest, "version": manifest.version, "author": manifest.author_fingerprint}
            at.audit.append(actor(), "model.publish", manifest.name, detail)
    out = terminal()
    out.print(f"[green]✓[/] {manifest.name} {manifest.version} is published.")
    out.print(f"  package digest     {package.digest}")
    out.print(f"  model digest       {manifest.model_digest}")
    out.print(f"  author fingerprint {grouped(manifest.author_fingerprint)} ({escape(manifest.author)})")


@app.command(name="list")
def list_models(home: HomeOption) -> None:
    """List the published packages, the newest last."""
    with opened(home) as (server_home, _, _):
        packages = [(each.digest, each.manifest) for each in ModelRegistry(server_home.models).packages()]
    if not packages:
        terminal().print("No model package is published. `dure-server model publish FILE` offers one.")
        return
    table = Table("Model", "Version", "Author", "Package digest", box=None, pad_edge=False)
    for digest, manifest in packages:
        table.add_row(manifest.name, manifest.version, escape(manifest.author), digest)
    terminal().print(table)
