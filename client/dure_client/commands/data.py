"""`dure-agent data init|check`: this firm's data, held against the contract here. Nothing of it is sent."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dure_client.commands.join import HomeOption
from dure_client.data.errors import DataMappingError
from dure_client.data.mapping import DEFAULT_TEXT, DataMapping
from dure_client.home import AgentHome, write_file
from dure_client.jobs.approvals import known_job, known_jobs
from dure_models.contract import DataContract

app = typer.Typer(no_args_is_help=True, help="This firm's data; it is read here and stays here.")


@app.command()
def init(home: HomeOption) -> None:
    """Write a data.toml with explanations, to be filled in. An existing one is left alone."""
    file = AgentHome(home).data_file
    if file.exists():
        raise DataMappingError(f"{file} is already there; edit it, then run `dure-agent data check`")
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(file, DEFAULT_TEXT.encode())
    typer.echo(f"{file} is written. Name your files in it, then run `dure-agent data check`.")


@app.command()
def check(
    home: HomeOption,
    job: Annotated[str, typer.Option("--job", help="Check against this job's contract.")] = "",
    contract: Annotated[Path | None, typer.Option("--contract", help="Check against a contract file (TOML).")] = None,
) -> None:
    """Read the files of data.toml and hold them against the contract of each known job."""
    from dure_client.data.load import load  # noqa: PLC0415  # loads polars

    agent_home, out = AgentHome(home), Console(highlight=False, soft_wrap=True)
    mapping = DataMapping.read(agent_home.data_file)
    for name, agreed in _contracts(agent_home, job, contract).items():
        table = Table("Part", "File", "Rows", box=None, header_style="dim")
        for part, rows_by_file in load(mapping, agreed).rows_by_file.items():
            for file, num_rows in rows_by_file.items():
                table.add_row(part, escape(str(file)), f"{num_rows:,}")
        out.print(f"[green]✓[/] The data fit the contract [bold]{escape(agreed.name)}[/] ({escape(name)}).")
        out.print(table)


def _contracts(home: AgentHome, job: str, file: Path | None) -> dict[str, DataContract]:
    """Where a contract comes from, and the contract."""
    if file is not None:
        try:
            return {str(file): DataContract.from_toml(file.read_text(encoding="utf-8"))}
        except (OSError, UnicodeDecodeError) as error:
            raise DataMappingError(f"the contract {file} cannot be read: {error}") from error
    jobs = [known_job(home, job)] if job else known_jobs(home)
    if not jobs:
        raise DataMappingError(
            "there is no job whose contract could be checked; name a contract file with --contract, "
            "or connect with `dure-agent run` so that the operator's proposals arrive"
        )
    return {f"job {known.job.id}": DataContract.of(known.job.contract) for known in jobs}
