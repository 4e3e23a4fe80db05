"""`dure`: the bench on top of server and agents: demo and benchmarks."""

import sys
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from rich.console import Console
from rich.markup import escape

from dure_lab import model_commands
from dure_protocols.errors import DureError

if TYPE_CHECKING:
    from dure_lab.bench.spread import Spread

INTERRUPTED = 130  # what Typer's app returns on KeyboardInterrupt
PLAIN_WIDTH = 132  # of tables where there is no terminal to ask

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


class Opponent(StrEnum):
    """What an encrypted round can be compared with."""

    UNENCRYPTED = "unencrypted"


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
app.add_typer(model_commands.app, name="model")


@bench.command(name="round")
def bench_round_command(
    firms: Annotated[int, typer.Option(min=2, max=16)] = 3,
    parameters: Annotated[int, typer.Option(min=1)] = 10_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds (with --compare: of each kind).")] = 10,
    compare: Annotated[
        Opponent | None, typer.Option(help="Alternate with rounds of the same codec that are not encrypted.")
    ] = None,
    training_seconds: Annotated[
        float, typer.Option(min=0, help="With --compare: how long the trainer waits; taken off the result.")
    ] = 1.0,
    link_gbit: Annotated[
        float | None, typer.Option(min=0.01, help="With --compare: limit the server's link to so many Gb/s (root).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time an encrypted round without training: real processes, mutual TLS, fsync, masks. Two rounds warm up."""
    from dure_lab.bench.compare import compare_rounds  # noqa: PLC0415  # loads the store
    from dure_lab.bench.round import bench_round  # noqa: PLC0415

    if compare is None:
        if link_gbit is not None:
            raise click.UsageError("--link-gbit goes with --compare")
        result = bench_round(firms, parameters, rounds)
        if as_json:
            print(result.model_dump_json(indent=2))
            return
        _print_phases(result.seconds)
        print(
            f"up {result.bytes_up:,} B ({result.bytes_up_per_parameter:.3f} a parameter), down {result.bytes_down:,} B"
        )
        print("peak MiB  ", ", ".join(f"{kind} {peak}" for kind, peak in result.peak_rss_mib.items()))
        return
    compared = compare_rounds(firms, parameters, rounds, training_seconds=training_seconds, gbit_per_second=link_gbit)
    if as_json:
        print(compared.model_dump_json(indent=2))
        return
    pairs = compared.pairs
    print(
        f"encrypted / unencrypted: {compared.ratio:.3f} (pairs {pairs.lower_quartile:.3f}–{pairs.upper_quartile:.3f})"
    )
    for kind, seconds in (("encrypted", compared.encrypted), ("unencrypted", compared.unencrypted)):
        print(f"\n{kind}, {compared.training_seconds:g} s of training taken off the round")
        _print_phases(seconds)


def _print_phases(seconds: "Mapping[str, Spread]") -> None:
    for phase, spread in seconds.items():
        print(f"{phase:10} {spread.median:.3f} s ({spread.minimum:.3f}–{spread.maximum:.3f})")


@bench.command(name="scale")
def bench_scale_command(
    agents: Annotated[int, typer.Option(min=4, max=256)] = 100,
    parameters: Annotated[int, typer.Option(min=1)] = 1_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 6,
    hosts: Annotated[int, typer.Option(min=1, help="Programs that the agents are threads of.")] = 2,
    store: Annotated[
        str | None, typer.Option(help="postgresql://… of an empty database without a password; left out: SQLite.")
    ] = None,
    idle_seconds: Annotated[float, typer.Option(min=0.1, help="How long idle agents are watched.")] = 20.0,
    as_json: JsonOption = False,
) -> None:
    """Many firms in one job through one link: a round's time, the server's memory, what idle agents cost."""
    from dure_lab.bench.scale import bench_scale  # noqa: PLC0415  # loads the store

    result = bench_scale(agents, parameters, rounds, num_hosts=hosts, store_url=store, idle_seconds=idle_seconds)
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    _print_phases(result.seconds)
    for title, figures in (
        ("CPU s a round", result.cpu_seconds_per_round),
        ("peak MiB", result.server_peak_rss_mib),
        ("idle", result.idle.model_dump()),
    ):
        print(f"{title:14}", ", ".join(f"{name} {value:g}" for name, value in figures.items()))


@bench.command(name="trainer")
def bench_trainer_command(
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions, after one to warm up.")] = 15,
    as_json: JsonOption = False,
) -> None:
    """What the start of a trainer costs a job, and what of it the sandbox adds."""
    from dure_lab.bench.trainer_start import bench_trainer_start  # noqa: PLC0415

    result = bench_trainer_start(repeats)
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    _print_phases(result.seconds)
    _print_phases({"full adds": result.full_adds, "to nothing": result.full_adds_to_nothing})


@bench.command(name="secagg")
def bench_secagg_command(
    firms: Annotated[str, typer.Option(help="Numbers of firms, with commas.")] = "3,8,16,50,100",
    parameters: Annotated[str, typer.Option(help="Numbers of parameters, with commas.")] = "1000000,10000000",
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions, after one to warm up.")] = 7,
    arms: Annotated[str, typer.Option(help="Arms, with commas; left out: all that can run.")] = "",
    seed: Annotated[int, typer.Option(help="Of updates and of the order of the arms.")] = 1,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, each arm in a process of its own.")] = True,
    as_json: JsonOption = False,
) -> None:
    """What secure aggregation costs a firm and the server, beside SecAgg+, CKKS and no encryption."""
    from dure_lab.bench.secagg.arms import ARMS  # noqa: PLC0415  # loads flwr
    from dure_lab.bench.secagg.run import bench_secagg  # noqa: PLC0415
    from dure_lab.bench.secagg.table import table  # noqa: PLC0415

    result = bench_secagg(
        _integers(firms),
        _integers(parameters),
        repetitions=repeats,
        arms=[name.strip() for name in arms.split(",")] if arms else tuple(ARMS),
        seed=seed,
        memory=memory,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(result.model_dump_json(indent=2) if as_json else table(result))


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(f"whole numbers with commas between them were expected, not {text!r}") from None


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


@bench.command(name="bits")
def bench_bits_command(
    data: Annotated[
        Path | None, typer.Option(help="Folder of AI4I 2020 or C-MAPSS; left out: simulated milling.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=2)] = 5,
    rounds: Annotated[int | None, typer.Option(min=1, help="Training rounds; left out: the task's own.")] = None,
    clip_errors: Annotated[bool, typer.Option(help="Try first clips that are wrong by a factor of 16, too.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """What the codec costs in accuracy against float32, at 16, 12, 8 and 6 bits."""
    from dure_lab.bench.bits import CLIP_ERRORS, bench_bits, table  # noqa: PLC0415  # loads torch

    errors = CLIP_ERRORS if clip_errors else {}
    result = bench_bits(data, seeds, rounds, clip_errors=errors, progress=Console(stderr=True, highlight=False).print)
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    print(f"{result.data}: {result.firms} firms, {result.rounds} rounds, mean ± sd over {result.seeds} seeds\n")
    print(table(result))


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
