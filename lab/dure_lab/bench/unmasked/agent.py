"""The benchmark's agent without masks in every other round: `python -m dure_lab.bench.unmasked.agent --home HOME`."""

from dure_lab.bench.agent import main
from dure_lab.bench.unmasked.patch import leave_masks_out

if __name__ == "__main__":
    leave_masks_out()
    main()
