"""An arm's peak memory beyond what it works on, in a process of its own: `python -m dure_lab.bench.secagg.memory …`.

The code runs at a small size first, so that imports and compiling do not count. Linux only.
"""

import argparse
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dure_lab.bench.secagg.arm import Arm, Case, Stopwatch
from dure_lab.bench.secagg.arms import ARMS
from dure_protocols.errors import DureError

ROLES = ("client", "server")
_WARM_UP_PARAMETERS = 10_000
_TIMEOUT_SECONDS = 900
_RETURNED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""For glibc: what making the arm has freed goes back to the kernel, so that the work cannot hide in it."""


class MemoryMeasurementError(DureError):
    """The measuring process failed; the text holds its last words."""


class Peak(BaseModel):
    """Bytes at the peak of an arm's work, beyond inputs that stood before.

    resident: by the kernel's count; allocated: by Python's and numpy's; result: what the work leaves behind, which both
    hold. What lies above it is scratch memory.
    """

    model_config = ConfigDict(frozen=True)

    resident: int
    allocated: int
    result: int


def peak_of(arm: str, role: str, case: Case) -> Peak:
    """Measure in a process of its own. Raises MemoryMeasurementError."""
    numbers = [str(case.firms), str(case.parameters), str(case.seed)]
    done = subprocess.run(
        [sys.executable, "-m", __name__, arm, role, *numbers],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        env={**os.environ, **_RETURNED_AT_ONCE},
        check=False,
    )
    if done.returncode != 0:
        raise MemoryMeasurementError(f"measuring the memory of {arm} ({role}) failed: {done.stderr.strip()[-500:]}")
    return Peak.model_validate_json(done.stdout)


def measure(arm: str, role: str, case: Case) -> Peak:
    """Measure in this process, which should do nothing else."""
    make = ARMS[arm]
    _work(make(Case(case.firms, _WARM_UP_PARAMETERS, case.seed)), role)
    ready = make(case)
    tracemalloc.start()
    allocated = tracemalloc.get_traced_memory()[0]
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak begins anew
    resident = _status("VmRSS")
    _work(ready, role)
    return Peak(
        resident=_status("VmHWM") - resident,
        allocated=tracemalloc.get_traced_memory()[1] - allocated,
        result=ready.vector_bytes,
    )


def _work(arm: Arm, role: str) -> None:
    watch = Stopwatch(cold=False)
    if role == "client":
        arm.client(watch)
    else:
        arm.server(watch)


def _status(name: str) -> int:
    """A figure of /proc/self/status, bytes."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arm", choices=sorted(ARMS))
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("firms", type=int)
    parser.add_argument("parameters", type=int)
    parser.add_argument("seed", type=int)
    given = parser.parse_args()
    print(measure(given.arm, given.role, Case(given.firms, given.parameters, given.seed)).model_dump_json())
