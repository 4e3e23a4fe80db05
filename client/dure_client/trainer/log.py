"""What a trainer says, written into the firm's own log by the agent, so that the trainer itself can open no log."""

import logging
import os
import subprocess
import threading
from pathlib import Path
from typing import IO

MAX_LOG_BYTES = 10 << 20  # of one trainer; and of a log, after which the next trainer begins a new one
_CHUNK_BYTES = 64 << 10
_CUT = b"\n(more was said, and is not kept)\n"

logger = logging.getLogger(__name__)


def keep_what_is_said(process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Append a process's standard output to a log, in a thread, until it ends; what is too much is dropped.

    The log before, `.log.1`, is kept. Raises OSError if the log cannot be opened.
    """
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))  # the pump of a trainer that runs keeps writing to the old one
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    assert process.stdout is not None  # noqa: S101  # it was started with a pipe
    threading.Thread(target=_pump, args=(process.stdout, descriptor), name="trainer log", daemon=True).start()


def _pump(said: IO[bytes], log: int) -> None:
    left = MAX_LOG_BYTES
    try:
        while chunk := os.read(said.fileno(), _CHUNK_BYTES):
            if left > 0:
                os.write(log, chunk[:left] + (_CUT if len(chunk) > left else b""))
                left -= len(chunk)
    except OSError:  # a full disk must not stop the trainer, which would wait for a reader
        logger.warning("the trainer's log cannot be written", exc_info=True)
        while os.read(said.fileno(), _CHUNK_BYTES):
            pass
    finally:
        os.close(log)
        said.close()
