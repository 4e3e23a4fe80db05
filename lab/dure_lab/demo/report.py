"""What a demo came to: the figures of `--report FILE` and the tables of the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from dure_client.home import AgentHome
from dure_client.jobs.results import JobResult, Keeps
from dure_client.ledger import read_records, totals, verify_file
from dure_protocols.job import JobFile
from dure_protocols.ledger import LedgerError, RecordKind
from dure_server.store import RoundState, Store

Scores = Mapping[str, float | None]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FirmReport(_Frozen):
    """One firm: rows it trained on, and each model's metrics on its held-out rows. Bytes are of the whole job.

    keeps: the model the firm goes on with, chosen on its validation rows.
    """

    name: str
    rows: int
    test_rows: int
    alone: Scores
    federated: Scores
    pooled: Scores
    keeps: str
    bytes_up: int
    bytes_down: int
    ledger_verified: bool
    ledger_records: int
    left: Mapping[str, int]


class DemoReport(_Frozen):
    """The whole demo. Seconds count from the start of `dure demo`."""

    data: str
    simulated: bool
    model: str
    parameters: int
    primary_metric: str
    higher_is_better: bool
    rounds: int
    seconds_to_first_round: float
    wall_seconds: float
    encrypted: bool
    bytes_up_per_parameter: float
    ledger_verified: bool
    firms: tuple[FirmReport, ...]

    @property
    def gains(self) -> int:
        """How many firms are better off, on held-out rows, by the primary metric."""
        return sum(self._is_gain(firm) for firm in self.firms)

    def _is_gain(self, firm: FirmReport) -> bool:
        own, federated = firm.alone.get(self.primary_metric), firm.federated.get(self.primary_metric)
        if own is None or federated is None:
            return False
        return federated > own if self.higher_is_better else federated < own


@dataclass(frozen=True)
class FinishedRound:
    """A published round, for the plot and the report."""

    number: int
    members: tuple[str, ...]
    metrics: Mapping[str, float]
    bytes_down: int


def finished_rounds(store: Store, job: str) -> list[FinishedRound]:
    """The rounds that the server published, in order."""
    with store.reading() as at:
        rows = [row for row in at.rounds.of(job) if row.state is RoundState.FINISHED]
    return [FinishedRound(row.number, tuple(row.summed), row.metrics, row.bytes_down) for row in rows]


def firm_report(
    home: AgentHome, result: JobResult, pooled: Scores, rounds: Sequence[FinishedRound], name: str
) -> FirmReport:
    """One firm's part, read from its own home: its result and its ledger."""
    ledger = totals(read_records(home.ledger_file))
    try:
        verified = verify_file(home.ledger_file, home.identity().public_bytes).head.number == ledger.num_records
    except LedgerError:
        verified = False
    return FirmReport(
        name=name,
        rows=result.num_train,
        test_rows=result.num_test,
        alone=result.alone.test,
        federated=result.federated.test,
        pooled=pooled,
        keeps=result.keeps.value,
        bytes_up=ledger.sent_bytes,
        bytes_down=sum(entry.bytes_down // len(entry.members) for entry in rounds if name in entry.members),
        ledger_verified=verified,
        ledger_records=ledger.num_records,
        left={kind.value: size for kind, size in sorted(ledger.bytes_by_kind.items())},
    )


def bytes_up_per_parameter(home: AgentHome, job: JobFile) -> float:
    """Bytes of masked vectors that a firm sent in a training round, for each parameter; the smallest round's.

    Read from the firm's ledger. Repeats after a cut connection would count, which is why the smallest is taken.
    """
    per_round: dict[int, int] = {}
    for record in read_records(home.ledger_file):
        entry = record.entry
        if entry.job == job.id and entry.kind is RecordKind.BLOB and 1 <= entry.round <= job.rounds:
            per_round[entry.round] = per_round.get(entry.round, 0) + entry.size_bytes
    if not per_round:  # a small model's vector travels inside its message
        for record in read_records(home.ledger_file):
            entry = record.entry
            if entry.job == job.id and entry.kind is RecordKind.MASKED_UPDATE and 1 <= entry.round <= job.rounds:
                per_round[entry.round] = entry.size_bytes
    return min(per_round.values(), default=0) / job.model.parameters


def is_encrypted(homes: Mapping[str, AgentHome], job: JobFile, rounds: Sequence[FinishedRound]) -> bool:
    """Whether every update of every round left its firm masked, as the firms' ledgers tell.

    For each member of each published sum there is a masked update and, after it, one release; nothing of another kind
    could have carried an update, since the ledger names every kind that leaves.
    """
    wanted = {(name, entry.number) for entry in rounds for name in entry.members}
    masked, released = set(), set()
    for name, home in homes.items():
        for record in read_records(home.ledger_file):
            if record.entry.job == job.id:
                place = (name, record.entry.round)
                if record.entry.kind is RecordKind.MASKED_UPDATE:
                    masked.add(place)
                elif record.entry.kind is RecordKind.RELEASE and place in masked:
                    released.add(place)
    return bool(wanted) and wanted <= masked and wanted <= released


def print_report(report: DemoReport, out: Console, plot: Path | None) -> None:
    """The tables that a person reads."""
    metric, arrow = report.primary_metric, "higher is better" if report.higher_is_better else "lower is better"
    title = f"{report.data}: {metric} on held-out rows ({arrow})"
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    table.add_column("Firm")
    for name in ("Rows", "Alone", "Federated", "Pooled", "Federated / pooled", "Up", "Down"):
        table.add_column(name, justify="right")
    table.add_column("Keeps")
    table.add_column("Ledger")
    for firm in report.firms:
        own, federated, pooled = (arm.get(metric) for arm in (firm.alone, firm.federated, firm.pooled))
        table.add_row(
            firm.name,
            f"{firm.rows:,}",
            _number(own),
            f"[bold]{_number(federated)}[/]",
            _number(pooled),
            _share(federated, pooled, higher_is_better=report.higher_is_better),
            _size(firm.bytes_up),
            _size(firm.bytes_down),
            firm.keeps,
            "[green]verified[/]" if firm.ledger_verified else "[red]does not hold[/]",
        )
    out.print()
    out.print(table)
    if report.simulated:
        out.print("[yellow]Simulated data: the figures show how the parts work together, not what a machine did.[/]")
    out.print()
    out.print(_left(report))
    out.print(
        f"\n{report.rounds} rounds in {report.wall_seconds:.0f} s, the first after"
        f" {report.seconds_to_first_round:.0f} s; {report.parameters:,} parameters,"
        f" {report.bytes_up_per_parameter:.2f} bytes up a parameter and round;"
        f" every update masked: {'yes' if report.encrypted else '[red]no[/]'}."
    )
    out.print(f"{report.gains} of {len(report.firms)} firms are better off together, on rows that nobody trained on.")
    keepers = [firm.name for firm in report.firms if firm.keeps == Keeps.ALONE]
    if keepers:
        out.print(f"{', '.join(keepers)} did not gain on validation rows, and so keeps the model trained alone.")
    if plot is not None:
        out.print(f"The rounds are drawn in {plot}")


def _left(report: DemoReport) -> Table:
    """What left each firm, by kind, from its verified ledger."""
    kinds = sorted({kind for firm in report.firms for kind in firm.left})
    table = Table(title="What left each firm", title_justify="left", title_style="bold", box=None, header_style="dim")
    table.add_column("Kind")
    for firm in report.firms:
        table.add_column(firm.name, justify="right")
    for kind in kinds:
        table.add_row(kind, *(_size(firm.left.get(kind, 0)) for firm in report.firms))
    table.add_row("[dim]records[/]", *(f"{firm.ledger_records:,}" for firm in report.firms))
    return table


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def _share(federated: float | None, pooled: float | None, *, higher_is_better: bool) -> str:
    if not federated or not pooled:
        return "—"
    return f"{100 * (federated / pooled if higher_is_better else pooled / federated):.0f} %"


def _size(value: int) -> str:
    return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"
