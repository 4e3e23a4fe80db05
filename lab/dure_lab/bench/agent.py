"""The product's agent with a trainer that does not train: `python -m dure_lab.bench.agent --home HOME`."""

import argparse
from pathlib import Path

from dure_client.home import AgentHome
from dure_client.running import run_agent


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    run_agent(AgentHome(parser.parse_args().home), trainer_module="dure_lab.bench.idle_trainer")


if __name__ == "__main__":
    main()
