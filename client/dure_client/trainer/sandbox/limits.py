"""Sandboxes for hosts that have no better one: limits on a process, and nothing at all."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dure_client.trainer.sandbox import launch
from dure_client.trainer.sandbox.interface import Confined, Grants, Limits, SandboxLevel


@dataclass(frozen=True)
class LimitsOnly:
    """What POSIX limits on one process. Files, network and further processes stay open to it."""

    why_not_more: str = ""
    level = SandboxLevel.LIMITS

    def confine(self, command: Sequence[str], grants: Grants, limits: Limits) -> Confined:
        """The command behind the launcher that sets the limits."""
        del grants
        return Confined(marked(limited(command, limits), limits))


@dataclass(frozen=True)
class Unconfined:
    """No sandbox: a process of its own, as on Windows."""

    why_not_more: str = ""
    level = SandboxLevel.OFF

    def confine(self, command: Sequence[str], grants: Grants, limits: Limits) -> Confined:
        """The command as it is."""
        del grants, limits
        return Confined(tuple(command))


def limited(command: Sequence[str], limits: Limits, *, num_threads: int | None = None) -> tuple[str, ...]:
    """A command behind the launcher. `num_threads` counts all of a user's, so it is for a user namespace of its own."""
    settings = {
        "CORE": 1,  # a core dump would hold the rows; with 0, a crash handler that the kernel pipes to gets it whole
        "STACK": 8 << 20,  # memory beside DATA
        "DATA": limits.memory_bytes,
        "FSIZE": limits.scratch_bytes,
        "NOFILE": limits.num_open_files,
        "nice": limits.niceness,
    }
    if num_threads is not None:
        settings["NPROC"] = num_threads
    return _behind_launcher(command, settings)


def marked(command: Sequence[str], limits: Limits) -> tuple[str, ...]:
    """A command that is the first to be ended where the host runs out of memory, and stays on as many processors as the
    limits say. All that it starts inherits both, and in a sandbox could not choose them: so this comes before it."""
    settings = {"oom_score_adj": 1000}
    if limits.num_processors:
        settings["processors"] = limits.num_processors
    return _behind_launcher(command, settings)


def _behind_launcher(command: Sequence[str], settings: Mapping[str, int]) -> tuple[str, ...]:
    named = [f"{name}={value}" for name, value in settings.items()]
    return (sys.executable, "-I", "-S", str(Path(launch.__file__)), *named, "--", *command)
