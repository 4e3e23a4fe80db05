"""The short form of `make endurance`: descriptors, connections, threads and files stay as they are after the warm-up.

Memory is judged by the long form: over so few rounds an allocator still settles.
"""

import pytest

from tests.chaos.endurance import Look, endure, grown
from tests.chaos.site import running

STEADY = Look(100.0, 20, 4, 10)


@pytest.mark.slow
def test_sixty_rounds_leave_no_descriptor_connection_thread_or_file_behind() -> None:
    with running() as site:
        before, after, said = endure(site, rounds=60, warm_up=20)
    assert before.keys() == after.keys()
    assert len(before) == 4 + 4 + 4, f"server, agents and trainers were expected, these were seen: {sorted(before)}"
    assert not [line for line in said if "MiB" not in line], "\n".join(said)


def test_what_grows_is_told() -> None:
    assert grown({"link": STEADY}, {"link": STEADY}) == []
    assert grown({"link": STEADY}, {"link": Look(104.9, 22, 6, 12)}) == []
    assert grown({"link": STEADY}, {"link": Look(105.1, 23, 4, 10)}) == [
        "link: 100.0 MiB became 105.1",
        "link: num_descriptors 20 became 23",
    ]
