"""`python -m dure_server.link HOME`: how `dure-server run` starts the link as a process of its own."""

import sys
from pathlib import Path

from dure_server.link.process import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
