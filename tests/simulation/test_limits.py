"""What a firm's policy adds to a job, as the whole firm's side applies it."""

from dataclasses import replace

import pytest

from dure_client.jobs.side import FirmLimits, Given
from dure_protocols.errors import RefusalCode, RefusedError
from dure_protocols.messages import Cohort, Invitation
from tests.simulation.consortium import Consortium


def joined(consortium, names, round_=1):
    """The firms' joins of a round's first attempt."""
    request = Invitation(consortium.job.digest(), 1, round_, 1, ())
    return tuple(consortium.firms[name].side.answer(request, Given()).message for name in names)


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (FirmLimits(minimum_rows=101), RefusalCode.DATA),  # the trainer has 100
        (FirmLimits(minimum_cohort=4), RefusalCode.COHORT_TOO_SMALL),
        (FirmLimits(minimum_rows=100, minimum_cohort=3), None),
    ],
)
def test_limits_that_a_firm_tightens_hold_from_the_next_request_on(tmp_path, limits, code):
    consortium = Consortium(tmp_path, num_firms=4, rounds=1, statistics=0)
    consortium.run_until_keys()
    joins = joined(consortium, ("firm-a", "firm-b", "firm-c"))
    side = consortium.firms["firm-a"].side
    side.use_limits(replace(limits, minimum_statistics_difference=1))
    cohort = Cohort(consortium.job.digest(), 1, 1, 1, joins)
    if code is None:
        assert side.answer(cohort, Given()).message.firm == "firm-a"
        return
    with pytest.raises(RefusedError) as info:
        side.answer(cohort, Given())
    assert info.value.code is code
