"""The trainer process: `python -m dure_client.trainer --socket PATH --scratch DIR --data FILE [--threads N] [--json]
[--package DIR]`.

Started by the agent (`process.start`) and by nobody else. Ends when its standard input closes, that is with the agent.
"""

import argparse
import faulthandler
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from dure_client.trainer.messages import TrainingSpec
from dure_client.trainer.service import TrainerService, make_server
from dure_client.trainer.session import TrainingSession, use_threads
from dure_protocols.logs import formatter


def main(make_session: Callable[[TrainingSpec, Path], TrainingSession] = TrainingSession) -> None:
    """Serve until the agent goes. Another `make_session` is for benchmarks, which must not measure training."""
    faulthandler.enable()
    parser = argparse.ArgumentParser(prog="dure-trainer", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--package", type=Path, help="folder of the approved model package")
    parser.add_argument("--json", action="store_true", help="log JSON lines")
    arguments = parser.parse_args()
    handler = logging.StreamHandler()
    handler.setFormatter(formatter("trainer", as_json=arguments.json))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    os.umask(0o077)  # the socket and every file made here are this user's alone
    use_threads(arguments.threads)
    service = TrainerService(arguments.scratch, arguments.data, make_session, package=arguments.package)
    server = make_server(service, arguments.socket)
    server.start()
    sys.stdin.buffer.read()
    # A training in progress is not waited for: nobody is left to take its result.
    os._exit(0)


if __name__ == "__main__":
    main()
