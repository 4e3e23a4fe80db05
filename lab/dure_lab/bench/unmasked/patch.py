"""Leaves masks out of the rounds that are measured without. Called first thing in each of the benchmark's processes."""

from collections.abc import Mapping

import numpy as np

from dure_lab.bench.unmasked.schedule import is_masked
from dure_protocols.messages import Cohort, Release
from dure_protocols.secagg import server
from dure_protocols.secagg.codec import VectorLayout, Words
from dure_protocols.secagg.firm import FirmSession
from dure_protocols.secagg.masks import MaskKeys
from dure_protocols.secagg.server import Attempt

_APPLY = "apply_keystreams"


class NoMasks(MaskKeys):
    """Keys that make no mask."""

    def mask(self, layout: VectorLayout) -> Words:
        """Zeros that were written, so that their pages are there before the update comes, as masks' would be."""
        return np.full(layout.words, 0, np.uint64)


def leave_masks_out() -> None:
    """Change this process for good: in rounds that are not masked, no keystream is made, added or removed."""
    accept, unmask = FirmSession.accept_cohort, Attempt.unmask

    def accept_cohort(session: FirmSession, cohort: Cohort) -> MaskKeys:
        keys = accept(session, cohort)
        return keys if is_masked(cohort.round) else NoMasks(keys.add, keys.subtract, keys.tag)

    def unmask_nothing(attempt: Attempt, releases: Mapping[str, Release]) -> Words:
        _, round_number, _ = attempt.place
        if is_masked(round_number):
            return unmask(attempt, releases)
        apply = getattr(server, _APPLY)
        setattr(server, _APPLY, lambda *_, **__: None)
        try:
            return unmask(attempt, releases)
        finally:
            setattr(server, _APPLY, apply)

    setattr(FirmSession, accept.__name__, accept_cohort)
    setattr(Attempt, unmask.__name__, unmask_nothing)
