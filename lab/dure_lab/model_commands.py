"""`dure model pack`: a researcher's model as one signed file."""

import secrets
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from dure_client.home import keep_or_make_private
from dure_protocols.identity import Identity, grouped
from dure_protocols.model_package import FILE_SUFFIX

app = typer.Typer(help="Bring a model of your own to a consortium.", no_args_is_help=True)


@app.callback()
def _model() -> None:
    """Bring a model of your own to a consortium."""


@app.command()
def pack(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="With model.toml and the model's Python package.")],
    key: Annotated[Path, typer.Option("--key", help="The author's private key; made if there is no such file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the package.")] = Path(),
    wheel: Annotated[Path | None, typer.Option("--wheel", help="A wheel that another tool built of it.")] = None,
) -> None:
    """Make one signed file of a model, for the operator to publish. Needs no network; see docs/model-packages.md."""
    from dure_lab.packing import pack as make_package  # noqa: PLC0415  # loads torch

    is_new = not key.exists()
    author = Identity.from_pem(keep_or_make_private(key, Identity.from_seed(secrets.token_bytes(32)).to_pem()))
    package = make_package(folder, author, wheel.read_bytes() if wheel else None)
    manifest = package.manifest
    file = out / f"{manifest.name}-{manifest.version}{FILE_SUFFIX}"
    file.write_bytes(package.to_bytes())
    terminal = Console(highlight=False, soft_wrap=True)
    terminal.print(f"[green]✓[/] {escape(str(file))}")
    terminal.print(f"  package digest     {package.digest}")
    terminal.print(f"  model digest       {manifest.model_digest}")
    made = f" (a new key, kept in {escape(str(key))})" if is_new else ""
    terminal.print(f"  author fingerprint {grouped(manifest.author_fingerprint)}{made}")
    terminal.print("Hand the file to the operator, and tell the firms your fingerprint over another way.")
