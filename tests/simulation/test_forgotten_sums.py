"""Sums that no firm needs are deleted; a firm that was away for longer takes a snapshot, even at the job's end."""

import numpy as np
import pytest

from dure_protocols.job import FedAdamTerms
from dure_server.coordinator import conversation, joining, rounds
from dure_server.coordinator.record import JobRecord
from tests.simulation.consortium import Consortium
from tests.simulation.test_undisturbed import WanderingTrainer

AWAY = "firm-d"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(conversation, "ABSENCE_SECONDS", 0.01)
    monkeypatch.setattr(rounds, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(rounds, "CHECKPOINT_ROUNDS", 2)
    monkeypatch.setattr(joining, "MAX_SUMS", 3)


def a_consortium(folder, *, num_firms=4, away=(), back_after=None, num_rounds=8):
    """Firms that are `away` from round 1 on, until so many sums are published (None: until somebody clears that)."""
    folder.mkdir(exist_ok=True)
    consortium = Consortium(
        folder,
        num_firms=num_firms,
        rounds=num_rounds,
        server_step=FedAdamTerms(),
        phase_seconds=5.0,
        make_trainer=WanderingTrainer,
    )
    share, published = consortium.link.share, []

    def come_and_go(vector):
        published.append(vector)
        if len(published) == 1:
            consortium.link.away.update(away)
        if len(published) == back_after:
            consortium.link.away.clear()
        return share(vector)

    consortium.link.share = come_and_go
    return consortium


def sums(consortium):
    """The rounds whose published sums are still there."""
    record = JobRecord(consortium.store, consortium.job.id)
    return [done.number for done in record.finished_rounds() if done.sum_digest in consortium.link.shared]


def all_agree(consortium):
    state = consortium.coordinator.state
    return {firm.side.state.hash for firm in consortium.firms.values()} == {state.hash}


def test_with_all_firms_there_a_few_sums_are_kept_and_none_at_the_end(tmp_path):
    consortium = a_consortium(tmp_path)
    coordinator, kept = consortium.start(), []
    publish = coordinator._publish

    def look(*args):
        publish(*args)
        kept.append(sums(consortium))

    coordinator._publish = look
    coordinator.run()
    assert kept[:6] == [[0], [0, 1], [0, 1, 2], [2, 3], [2, 3, 4], [4, 5]]
    assert consortium.link.shared == {}
    assert all_agree(consortium)
    assert len(list((tmp_path / "server" / "job-1").glob("checkpoint-*"))) == 2


def test_sums_are_kept_where_the_operator_wants_them(tmp_path):
    consortium = a_consortium(tmp_path)
    with consortium.store.transaction() as at:
        at.jobs.set_operation(consortium.job.id, {"keep_sums": True})
    consortium.run()
    assert sums(consortium) == list(range(10))


def test_a_firm_that_is_a_little_behind_catches_up_with_sums(tmp_path):
    consortium = a_consortium(tmp_path, away=[AWAY], back_after=3)
    taken = snapshots(consortium)
    consortium.run()
    assert taken == []
    assert all_agree(consortium)


def snapshots(consortium):
    """Firms that took one."""
    taken = []
    push = consortium.link.push

    def look(asks):
        taken.extend(ask.node for ask in asks if "snapshot" in ask.arrays)
        return push(asks)

    consortium.link.push = look
    return taken


def test_a_firm_that_is_further_behind_takes_a_snapshot_and_takes_part_again(tmp_path):
    consortium = a_consortium(tmp_path, away=[AWAY], back_after=7)
    taken = snapshots(consortium)
    consortium.run()
    assert taken == [3]
    assert AWAY in consortium.members_by_round()[9]
    assert all_agree(consortium)
    assert consortium.link.shared == {}


def test_sums_stay_for_firms_that_too_few_could_vouch_to(tmp_path):
    """Of four firms three must vouch: with two away nothing may be forgotten."""
    consortium = a_consortium(tmp_path, away=[AWAY, "firm-c"], back_after=8)
    taken = snapshots(consortium)
    consortium.run()
    assert taken == []
    assert all_agree(consortium)


def test_a_firm_that_was_away_until_the_end_takes_the_model_by_a_snapshot(tmp_path, monkeypatch):
    consortium = a_consortium(tmp_path, away=[AWAY])
    coordinator = consortium.start()
    run = coordinator._finishing.run

    def come_back_and_finish():
        consortium.link.away.clear()
        return run()

    coordinator._finishing.run = come_back_and_finish
    taken = snapshots(consortium)
    final = coordinator.run()
    assert taken == [3]
    assert all_agree(consortium)
    assert consortium.link.shared == {}
    assert np.array_equal(np.fromfile(tmp_path / AWAY / "job-1" / "final.f32", "<f4"), final)


class KilledError(Exception):
    """The coordinator's process ends here."""


@pytest.mark.parametrize("moment", [1, 3])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("act", ["save", "retract", "keep_sums_from"])
def test_a_coordinator_killed_while_it_forgets_goes_on_from_its_checkpoint(tmp_path, moment, after, act):
    undisturbed = a_consortium(tmp_path / "undisturbed")
    undisturbed.run()
    consortium = a_consortium(tmp_path / "killed")
    calls = []

    def killing(coordinator):
        owner = {"save": coordinator._checkpoints, "retract": consortium.link}.get(act, coordinator._record)
        work = getattr(owner, act)

        def counted(*args):
            calls.append(act)
            if len(calls) == moment and not after:
                raise KilledError
            work(*args)
            if len(calls) == moment and after:
                raise KilledError

        setattr(owner, act, counted)
        return coordinator

    for _ in range(3):
        try:
            killing(consortium.start()).run()
        except KilledError:
            continue
        break
    assert consortium.coordinator.state.hash == undisturbed.coordinator.state.hash
    assert all_agree(consortium)
    assert consortium.link.shared == {}


@pytest.mark.parametrize("damage", ["torn", "changed", "gone"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    consortium = a_consortium(tmp_path, num_rounds=5)
    coordinator = consortium.start()
    coordinator._finishing.run = lambda: None
    coordinator.run()
    newest = max((tmp_path / "server" / "job-1").glob("checkpoint-*"), key=lambda file: int(file.name.split("-")[1]))
    content = newest.read_bytes()
    if damage == "torn":
        newest.write_bytes(content[:-8])
    elif damage == "changed":
        newest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        newest.unlink()
    expected = coordinator.state.hash
    again = consortium.start()
    again._catch_up()
    assert again.state.hash == expected
