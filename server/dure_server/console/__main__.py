"""`python -m dure_server.console --home HOME`: how `dure-server run` starts the console process."""

import argparse
import sys
from pathlib import Path

from dure_server.console.process import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m dure_server.console", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the server's home folder")
    sys.exit(main(parser.parse_args().home))
