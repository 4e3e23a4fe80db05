"""The one interface of all sandboxes, and what is told to them."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, Self

from dure_protocols.errors import DureError

MOST_SCRATCH_BYTES = 16 << 30
_ELSEWHERE_MEMORY_BYTES = 8 << 30  # where the platform does not say how much it has


class SandboxError(DureError):
    """This host cannot confine a trainer as asked. The text says why and what to do."""


class SandboxLevel(StrEnum):
    """How much is enforced on a trainer. Each level holds what the ones after it hold."""

    FULL = "full"
    """No network, no files but those granted, no processes, limits."""
    LIMITS = "limits"
    """Limits that the operating system sets on one process; files and network are open to it."""
    OFF = "off"
    """Nothing but a process of its own."""

    def reaches(self, wanted: "SandboxLevel") -> bool:
        """Whether this level enforces at least what `wanted` does."""
        order = list(SandboxLevel)
        return order.index(self) <= order.index(wanted)


@dataclass(frozen=True)
class Limits:
    """The most that a trainer may use.

    memory_bytes: heap, stacks and everything else that it writes to; scratch_bytes: each file, and the scratch folder
    in all; num_processors: of the host, 0 for each of them; niceness: by how much it gives way to other work.
    """

    memory_bytes: int
    scratch_bytes: int = MOST_SCRATCH_BYTES
    num_threads: int = 1024
    num_processors: int = 0
    num_open_files: int = 1024
    niceness: int = 10

    @classmethod
    def of_host(cls, folder: Path, memory_bytes: int = 0, num_processors: int = 0) -> Self:
        """Three quarters of the machine's memory if `memory_bytes` is 0, and half of what is free where `folder` is."""
        free = shutil.disk_usage(folder).free
        memory_bytes = memory_bytes or _physical_memory() * 3 // 4
        return cls(memory_bytes, min(MOST_SCRATCH_BYTES, free // 2), num_processors=num_processors)


def _physical_memory() -> int:
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _ELSEWHERE_MEMORY_BYTES


@dataclass(frozen=True)
class Grants:
    """What of the host a trainer may touch, beside interpreter, packages and shared libraries.

    readable: files and folders, read-only; writable: folders; hidden: folders that stay empty even where something else
    that is granted lies around them, except for what is granted inside; devices: of a GPU, for example.
    """

    readable: Sequence[Path] = ()
    writable: Sequence[Path] = ()
    hidden: Sequence[Path] = ()
    devices: Sequence[Path] = ()


@dataclass(frozen=True)
class Confined:
    """A command in its sandbox: what to start, and the descriptors to hand to it and to close afterwards."""

    command: Sequence[str]
    descriptors: Sequence[int] = ()

    def run(self, timeout_seconds: float, folder: Path | None = None) -> "subprocess.CompletedProcess[bytes]":
        """Run it to its end, with an empty environment and nothing to read; then it is closed.

        folder: to start in. Raises OSError, subprocess.TimeoutExpired.
        """
        try:
            return subprocess.run(
                self.command,
                pass_fds=tuple(self.descriptors),
                env={},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_seconds,
                check=False,
            )
        finally:
            self.close()

    def close(self) -> None:
        """Close the descriptors; the started process has its own."""
        for descriptor in self.descriptors:
            os.close(descriptor)


class Sandbox(Protocol):
    """Confines commands."""

    @property
    def level(self) -> SandboxLevel:
        """How much it enforces."""
        ...

    @property
    def why_not_more(self) -> str:
        """Why this host has nothing stronger, and what to do; empty if this is the strongest."""
        ...

    def confine(self, command: Sequence[str], grants: Grants, limits: Limits) -> Confined:
        """A Python command (the interpreter first) as it is started in the sandbox. The caller closes what it gets."""
        ...
