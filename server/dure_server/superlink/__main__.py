"""Write the bundle to submit: python -m dure_server.superlink FOLDER."""

import argparse
import sys
from pathlib import Path

from dure_protocols.errors import DureError
from dure_server.superlink.app import JOB_KEY
from dure_server.superlink.bundle import write_bundle


def main() -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dure_server.superlink", description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder")
    try:
        folder = write_bundle(parser.parse_args().folder)
    except DureError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Wrote {folder}; submit a job with: flwr run {folder} SUPERLINK --run-config '{JOB_KEY}=\"ID\"'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
