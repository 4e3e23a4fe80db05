"""The product's agent with a trainer whose model raises with rows in its text."""

import argparse
import logging
import os
import sys
from pathlib import Path

from dure_client.home import AgentHome
from dure_client.running import run_agent
from dure_client.trainer import process

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # The trainer's environment is minimal; here it has to find the tests.
    os.environ["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    process._PASSED_ON = (*process._PASSED_ON, "PYTHONPATH")
    run_agent(AgentHome(parser.parse_args().home), trainer_module="tests.end_to_end.raising_trainer")
