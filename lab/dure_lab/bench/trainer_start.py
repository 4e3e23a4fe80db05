"""What the start of a trainer costs a job, and what of it the sandbox adds.

Every start is a real one, of the trainer's process until its socket is there; the arms take turns in an order drawn
anew for each repetition, after one to warm up. Beside them: a Python that does nothing in the same sandboxes, and
`import torch` in none, which bounds every start of a process that trains.
"""

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dure_client.trainer.process import TrainerPlaces, start
from dure_client.trainer.sandbox import Grants, Limits, Sandbox, SandboxLevel, find_sandbox
from dure_client.trainer.sandbox.limits import LimitsOnly, Unconfined
from dure_lab.bench.spread import Spread
from dure_protocols.errors import MisuseError

_START_SECONDS = 120.0
_NOTHING = [sys.executable, "-I", "-S", "-c", ""]


class TrainerStarts(BaseModel):
    """seconds: of each arm. full_adds: a trainer's start in the full sandbox less one in none, by repetition;
    full_adds_to_nothing: the same of a Python that does nothing."""

    model_config = ConfigDict(frozen=True)

    repetitions: int
    seconds: Mapping[str, Spread]
    full_adds: Spread
    full_adds_to_nothing: Spread


def bench_trainer_start(repetitions: int, *, seed: int = 1) -> TrainerStarts:
    """Called by `dure bench trainer`. Raises MisuseError on a host without the full sandbox."""
    full = find_sandbox()
    if full.level is not SandboxLevel.FULL:
        raise MisuseError(f"this host has no full sandbox to compare with: {full.why_not_more}")
    sandboxes: dict[str, Sandbox] = {"full": full, "limits": LimitsOnly(), "off": Unconfined()}
    order = random.Random(seed)  # noqa: S311  # of arms
    measured: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="dure-bench-") as name:
        arms: dict[str, Callable[[], float]] = {"import torch": _import_torch}
        for level, sandbox in sandboxes.items():
            arms[f"trainer, {level}"] = lambda sandbox=sandbox: _trainer(Path(name), sandbox)  # type: ignore[misc]
            arms[f"nothing, {level}"] = lambda sandbox=sandbox: _nothing(sandbox)  # type: ignore[misc]
        for repetition in range(-1, repetitions):
            for arm in order.sample(list(arms), len(arms)):
                seconds = arms[arm]()
                if repetition >= 0:
                    measured.setdefault(arm, []).append(seconds)
    return TrainerStarts(
        repetitions=repetitions,
        seconds={arm: Spread.of(measured[arm]) for arm in arms},
        full_adds=_difference(measured["trainer, full"], measured["trainer, off"]),
        full_adds_to_nothing=_difference(measured["nothing, full"], measured["nothing, off"]),
    )


def _trainer(folder: Path, sandbox: Sandbox) -> float:
    places = TrainerPlaces(folder / "scratch", folder / "data.toml", folder / "logs" / "trainer.log")
    begun = time.perf_counter()
    process = start(places, sandbox, num_threads=1, timeout_seconds=_START_SECONDS)
    seconds = time.perf_counter() - begun
    process.close()
    return seconds


def _nothing(sandbox: Sandbox) -> float:
    begun = time.perf_counter()
    sandbox.confine(_NOTHING, Grants(), Limits(1 << 30)).run(_START_SECONDS).check_returncode()
    return time.perf_counter() - begun


def _import_torch() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - begun


def _difference(more: list[float], less: list[float]) -> Spread:
    return Spread.of([one - other for one, other in zip(more, less, strict=True)])
