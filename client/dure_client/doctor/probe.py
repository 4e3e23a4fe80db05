"""Runs inside the sandbox in a trainer's place and tries what a trainer must not do; prints one JSON line an attempt.

`python -I -S probe.py PORT PLANTED OUTSIDE THREADS MEMORY_BYTES`: a port of this host that listens, a file that must
not be read, one that must not be written, the most threads, the most memory. Standard library only. Harmless where
nothing holds it: what it makes, it removes.
"""

import json
import os
import socket
import sys
import threading
from collections.abc import Callable


def main(arguments: list[str]) -> None:
    """Try everything; "held" is whether the sandbox refused it."""
    port, planted, outside, num_threads, memory_bytes = arguments
    attempts: dict[str, Callable[[], None]] = {
        "network": lambda: socket.create_connection(("127.0.0.1", int(port)), 5).close(),
        "home": lambda: _read(planted),
        "system files": lambda: _read("/etc/passwd"),
        "writing": lambda: _write(outside),
        "processes": _fork,
        "threads": lambda: _threads(int(num_threads)),
        "processors": _processors,
        "memory": lambda: _memory(int(memory_bytes)),
        "shared memory": _shared_memory,
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except (OSError, MemoryError, RuntimeError) as error:
            print(json.dumps({"name": name, "held": True, "by": type(error).__name__}), flush=True)
        else:
            print(json.dumps({"name": name, "held": False, "by": ""}), flush=True)


def _read(path: str) -> None:
    with open(path, "rb") as file:  # noqa: PTH123  # pathlib would double this program's start
        file.read(1)


def _write(path: str) -> None:
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(b"x")
    os.unlink(path)  # noqa: PTH108


def _fork() -> None:
    if not hasattr(os, "fork"):  # Windows starts processes in another way, and nothing holds them
        return
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _threads(limit: int) -> None:
    """More threads than the limit, all at once."""
    end = threading.Event()
    started = []
    try:
        for _ in range(limit + 1):
            thread = threading.Thread(target=end.wait)
            thread.start()
            started.append(thread)
    finally:
        end.set()
        for thread in started:
            thread.join()


def _processors() -> None:
    """More than the one processor that it was given."""
    if not hasattr(os, "sched_setaffinity"):
        return
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    if len(os.sched_getaffinity(0)) == 1:
        raise OSError("this machine has one")


def _memory(limit: int) -> None:
    """More memory than the limit, asked for and not touched."""
    bytearray(limit + 1)


def _shared_memory() -> None:
    """Memory that a limit on a process does not count."""
    import mmap  # noqa: PLC0415

    mmap.mmap(-1, mmap.PAGESIZE).close()


if __name__ == "__main__":
    main(sys.argv[1:])
