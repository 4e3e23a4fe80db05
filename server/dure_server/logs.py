"""Where the server's processes log to: standard error, which the supervisor keeps in a file for each."""

import logging

from dure_protocols.logs import formatter


def log_to_stderr(process: str, *, as_json: bool, job: str = "") -> None:
    """Called once, when a process starts. job: the one that the process is for."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(process, as_json=as_json, job=job))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
