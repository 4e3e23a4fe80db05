"""`dure-agent run`: connect, and take part in the jobs that this firm approved."""

import logging
import os
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Annotated

import typer

from dure_client.commands.join import HomeOption
from dure_client.home import AgentHome

LOG_BYTES = 10 << 20  # of one log; so many older ones are kept beside it, as agent.log.1 and so on
KEPT_LOGS = 4
_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def run(
    home: HomeOption,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Processor threads for training.")] = 1,
) -> None:
    """Run the agent until it is stopped (Ctrl-C). It connects outward only."""
    agent_home = AgentHome(home)
    agent_home.config()  # before any folder is made: is this a firm's home at all?
    _log_to(agent_home.logs / "agent.log")
    from dure_client.running import run_agent  # noqa: PLC0415  # loads flwr

    run_agent(agent_home, num_threads=threads)


def _log_to(file: Path) -> None:
    """The firm's own log: to a private file with the reasons in full, and to the screen."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    handlers: list[logging.Handler] = [
        RotatingFileHandler(file, maxBytes=LOG_BYTES, backupCount=KEPT_LOGS, encoding="utf-8"),
        logging.StreamHandler(sys.stderr),
    ]
    logging.basicConfig(level=logging.WARNING, format=_LINE, handlers=handlers)
    logging.getLogger("dure_client").setLevel(logging.INFO)
