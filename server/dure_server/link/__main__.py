"""`python -m dure_server.link --home HOME`: how `dure-server run` starts the link as a process of its own."""

import argparse
import sys
from pathlib import Path

from dure_server.link.process import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m dure_server.link", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    sys.exit(main(parser.parse_args().home))
