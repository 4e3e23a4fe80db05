"""The product's coordinator, unmasking nothing in every other round."""

import sys

from dure_lab.bench.unmasked.patch import leave_masks_out
from dure_server.coordinator.__main__ import main

if __name__ == "__main__":
    leave_masks_out()
    sys.exit(main())
