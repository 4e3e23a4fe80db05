"""`python -m dure_server.link --home HOME [--json]`: how `dure-server run` starts the link as a process of its own."""

import argparse
import sys
from pathlib import Path

from dure_server.link.process import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m dure_server.link", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--json", action="store_true", help="log JSON lines")
    arguments = parser.parse_args()
    sys.exit(main(arguments.home, as_json=arguments.json))
