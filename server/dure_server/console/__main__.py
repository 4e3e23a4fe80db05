"""`python -m dure_server.console --home HOME [--json]`: how `dure-server run` starts the console process."""

import argparse
import sys
from pathlib import Path

from dure_server.console.process import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m dure_server.console", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the server's home folder")
    parser.add_argument("--json", action="store_true", help="log JSON lines")
    arguments = parser.parse_args()
    sys.exit(main(arguments.home, as_json=arguments.json))
