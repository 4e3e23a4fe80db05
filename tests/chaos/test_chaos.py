"""The short set of faults. `make chaos` has the whole matrix and random lists.

Each test is one job of four firms that must end, at every firm and the server, with the model of the undisturbed run.
"""

from collections.abc import Iterator

import pytest

from tests.chaos import disks
from tests.chaos.faults import Action, Fault
from tests.chaos.site import Outcome, Site, running
from tests.conftest import lacking
from tests.postgres import MISSING, programs, restartable_server


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running() as made:
        yield made


def ended_well(outcome: Outcome) -> None:
    assert not outcome.problem, outcome.problem
    assert not outcome.pending, f"not every fault happened: {outcome.pending}"
    assert not outcome.died, f"ended though nobody had killed them: {outcome.died}"


def test_kills_of_every_process_leave_the_model_of_the_undisturbed_run(site: Site) -> None:
    faults = [
        Fault("coordinator", Action.KILL, "keys"),
        Fault("agent:firm-b", Action.KILL, "join", 1, "agent:firm-b kept"),
        Fault("link", Action.KILL, "update", 2, "link stored"),
        Fault("trainer:firm-c", Action.KILL, "update", 3, "trainer:firm-c training"),
        Fault("console", Action.KILL, "update", 3),
        Fault("agent:firm-a", Action.KILL, "release", 3, "agent:firm-a made"),
        Fault("server", Action.KILL, "publish", 4),
    ]
    ended_well(site.run(faults, rounds=4))


@pytest.mark.slow
def test_a_firm_killed_in_threshold_mode_is_in_the_sum_or_told_to_be_out_of_it(site: Site) -> None:
    faults = [
        Fault("agent:firm-d", Action.KILL, "update", 1, "agent:firm-d sent"),
        Fault("coordinator", Action.KILL, "vote", 1),
        Fault("agent:firm-c", Action.KILL, "release", 2, "agent:firm-c asked", seconds=1.0),
    ]
    ended_well(site.run(faults, rounds=2, mode="threshold", whole=False))


@pytest.mark.slow
def test_cut_and_stalled_links_and_messages_that_come_twice_late_and_out_of_order_change_nothing(site: Site) -> None:
    faults = [
        Fault("link", Action.CUT, "join", 1, seconds=0.5),
        Fault("link:firm-a", Action.CUT, "update", 1, "link storing", seconds=0.5),
        Fault("link:firm-b", Action.STALL, "release", 1, seconds=1.0),
        Fault("link", Action.DUPLICATE, "update", 2),
        Fault("link", Action.REORDER, "release", 2),
        Fault("link", Action.DELAY, "join", 2, seconds=0.5),
    ]
    ended_well(site.run(faults, rounds=2))


@pytest.mark.slow
def test_a_second_coordinator_of_a_job_changes_nothing(site: Site) -> None:
    faults = [Fault("coordinator", Action.SECOND_COORDINATOR, phase, 1) for phase in ("join", "update", "release")]
    ended_well(site.run(faults, rounds=3))


@pytest.mark.slow
def test_a_full_disk_costs_time_and_nothing_else() -> None:
    if reason := disks.why_not():
        lacking(reason)
    with running(disks=("server",)) as site:
        ended_well(site.run([Fault("server", Action.FULL_DISK, "update", 1, seconds=2.0)], rounds=2))


@pytest.mark.slow
def test_a_postgresql_that_restarts_or_turns_read_only_in_mid_job_costs_time_and_nothing_else() -> None:
    binaries = programs()
    if binaries is None:
        lacking(MISSING)
        return
    faults = [
        Fault("store", Action.RESTART_STORE, "update", 1, seconds=1.0),
        Fault("store", Action.READ_ONLY, "release", 2, seconds=1.0),
        Fault("coordinator", Action.SECOND_COORDINATOR, "join", 3),
    ]
    with restartable_server(binaries) as postgres, running(postgres=postgres) as site:
        ended_well(site.run(faults, rounds=3))
