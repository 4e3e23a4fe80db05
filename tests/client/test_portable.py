"""What must start on any system: `dure-agent` with its commands, of which `doctor` says what this host has."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dure_client.file_lock import lock

POSIX_ONLY = ("fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
# asyncio, subprocess and the like import some of them, on the systems that have them.
OTHERS = "asyncio, getpass, grpc, httpx, multiprocessing, shutil, subprocess, tarfile, tempfile, typer"
IMPORTS = f"""
import sys
import {OTHERS}
for name in {POSIX_ONLY}:
    sys.modules[name] = None
import dure_client.cli
dure_client.cli.app(["install", "--print"])
"""


def test_the_commands_start_without_a_module_that_only_posix_has() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "dure-agent.service" in done.stdout


def test_on_windows_the_lock_is_on_a_byte_that_nobody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: set[int] = set()

    def locking(descriptor: int, mode: int, num_bytes: int) -> None:
        assert (mode, num_bytes) == (2, 1)
        place = os.lseek(descriptor, 0, os.SEEK_CUR)
        if place in held:
            raise PermissionError(errno.EACCES, "Permission denied")
        held.add(place)

    windows = ModuleType("msvcrt")
    vars(windows).update(LK_NBLCK=2, locking=locking)
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    monkeypatch.setattr(sys, "platform", "win32")
    with (tmp_path / "ledger.jsonl").open("w+b") as file:
        lock(file.fileno())
        with pytest.raises(BlockingIOError):
            lock(file.fileno())
    assert min(held) > 1 << 40
