"""Recompute every vector and say what differs; exit with 1 if anything does."""

import sys

from .compute import differing
from .files import NAMES, load


def main():
    wrong = [f"{name}.json: {title}" for name in NAMES for title in differing(load(name))]
    print("\n".join(["these cases differ:", *wrong] if wrong else ["every case is as it is expected"]))
    return len(wrong) > 0


if __name__ == "__main__":
    sys.exit(main())
