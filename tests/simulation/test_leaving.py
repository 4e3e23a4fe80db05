"""A firm leaves while a job runs: the others go on, or the job ends and says why."""

import pytest

from dure_protocols.identity import fingerprint
from dure_server.coordinator.conversation import JobFailedError
from dure_server.coordinator.rounds import Coordinator
from tests.simulation.consortium import Consortium

FOUR = ("firm-a", "firm-b", "firm-c", "firm-d")


def leaves(consortium: Consortium, firm: str) -> None:
    """The firm's statement reaches the server, and it answers nothing of the job any more."""
    identity = fingerprint(consortium.firms[firm].identity.public_bytes)
    with consortium.store.transaction() as at:
        at.departures.add(firm, consortium.job.id, identity, b"statement", b"receipt")
    consortium.link.away.add(firm)


def when_published(number: int, consortium: Consortium, *firms: str) -> type[Coordinator]:
    """A coordinator whose firms leave when the sum of a round is published."""

    class Watched(Coordinator):
        def _publish(self, *args: object) -> None:
            is_now = self.state.round == number
            super()._publish(*args)  # type: ignore[arg-type]
            for firm in firms if is_now else ():
                leaves(consortium, firm)

    return Watched


@pytest.mark.parametrize("threshold", [None, 3])
def test_the_others_go_on_to_the_end_without_who_left(tmp_path, threshold) -> None:
    consortium = Consortium(tmp_path, num_firms=4, rounds=3, threshold=threshold)
    consortium.start(when_published(1, consortium, "firm-d")).run()
    members = consortium.members_by_round()
    assert members[1] == FOUR
    assert members[2] == members[3] == FOUR[:3]
    with consortium.store.reading() as at:
        assert at.progress.get(consortium.job.id).sentence == "the job is finished"


def test_a_coordinator_that_is_started_again_knows_who_left(tmp_path) -> None:
    consortium = Consortium(tmp_path, num_firms=4, rounds=3)
    consortium.start(when_published(1, consortium, "firm-d")).run()
    assert consortium.start()._record.left() == {"firm-d"}


def test_too_few_are_left_and_the_job_says_so(tmp_path) -> None:
    consortium = Consortium(tmp_path, num_firms=4, rounds=3, minimum_cohort=3)
    with pytest.raises(JobFailedError, match="firm-c, firm-d left the job for good, and its sums need 3 firms; 2 are"):
        consortium.start(when_published(1, consortium, "firm-c", "firm-d")).run()
    assert max(consortium.members_by_round()) == 1


def test_statistics_and_keys_need_every_firm(tmp_path) -> None:
    consortium = Consortium(tmp_path, num_firms=4, rounds=3)
    leaves(consortium, "firm-b")
    with pytest.raises(JobFailedError, match=r"firm-b refused the job \(left\)"):
        consortium.run()
