"""`make endurance`: many rounds of a small job, after which every process has the memory, the open files and the
connections that it had after the warm-up, and no file is left over.

    python -m tests.chaos.endurance [--rounds 500] [--warm-up 100]
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from dure_server.coordinator.rounds import CHECKPOINT_ROUNDS
from tests.chaos.site import Site, running

GROWTH = 1.05
FILES_THAT_GROW_BY_DESIGN = frozenset({"answers"})
"""An agent keeps its last 2000."""
ROOM = {"released": 2 * CHECKPOINT_ROUNDS}
"""By how many files a folder may differ, where it is more than two: sums are deleted some at a time."""


@dataclass(frozen=True)
class Look:
    """One process at one moment."""

    rss_mib: float
    num_descriptors: int
    num_connections: int
    num_threads: int


def look(site: Site) -> dict[str, Look]:
    """Every process of the consortium by what it is."""
    found = {}
    for process in site.processes():
        try:
            name = name_of(process)
            # Private memory: mapped files count for whoever touched them last.
            found[name] = Look(
                process.memory_full_info().uss / 2**20,
                process.num_fds(),
                len(process.net_connections("all")),
                process.num_threads(),
            )
        except psutil.Error:
            continue
    return found


def name_of(process: psutil.Process) -> str:
    """What a process is, and whose."""
    words = process.cmdline()
    module = words[words.index("-m") + 1].rpartition(".")[2]
    firms = [part for word in words for part in Path(word).parts if part.startswith("firm-")]
    return f"{module} {firms[0]}" if firms else module


def files(site: Site) -> dict[str, int]:
    """Number of files by folder, but for folders that grow by design."""
    counts: dict[str, int] = {}
    for folder, _, names in os.walk(site.consortium.folder):
        if not FILES_THAT_GROW_BY_DESIGN & set(Path(folder).parts):
            counts[folder] = len(names)
    return counts


def grown(before: Mapping[str, Look], after: Mapping[str, Look]) -> list[str]:
    """What grew that must not, as sentences."""
    said = []
    for name, one in before.items():
        other = after[name]
        if other.rss_mib > GROWTH * one.rss_mib:
            said.append(f"{name}: {one.rss_mib:.1f} MiB became {other.rss_mib:.1f}")
        said += [
            f"{name}: {what} {getattr(one, what)} became {getattr(other, what)}"
            for what in ("num_descriptors", "num_connections", "num_threads")
            if getattr(other, what) > getattr(one, what) + 2  # one may be open at the moment of looking
        ]
    return said


def endure(site: Site, rounds: int, warm_up: int) -> tuple[dict[str, Look], dict[str, Look], list[str]]:
    """Run a job; look after the warm-up and before its end. Returns both looks and what grew."""
    looks: dict[str, tuple[dict[str, Look], dict[str, int]]] = {}

    def watch(number: int) -> None:
        if number == warm_up:
            looks["before"] = look(site), files(site)
        if number == rounds - 1:
            looks["after"] = look(site), files(site)

    site.controller.at_round = watch
    outcome = site.run([], rounds=rounds, seconds=10.0 * rounds, keep_sums=False)
    assert not outcome.problem, outcome.problem
    (before, files_before), (after, files_after) = looks["before"], looks["after"]
    said = grown(before, after)
    said += [
        f"{folder}: {files_before.get(folder, 0)} files became {number}"
        for folder, number in files_after.items()
        if number > files_before.get(folder, 0) + ROOM.get(Path(folder).name, 2)
    ]
    return before, after, said


def main() -> int:
    """Run it and print what every process has come to. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.endurance", description=__doc__)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--warm-up", type=int, default=100)
    asked = parser.parse_args()
    began = time.monotonic()
    with running() as site:
        before, after, said = endure(site, asked.rounds, asked.warm_up)
    print(f"{asked.rounds} rounds in {time.monotonic() - began:.0f} s; after round {asked.warm_up} and at the end:\n")
    print(f"{'':24}{'MiB':>16}{'descriptors':>16}{'connections':>16}{'threads':>12}")
    for name, one in sorted(before.items()):
        other = after[name]
        print(
            f"{name:24}{one.rss_mib:8.1f}{other.rss_mib:8.1f}{one.num_descriptors:8}{other.num_descriptors:8}"
            f"{one.num_connections:8}{other.num_connections:8}{one.num_threads:6}{other.num_threads:6}"
        )
    print("\n" + ("\n".join(said) if said else "nothing grew"))
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
