"""`dure-agent data init|check`: this firm's data, held against the contract here. Nothing of it is sent."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dure_client.commands.join import HomeOption
from dure_client.data.errors import DataMappingError, TooFewRowsError
from dure_client.data.mapping import DEFAULT_TEXT, DataMapping
from dure_client.home import AgentHome, write_file
from dure_client.jobs.approvals import known_job, known_jobs
from dure_client.policy import Policy
from dure_models.contract import VALIDATION_FRACTION, DataContract
from dure_protocols.job import JobFile

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
    """Read the files of data.toml and hold them against the contract of each known job, and their number of rows
    against the policy.

    Exit status: 0 if a job could be trained on them, 1 if not.
    """
    from dure_client.data.load import load  # noqa: PLC0415  # loads polars

    agent_home, out = AgentHome(home), Console(highlight=False, soft_wrap=True)
    mapping = DataMapping.read(agent_home.data_file)
    too_few: list[str] = []
    for name, terms in _terms(agent_home, job, contract).items():
        agreed = terms.contract
        table = Table("Part", "File", "Rows", box=None, header_style="dim")
        tables = load(mapping, agreed)
        for part, rows_by_file in tables.rows_by_file.items():
            for file, num_rows in rows_by_file.items():
                table.add_row(part, escape(str(file)), f"{num_rows:,}")
        out.print(f"[green]✓[/] The data fit the contract [bold]{escape(agreed.name)}[/] ({escape(name)}).")
        out.print(table)
        minimum_rows = Policy.read(agent_home.policy_file).minimum_rows
        try:
            tables.check_enough(agreed, terms.validation_fraction, terms.seed, minimum_rows)
        except TooFewRowsError as error:
            too_few.append(f"{name}: {error}")
    if too_few:
        raise TooFewRowsError("\n".join(too_few))


@dataclass(frozen=True)
class _Terms:
    """What a job, or a contract before there is one, says of the data; see `validation_split`."""

    contract: DataContract
    validation_fraction: float = VALIDATION_FRACTION
    seed: int = 0

    @classmethod
    def of(cls, job: JobFile) -> "_Terms":
        fraction = job.training.get("validation_fraction", VALIDATION_FRACTION)
        if not isinstance(fraction, int | float) or not 0 < fraction < 1:  # the trainer refuses such a job
            fraction = VALIDATION_FRACTION
        return cls(DataContract.of(job.contract), fraction, job.seed)


def _terms(home: AgentHome, job: str, file: Path | None) -> dict[str, _Terms]:
    """Where a contract comes from, and what it says."""
    if file is not None:
        try:
            return {str(file): _Terms(DataContract.from_toml(file.read_text(encoding="utf-8")))}
        except (OSError, UnicodeDecodeError) as error:
            raise DataMappingError(f"the contract {file} cannot be read: {error}") from error
    jobs = [known_job(home, job)] if job else known_jobs(home)
    if not jobs:
        raise DataMappingError(
            "there is no job whose contract could be checked; name a contract file with --contract, "
            "or connect with `dure-agent run` so that the operator's proposals arrive"
        )
    return {f"job {known.job.id}": _Terms.of(known.job) for known in jobs}
