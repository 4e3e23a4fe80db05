"""`make chaos`: the whole matrix and random lists of faults, printed as tables. Takes most of an hour.

    python -m tests.chaos [--lists 200] [--seed 1] [--only matrix|costs|links|disks|stores|named|random]

Ends with status 1 if a job ended otherwise than it must.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from statistics import median

from tests.chaos import disks
from tests.chaos.faults import PHASES, PROCESSES, Action, Fault, kills_of, random_faults
from tests.chaos.named import FOUND
from tests.chaos.site import Outcome, Site, running
from tests.postgres import MISSING, programs, restartable_server

ROUNDS_OF_A_LIST = 3
LISTS_OF_A_SITE = 25  # ledgers are verified whole after each job, so they should not grow for ever
SECONDS_A_FAULT = 60.0  # patience, on a machine that does other things, too
TURNS = 5
LONG_SECONDS = 40.0  # longer than the agents' keepalive of 20 s and its timeout of 10 s

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def say(text: str = "") -> None:
    print(text, flush=True)


def tell(title: str, outcome: Outcome) -> bool:
    """Print how a job ended. Whether it ended well."""
    is_well = not outcome.problem and not outcome.pending
    absent = ", ".join(f"{firm} in {number}" for number, firm in outcome.absent)
    more = [f"{outcome.attempts} more attempts"] if outcome.attempts else []
    more += [f"without {absent}"] if absent else []
    say(f"{'ok  ' if is_well else 'FAIL'} {title}: {outcome.seconds:.1f} s" + (f", {'; '.join(more)}" if more else ""))
    for name in outcome.died:
        say(f"     ended by itself, and was started again: {name}")
    for fault in outcome.pending:
        say(f"     never reached: {fault}")
    if outcome.problem:
        say(f"     happened: {'; '.join(map(str, outcome.happened))}\n{outcome.problem}")
    return is_well


def matrix() -> bool:
    """Process × phase × kill -9, in both modes: one job a process and mode, a fault in each phase."""
    cells: dict[tuple[str, str, str], str] = {}
    is_well = True
    with running() as site:
        for mode in ("retry", "threshold"):
            for process in PROCESSES:
                faults = kills_of(process, mode)
                rounds = max(fault.round for fault in faults) + 1
                outcome = site.run(faults, rounds=rounds, mode=mode, seconds=SECONDS_A_FAULT * len(faults))
                is_well &= tell(f"kill -9 {process}, {mode} mode", outcome)
                for fault in faults:
                    met = fault in outcome.happened
                    cells[mode, process, fault.phase] = ("same" if not outcome.problem else "FAIL") if met else "unmet"
    say("\nkill -9 of a process (down) in a phase (across). same: every firm and the server end with the model of the")
    say("undisturbed run, to the bit, every update is counted once, and no mask hid two vectors.\n")
    for mode in ("retry", "threshold"):
        say(f"{mode + ' mode':16}" + "".join(f"{phase:>11}" for phase in PHASES))
        for process in PROCESSES:
            row = "".join(f"{cells.get((mode, process, phase), '–'):>11}" for phase in PHASES)
            say(f"{process:16}{row}")
        say()
    return is_well


def links() -> bool:
    """Each firm's link, and all at once, cut and stalled for 2 s and for longer than a heartbeat, in mid-round."""
    is_well = True
    with running() as site:
        for action in (Action.CUT, Action.STALL):
            for target in ("link", "link:firm-b"):
                faults = [
                    Fault(target, action, phase, number, seconds=2.0)
                    for number, phase in enumerate(("join", "update", "release"), start=1)
                ]
                is_well &= tell(f"{action} {target} for 2 s", site.run(faults, rounds=4))
                long = [Fault(target, action, "update", 1, seconds=LONG_SECONDS)]
                is_well &= tell(f"{action} {target} for {LONG_SECONDS:g} s", site.run(long, rounds=2))
        slow = [Fault("link", Action.SLOW, "join", 1, seconds=5.0)]
        is_well &= tell("slow link", site.run(slow, rounds=2))
        for action in (Action.DUPLICATE, Action.REORDER, Action.DELAY):
            faults = [
                Fault("link", action, phase, number, seconds=0.5)
                for number, phase in enumerate(("join", "update", "release"), start=1)
            ]
            is_well &= tell(f"{action} messages", site.run(faults, rounds=4))
    return is_well


def full_disks() -> bool:
    """The server's and a firm's disk full, in each phase of a round."""
    if reason := disks.why_not():
        say(f"left out: {reason}")
        return True
    is_well = True
    with running(disks=("server", "firm-b")) as site:
        for target in ("server", "agent:firm-b"):
            for phase in ("join", "update", "release", "publish"):
                fault = Fault(target, Action.FULL_DISK, phase, 1, seconds=3.0)
                is_well &= tell(str(fault), site.run([fault], rounds=2))
    return is_well


def stores() -> bool:
    """PostgreSQL restarted and read-only, and two coordinators at once."""
    is_well = True
    with running() as site:
        second = [Fault("coordinator", Action.SECOND_COORDINATOR, phase, 1) for phase in ("join", "update", "release")]
        is_well &= tell("second coordinator, SQLite", site.run(second, rounds=3))
    binaries = programs()
    if binaries is None:
        say(f"left out: {MISSING}")
        return is_well
    with restartable_server(binaries) as postgres, running(postgres=postgres) as site:
        is_well &= tell("second coordinator, PostgreSQL", site.run(second, rounds=3))
        for action in (Action.RESTART_STORE, Action.READ_ONLY):
            for phase in ("join", "update", "release", "publish"):
                fault = Fault("store", action, phase, 1, seconds=2.0)
                is_well &= tell(str(fault), site.run([fault], rounds=2))
        faults = kills_of("coordinator", "threshold")
        is_well &= tell("kill -9 coordinator, PostgreSQL", site.run(faults, rounds=6, mode="threshold"))
    return is_well


def named() -> bool:
    """Lists that have found a failure."""
    is_well = True
    with running() as site:
        for name, (mode, faults) in FOUND.items():
            is_well &= tell(name, site.run(faults, rounds=ROUNDS_OF_A_LIST, mode=mode, whole=False))
    return is_well


def costs() -> bool:
    """What a kill in mid-round costs: jobs of two rounds, undisturbed and with one kill each, in turns. Vectors are so
    small that nothing is resent worth counting; the process is started again at once."""
    kills = {
        "link": Fault("link", Action.KILL, "update", 1, "link stored"),
        "agent": Fault("agent:firm-a", Action.KILL, "update", 1, "agent:firm-a made"),
        "trainer": Fault("trainer:firm-a", Action.KILL, "update", 1, "trainer:firm-a training"),
        "coordinator": Fault("coordinator", Action.KILL, "update", 1),
        "server": Fault("server", Action.KILL, "update", 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("undisturbed", *kills)}
    is_well = True
    with running() as site:
        site.run([], rounds=2)
        for _ in range(TURNS):
            for name, taken in seconds.items():
                faults = [kills[name]] if name in kills else []
                outcome = site.run(faults, rounds=2)
                is_well &= tell(f"kill -9 {name}" if faults else name, outcome)
                taken.append(outcome.seconds)
    say()
    usual = median(seconds["undisturbed"])
    for name in kills:
        more = [taken - usual for taken in seconds[name]]
        say(f"kill -9 {name}: {median(more):.1f} s more than {usual:.1f} s ({min(more):.1f} to {max(more):.1f})")
    return is_well


def random_lists(num_lists: int, first_seed: int) -> bool:
    """Random lists of faults, in both modes."""
    seeds: Iterator[int] = iter(range(first_seed, first_seed + num_lists))
    num_well = 0
    while some := list(islice(seeds, LISTS_OF_A_SITE)):
        with running() as site:
            num_well += sum(_random_list(site, seed) for seed in some)
    last_seed = first_seed + num_lists - 1
    say(f"\n{num_well} of {num_lists} random lists ended as they must (seeds {first_seed} to {last_seed})")
    return num_well == num_lists


def _random_list(site: Site, seed: int) -> bool:
    mode = ("retry", "threshold")[seed % 2]
    faults = random_faults(seed, mode, ROUNDS_OF_A_LIST)
    outcome = site.run(faults, rounds=ROUNDS_OF_A_LIST, mode=mode, whole=False)
    title = f"seed {seed}, {mode}: {'; '.join(map(str, faults))}"
    return tell(
        title, replace(outcome, pending=())
    )  # a round that an earlier fault has changed may not come to a point


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--lists", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parts: dict[str, Callable[[], bool]] = {
        "matrix": matrix,
        "costs": costs,
        "links": links,
        "disks": full_disks,
        "stores": stores,
        "named": named,
        "random": lambda: random_lists(asked.lists, asked.seed),
    }
    parser.add_argument("--only", choices=list(parts))
    asked = parser.parse_args(arguments)
    began = time.monotonic()
    results = {}
    for name in [asked.only] if asked.only else parts:
        say(f"== {name}: {parts[name].__doc__ or random_lists.__doc__}\n")
        results[name] = parts[name]()
        say()
    failed = [name for name, is_well in results.items() if not is_well]
    say(f"{time.monotonic() - began:.0f} s; " + (f"failed: {', '.join(failed)}" if failed else "all as it must be"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
