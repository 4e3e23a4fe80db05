"""The product's agent with hooks: `python -m tests.chaos.agent --home HOME`. Its trainer is `tests.chaos.trainer`."""

import argparse
import logging
import os
import sys
from pathlib import Path

from dure_client import agent
from dure_client.home import AgentHome
from dure_client.link.client import LinkClient
from dure_client.running import run_agent
from dure_client.trainer import process
from dure_client.trainer.sandbox.limits import LimitsOnly
from dure_protocols.frames import Envelope, Place
from tests.chaos.points import VARIABLE, Point, reach


def hook(firm: str) -> None:
    """Make this process tell where it is."""
    handle, answer, keep, reply = agent.Agent.handle, agent.Agent._answer, agent.Agent._keep, LinkClient.reply

    def at(envelope: Envelope, moment: str) -> None:
        place = Place.of(envelope.group)
        reach(Point(f"agent:{firm}", place.job, place.phase.partition(".")[0], place.round, moment))

    def handle_hooked(self, message):
        at(message, "asked")
        handle(self, message)

    def answer_hooked(self, message):
        made = answer(self, message)
        at(message, "made")
        return made

    def keep_hooked(self, file, made):
        kept = keep(self, file, made)
        at(made, "kept")
        return kept

    def reply_hooked(self, made, kind, patience_seconds):
        reply(self, made, kind, patience_seconds)
        at(made, "sent")

    agent.Agent.handle, agent.Agent._answer, agent.Agent._keep = handle_hooked, answer_hooked, keep_hooked
    LinkClient.reply = reply_hooked


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    home = AgentHome(parser.parse_args().home)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    hook(home.config().firm)
    # The trainer's environment is minimal; here it has to find the tests, and the harness.
    os.environ["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    process._PASSED_ON = (*process._PASSED_ON, "PYTHONPATH", VARIABLE)
    # A full sandbox would keep the hooks from the harness.
    run_agent(home, trainer_module="tests.chaos.trainer", sandbox=LimitsOnly())
