"""What a trainer has in memory, as the kernel's files say it; and that nobody trains unwatched."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dure_client.trainer.sandbox import Limits
from dure_client.trainer.watch import memory_of, watch


def process(proc: Path, pid: int, parent: int, kilobytes: int, children: list[int] | None) -> None:
    (proc / str(pid) / "task" / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "status").write_text(f"Name: x\nPPid:\t{parent}\nRssAnon:\t{kilobytes} kB\nRssShmem:\t1 kB\n")
    if children is not None:
        (proc / str(pid) / "task" / str(pid) / "children").write_text(" ".join(map(str, children)))


@pytest.mark.parametrize("are_named", [True, False])
def test_a_process_and_all_its_descendants_are_counted_and_no_other(tmp_path: Path, are_named: bool) -> None:
    """Some kernels are built without the file that names children."""
    for pid, parent, kilobytes, children in ((7, 1, 10, [8]), (8, 7, 100, [9]), (9, 8, 1000, []), (10, 1, 5000, [])):
        process(tmp_path, pid, parent, kilobytes, children if are_named else None)
    assert memory_of(7, tmp_path) == (1110 + 3) << 10
    assert memory_of(11, tmp_path) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_this_kernel_tells_what_a_child_has_written() -> None:
    hold = "import sys, time; held = bytearray(b'x' * (64 << 20)); print(len(held), flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(0.05)
            assert 64 << 20 < memory_of(child.pid) < 256 << 20
        finally:
            child.kill()


class Running:
    """A process that ends when it is killed."""

    pid = 0
    killed = False

    def has_ended_within(self, seconds: float) -> bool:
        return self.killed

    def kill(self) -> None:
        self.killed = True


def test_a_trainer_whose_scratch_folder_cannot_be_looked_at_is_ended(tmp_path: Path) -> None:
    """One that moved its folder away would else write unwatched."""
    running = Running()
    watch(running, tmp_path / "gone", Limits(1 << 40))
    assert running.killed
