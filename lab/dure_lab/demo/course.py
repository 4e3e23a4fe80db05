"""The demo's course: deal the data, start a consortium, train, compare, report."""

import contextlib
import signal
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.markup import escape

from dure_client.home import write_file
from dure_client.jobs.results import JobResult, ResultError
from dure_lab.consortium import LocalConsortium, write_draft
from dure_lab.datasets import catalogue
from dure_lab.datasets.deal import Deal, FirmFiles, read_tables, write_deal
from dure_lab.demo.plot import draw
from dure_lab.demo.report import (
    DemoReport,
    FinishedRound,
    bytes_up_per_parameter,
    finished_rounds,
    firm_report,
    is_encrypted,
    print_report,
)
from dure_lab.demo.show import Show
from dure_protocols.errors import DureError
from dure_protocols.job import JobFile
from dure_server.store import JobState

T = TypeVar("T")

JOB_ID = "demo"
_TICK_SECONDS = 0.1
AGAIN_SECONDS = 0.2  # after which an interrupt that was not heard comes again
DERIVED_SETTINGS = {"num_rounds", "update_clip", "count_cap"}


class DemoError(DureError):
    """The demo cannot run as asked, or its job did not finish."""


@dataclass(frozen=True)
class DemoOptions:
    """What the command line says. `data` None: simulated milling; `rounds`, `firms`, `model` None: the data's own."""

    folder: Path
    data: Path | None = None
    firms: int | None = None
    rounds: int | None = None
    model: str | None = None
    seed: int = 1
    stays: bool = False
    report: Path | None = None


def run_demo(options: DemoOptions, out: Console) -> DemoReport:
    """Run the demo; everything it started is stopped when this returns or raises.

    Raises DemoError, DataSetError, LocalConsortiumError, and KeyboardInterrupt on Ctrl-C or SIGTERM.
    """
    started = time.monotonic()
    options.folder.mkdir(parents=True, exist_ok=True)
    deal = _deal(options)
    with _terminable(), LocalConsortium(options.folder) as consortium, Show(out) as show, _insistent():
        show.says(f"{deal.task.title}: {len(deal.firms)} firms")
        with show.step("Starting the server: link, console, enrolment"):
            consortium.start_server()
        out.print(f"  Console: [bold link={consortium.settings.console_url}]{consortium.settings.console_url}[/]")
        if options.stays:
            webbrowser.open(consortium.settings.console_url)
        with show.step("Enrolling the firms: invitation, keys made at the firm, fingerprints compared, approval"):
            for firm in deal.firms:
                home = consortium.enrol(firm.name)
                write_file(home.data_file, _data_toml(firm).encode())
            consortium.introduce(deal.task.model)
        with show.step("Starting the agents and approving the job at each firm"):
            for firm in deal.firms:
                consortium.start_agent(firm.name)
            job = consortium.propose(_draft(deal, options))
            consortium.approve_job(job)
        first_round = _watch_rounds(consortium, job, show, started)
        results, pooled = _watch_results(consortium, deal, options, show)
        report, rounds = _report(consortium, deal, job, results, pooled, first_round - started, started)
        plot = draw(report, rounds, job.selection_metric or "", options.folder / "rounds.png")
        show.close()
        print_report(report, out, plot)
        if options.report is not None:
            options.report.write_text(report.model_dump_json(indent=2) + "\n")
            out.print(f"The report is in {escape(str(options.report))}")
        if options.stays:
            _stay(consortium, out)
    return report


def _deal(options: DemoOptions) -> Deal:
    data = catalogue.find(options.data, options.firms)
    tables = data.tables(np.random.default_rng(options.seed))
    deal = write_deal(data.task, tables, options.folder / "data")
    if options.model not in {None, deal.task.model}:
        raise DemoError(f"{deal.task.title} is a task for the model {deal.task.model!r}; leave --model out")
    if len(deal.firms) < 3:
        raise DemoError("a sum over two firms shows each what the other gave: take --firms 3 or more")
    if options.rounds is not None:
        training = deal.task.training.model_copy(update={"num_rounds": options.rounds})
        deal = replace(deal, task=replace(deal.task, training=training))
    return deal


def _data_toml(firm: FirmFiles) -> str:
    return f'[train]\npaths = ["{firm.train.resolve()}"]\n\n[test]\npaths = ["{firm.test.resolve()}"]\n'


def _draft(deal: Deal, options: DemoOptions) -> Path:
    training = deal.task.training
    values = {
        "id": JOB_ID,
        "title": deal.task.title,
        "simulated": deal.task.simulated,
        "model": deal.task.model,
        "contract": "data/contract.toml",
        "rounds": training.num_rounds,
        "seed": options.seed,
        "codec": {"clip": training.update_clip, "count_cap": training.count_cap},
        "training": training.model_dump(mode="json", exclude=DERIVED_SETTINGS),
        "options": deal.task.model_options,
        "phase_seconds": 600.0,
    }
    return write_draft(options.folder / "job.toml", values)


def _watch_rounds(consortium: LocalConsortium, job: JobFile, show: Show, started: float) -> float:
    """Show the rounds until the job is over. Returns when the first training round was published."""
    first, chosen_by = 0.0, job.selection_metric or ""
    with show.rounds(job.rounds) as bar:
        while True:
            done = finished_rounds(consortium.store, job.id)
            with consortium.store.reading() as at:
                row, progress = at.jobs.get(job.id), at.progress.get(job.id)
            if not first and any(entry.number >= 1 for entry in done):
                first = time.monotonic()
                show.says(f"The first encrypted round was over after {first - started:.1f} s")
            trained = [entry for entry in done if 1 <= entry.number <= job.rounds]
            measured = [entry.metrics[chosen_by] for entry in done if chosen_by in entry.metrics]
            loss = f"{measured[-1]:.4f}" if measured else "—"
            bar(len(trained), f"{chosen_by} {loss} · {progress.sentence if progress else ''}")
            if row.state is JobState.FINISHED:
                return first
            if row.state is not JobState.RUNNING:
                raise DemoError(f"the job ended as {row.state.value}: {row.reason}; logs are in {consortium.folder}")
            consortium.check()
            time.sleep(_TICK_SECONDS)


def _watch_results(
    consortium: LocalConsortium, deal: Deal, options: DemoOptions, show: Show
) -> tuple[dict[str, JobResult], list[dict[str, float]]]:
    """Wait for each firm's own model, and train one on pooled data, which only a demo can."""
    pooled = _aside(lambda: _pooled(deal, options.seed))
    results: dict[str, JobResult] = {}
    with show.step("Each firm trains alone, for comparison; the demo also trains on pooled data, because it can"):
        while len(results) < len(deal.firms) or not pooled.done():
            for name, home in consortium.agents.items():
                if name not in results:
                    with contextlib.suppress(ResultError):
                        results[name] = JobResult.read(home.job_folder(JOB_ID) / "result.json")
            consortium.check()
            time.sleep(_TICK_SECONDS)
    return results, pooled.result()


def _aside(work: Callable[[], T]) -> "Future[T]":
    """Work in a thread that nobody waits for when the demo is stopped."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001  # handed to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, name="pooled", daemon=True).start()
    return future


def _pooled(deal: Deal, seed: int) -> list[dict[str, float]]:
    from dure_lab.arms import pooled_scores  # noqa: PLC0415  # loads torch, which the rounds should not wait for

    return pooled_scores(deal.task, read_tables(deal), seed)


def _report(
    consortium: LocalConsortium,
    deal: Deal,
    job: JobFile,
    results: dict[str, JobResult],
    pooled: list[dict[str, float]],
    seconds_to_first_round: float,
    started: float,
) -> tuple[DemoReport, list[FinishedRound]]:
    rounds = finished_rounds(consortium.store, job.id)
    firms = tuple(
        firm_report(consortium.agents[firm.name], results[firm.name], scores, rounds, firm.name)
        for firm, scores in zip(deal.firms, pooled, strict=True)
    )
    first = next(iter(results.values()))
    report = DemoReport(
        data=deal.task.title,
        simulated=deal.task.simulated,
        model=job.model.name,
        parameters=job.model.parameters,
        primary_metric=first.primary_metric,
        higher_is_better=first.higher_is_better,
        rounds=sum(1 <= entry.number <= job.rounds for entry in rounds),
        seconds_to_first_round=round(seconds_to_first_round, 2),
        wall_seconds=round(time.monotonic() - started, 2),
        encrypted=is_encrypted(consortium.agents, job, rounds),
        bytes_up_per_parameter=round(bytes_up_per_parameter(consortium.agents[deal.firms[0].name], job), 4),
        ledger_verified=all(firm.ledger_verified for firm in firms),
        firms=firms,
    )
    return report, rounds


def _stay(consortium: LocalConsortium, out: Console) -> None:
    out.print(f"\nThe console stays at [bold]{consortium.settings.console_url}[/]. Ctrl-C stops everything.")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            consortium.check()
            time.sleep(1)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: in order."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _insistent() -> Iterator[None]:
    """Ctrl-C and SIGTERM are heard even where Python drops an exception, as in the callback of a weak reference.

    It comes again, so that it was dropped is not worth the lines that Python prints about it.
    """

    def interrupt(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        raise KeyboardInterrupt

    def dropped(told: "sys.UnraisableHookArgs") -> None:
        if not isinstance(told.exc_value, KeyboardInterrupt):
            print_dropped(told)

    print_dropped, sys.unraisablehook = sys.unraisablehook, dropped
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [(number, signal.signal(number, interrupt)) for number in numbers]
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = print_dropped
        for number, handler in before:
            signal.signal(number, handler)
