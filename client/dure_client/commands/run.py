"""`dure-agent run`: connect, and take part in the jobs that this firm approved."""

import logging
import os
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Annotated

import typer

from dure_client.commands.join import HomeOption
from dure_client.home import AgentHome, SettingsError
from dure_client.keystore import PinError
from dure_client.leaving import LeftConsortiumError
from dure_client.policy import Policy, PolicyError
from dure_client.service import EX_CONFIG
from dure_protocols.errors import DureError
from dure_protocols.logs import formatter

logger = logging.getLogger(__name__)

LOG_BYTES = 10 << 20  # of one log; so many older ones are kept beside it, as agent.log.1 and so on
KEPT_LOGS = 4
_ONLY_A_PERSON_HELPS = (PinError, SettingsError, LeftConsortiumError)
"""Another start would change nothing, and another try of a wrong PIN may lock the token."""


def run(
    home: HomeOption,
    threads: Annotated[
        int, typer.Option("--threads", envvar="DURE_AGENT_THREADS", min=1, help="Processor threads for training.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", envvar="DURE_AGENT_JSON", help="Log JSON lines.")] = False,
) -> None:
    """Run the agent until it is stopped (Ctrl-C). It connects outward only."""
    agent_home = AgentHome(home)
    config = agent_home.config()  # before any folder is made: is this a firm's home at all?
    _log_to(agent_home.logs / "agent.log", formatter("agent", as_json=as_json, firm=config.firm))
    _tell_of_a_bad_policy(agent_home)
    from dure_client.running import run_agent  # noqa: PLC0415  # loads flwr

    run_agent(agent_home, num_threads=threads, json_logs=as_json)


def _tell_of_a_bad_policy(home: AgentHome) -> None:
    """The agent runs all the same: it reads the policy at every request, and a mended one is in force at once."""
    try:
        Policy.read(home.policy_file)
    except PolicyError as error:
        logger.error("every job is refused until policy.toml is valid: %s", error)  # noqa: TRY400


def exit_status(error: DureError) -> int:
    """With which `dure-agent run` ends on an error. A service manager starts it again unless it is EX_CONFIG."""
    return EX_CONFIG if isinstance(error, _ONLY_A_PERSON_HELPS) else 1


def _log_to(file: Path, form: logging.Formatter) -> None:
    """The firm's own log: to a private file with the reasons in full, and to the screen."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    handlers: list[logging.Handler] = [
        RotatingFileHandler(file, maxBytes=LOG_BYTES, backupCount=KEPT_LOGS, encoding="utf-8"),
        logging.StreamHandler(sys.stderr),
    ]
    for handler in handlers:
        handler.setFormatter(form)
    logging.basicConfig(level=logging.WARNING, handlers=handlers)
    logging.getLogger("dure_client").setLevel(logging.INFO)
