"""`python -m tests.fuzz`: every decoder on damaged bytes, for as long as you like. Ends with 1 if one misbehaved."""

import argparse
import json
import sys
from collections.abc import Sequence

from tests.fuzz.campaign import Tally, run
from tests.fuzz.judge import judge, measuring
from tests.fuzz.kept import kept_for
from tests.fuzz.target import Target
from tests.fuzz.targets import all_targets

DEFAULT_SECONDS = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    options = _options(arguments)
    targets = chosen(all_targets(), options.target)
    if not targets:
        print(f"no target is called {', '.join(options.target)}: see --list", file=sys.stderr)
        return 2
    if options.list:
        for target in targets:
            refusals = ", ".join(refusal.__name__ for refusal in target.refusals) or "nothing"
            print(f"{target.name:28} {len(target.seeds):4} seeds, raises {refusals}")
        return 0
    if options.hex is not None:
        return _again(targets, bytes.fromhex(sys.stdin.read() if options.hex == "-" else options.hex))
    tallies = []
    for target in targets:
        tallies.append(run(target, options.seed, seconds=options.seconds, kept=kept_for(target.name)))
        if not options.json:
            print("\n".join([line(tallies[-1]), *(failure.told() for failure in tallies[-1].failures)]), flush=True)
    failures = [failure for tally in tallies for failure in tally.failures]
    if options.json:
        print(json.dumps([tally.as_json() for tally in tallies], indent=1))
    else:
        _conclude(tallies, options.seed)
    return 1 if failures else 0


def chosen(targets: Sequence[Target], names: Sequence[str]) -> list[Target]:
    """The targets of these names or groups; all without a name."""
    return [target for target in targets if not names or {target.name, target.group} & set(names)]


def line(tally: Tally) -> str:
    """One target's counts in one line."""
    refusals = ", ".join(f"{name} {number:,}" for name, number in tally.refusals.most_common())
    return (
        f"{tally.target:28} {tally.inputs:10,} inputs {sum(tally.values.values()):9,} values"
        f"  peak {tally.largest_peak_bytes / 1024:8,.0f} KiB ({tally.largest_share:4.0%} of limit)"
        f"  slowest {1000 * tally.slowest_seconds:6.1f} ms  refused: {refusals or 'none'}"
        + (f"  FAILURES: {len(tally.failures)}" if tally.failures else "")
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", action="append", default=[], metavar="NAME", help="a target or a group; repeatable")
    parser.add_argument(
        "--seconds", type=float, default=DEFAULT_SECONDS, help="how long for each target (default %(default)s)"
    )
    parser.add_argument("--seed", default="dure", help="text that every input follows from (default %(default)s)")
    parser.add_argument("--hex", help="judge this one input ('-': read it from standard input)")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    parser.add_argument("--list", action="store_true", help="list the targets")
    return parser.parse_args(arguments)


def _again(targets: Sequence[Target], data: bytes) -> int:
    failed = False
    with measuring():
        for target in targets:
            outcome = judge(target, data)
            failed |= outcome.failure is not None
            print(f"{target.name}: {outcome.failure or outcome.shape} (peak {outcome.peak_bytes:,} bytes)")
    return 1 if failed else 0


def _conclude(tallies: Sequence[Tally], seed: str) -> None:
    inputs = sum(tally.inputs for tally in tallies)
    values = sum(sum(tally.values.values()) for tally in tallies)
    refusals = sum(sum(tally.refusals.values()) for tally in tallies)
    failures = sum(len(tally.failures) for tally in tallies)
    seconds = sum(tally.seconds for tally in tallies)
    print(
        f"{len(tallies)} targets, {inputs:,} inputs in {seconds:,.0f} s (seed {seed!r}):"
        f" {values:,} values, {refusals:,} refusals, {failures} failures"
    )


if __name__ == "__main__":
    sys.exit(main())
