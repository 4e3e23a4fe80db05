"""Lists of faults that have found a failure, each by what it found. (mode, faults)"""

from collections.abc import Mapping, Sequence

from tests.chaos.faults import Action, Fault

FOUND: Mapping[str, tuple[str, Sequence[Fault]]] = {
    "a second coordinator's requests differed from the first one's, and the job failed": (
        "retry",
        [Fault("coordinator", Action.SECOND_COORDINATOR, phase, 1) for phase in ("join", "update", "release")],
    ),
}
