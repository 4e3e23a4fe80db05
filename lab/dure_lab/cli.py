"""`dure`: the bench on top of server and agents: demo and benchmarks."""

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import click
import typer
from rich.console import Console
from rich.markup import escape

from dure_protocols.errors import DureError

INTERRUPTED = 130  # what Typer's app returns on KeyboardInterrupt
PLAIN_WIDTH = 132  # of tables where there is no terminal to ask

app = typer.Typer(
    name="dure",
    help="Try Dure on this machine, and measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _dure() -> None:
    """Try Dure on this machine, and measure it."""


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Folder of AI4I 2020 or C-MAPSS as published. Left out: simulated milling.")
    ] = None,
    firms: Annotated[int | None, typer.Option(min=3, max=16, help="Number of firms (simulated data).")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Training rounds; left out: what the data was tuned for.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model; left out: the data's own.")] = None,
    leave: Annotated[
        bool | None, typer.Option("--exit/--stay", help="Stop when done; without a terminal that is the default.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the figures to this file as JSON.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of data, split and training.")] = 1,
    folder: Annotated[
        Path | None, typer.Option(help="Where to keep everything; left out: a new one in dure-demo.")
    ] = None,
) -> None:
    """Found a consortium on this machine, train a model together, and see what it is worth to each firm."""
    from dure_lab.demo.course import DemoOptions, run_demo  # noqa: PLC0415  # loads polars and the store

    target = folder or Path("dure-demo") / datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    stays = sys.stdout.isatty() if leave is None else not leave
    options = DemoOptions(target, data, firms, rounds, model, seed, stays, report)
    run_demo(options, Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH))


bench = typer.Typer(help="Measurements.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command(name="round")
def bench_round_command(
    firms: Annotated[int, typer.Option(min=2, max=16)] = 3,
    parameters: Annotated[int, typer.Option(min=1)] = 10_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds, after two to warm up.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Time an encrypted round without training: real processes, mutual TLS, fsync, masks."""
    from dure_lab.bench.round import bench_round  # noqa: PLC0415  # loads the store

    result = bench_round(firms, parameters, rounds)
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    for phase, spread in result.seconds.items():
        print(f"{phase:10} {spread.median:.3f} s ({spread.minimum:.3f}–{spread.maximum:.3f})")
    print(f"up {result.bytes_up:,} B ({result.bytes_up_per_parameter:.3f} a parameter), down {result.bytes_down:,} B")
    print("peak MiB  ", ", ".join(f"{kind} {peak}" for kind, peak in result.peak_rss_mib.items()))


@bench.command(name="gain")
def bench_gain_command(
    data: Annotated[
        Path | None, typer.Option(help="Folder of AI4I 2020 or C-MAPSS; left out: simulated milling.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=2)] = 5,
    firms: Annotated[int | None, typer.Option(min=3, max=16, help="Number of firms (simulated data).")] = None,
    tune: Annotated[bool, typer.Option(help="Let each arm choose its learning rate on validation rows.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Alone, federated and pooled over several seeds: is the gain more than noise?"""
    from dure_lab.bench.gain import bench_gain  # noqa: PLC0415  # loads torch

    result = bench_gain(data, seeds, firms, tune=tune)
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    print(f"{result.data}: {result.metric}, mean ± sd over {seeds} seeds")
    for firm in result.firms:
        values = (f"{name} {value[0]:.3f} ± {value[1]:.3f}" for name, value in firm if isinstance(value, tuple))
        verdict = "beats noise" if firm.beats_noise else "within noise"
        share = f"{100 * firm.share_of_pooled:.0f} % of pooled"
        print(f"{firm.name:14} {'  '.join(values)}  won {firm.seeds_won}/{seeds}, {verdict}, {share}")


def main() -> None:
    """The console script: what Dure raises on purpose becomes one sentence and exit code 1."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        status = app(standalone_mode=False)
    except DureError as error:
        errors.print(f"[red]error:[/] {escape(str(error))}")
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    if status == INTERRUPTED:  # Ctrl-C or SIGTERM; what the command had started is ended by now
        errors.print("[yellow]stopped[/]: everything that was started has been ended")
    sys.exit(status)


if __name__ == "__main__":
    main()
