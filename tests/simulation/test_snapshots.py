"""A firm that lost all its state stands on a model again that enough other firms have signed, or on none."""

import hashlib
import random
from dataclasses import replace

import numpy as np
import pytest

from dure_client.jobs.side import Given
from dure_protocols.errors import MessageError, RefusalCode, RefusedError
from dure_protocols.messages import ARRAY_SNAPSHOT, AskKeys, EscrowedJoin, Invitation, Join, Snapshot, encode
from dure_server.coordinator import conversation, rounds
from dure_server.coordinator.conversation import JobFailedError
from tests.simulation.consortium import Consortium, Fault
from tests.simulation.test_threshold import check_counted_once

NAMES = ("firm-a", "firm-b", "firm-c", "firm-d", "firm-e")
MODES = pytest.mark.parametrize("threshold", [None, 4], ids=["retry", "threshold"])


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(conversation, "ABSENCE_SECONDS", 0.01)
    monkeypatch.setattr(rounds, "FIRST_PAUSE_SECONDS", 0.01)


@MODES
@pytest.mark.parametrize("phase", ["join", "update"])
@pytest.mark.parametrize("statistics", [0, 2])
def test_a_firm_that_lost_all_its_state_joins_again_and_all_end_on_one_model(tmp_path, threshold, phase, statistics):
    faults = [Fault("firm-c", phase, 2, "wipe")]
    consortium = Consortium(tmp_path, num_firms=5, rounds=4, statistics=statistics, faults=faults, threshold=threshold)
    consortium.run()
    assert consortium.members_by_round()[4] == NAMES
    final = {name: np.fromfile(tmp_path / name / "job-1" / "final.f32", "<f4").tobytes() for name in NAMES}
    assert len(set(final.values())) == 1
    assert {firm.side.state.hash for firm in consortium.firms.values()} == {consortium.coordinator.state.hash}


def test_a_firm_that_lost_its_state_twice_joins_again_twice(tmp_path):
    faults = [Fault("firm-c", "join", 2, "wipe"), Fault("firm-c", "join", 4, "wipe")]
    consortium = Consortium(tmp_path, num_firms=4, rounds=5, faults=faults)
    consortium.run()
    assert {firm.side.state.hash for firm in consortium.firms.values()} == {consortium.coordinator.state.hash}


@MODES
def test_too_many_firms_that_lost_their_state_end_the_job_with_the_reason(tmp_path, threshold):
    faults = [Fault(firm, "join", 2, "wipe") for firm in ("firm-b", "firm-d")]
    consortium = Consortium(tmp_path, num_firms=5, rounds=3, faults=faults, threshold=threshold)
    with pytest.raises(JobFailedError, match=r"firm-b, firm-d lost the state .* too few firms are left to vouch"):
        consortium.run()
    assert sorted(consortium.members_by_round()) == [0, 1]


class StoppedError(Exception):
    """The coordinator stops here, in the middle of its job."""


class Offer:
    """Five firms before round 2, the last of which has lost everything; the others' joins, and the model in words."""

    def __init__(self, tmp_path, threshold=None):
        self.consortium = Consortium(tmp_path, num_firms=5, rounds=3, threshold=threshold)
        coordinator = self.consortium.start()
        work = coordinator._round

        def work_until_round_two(keys):
            if coordinator.state.round == 2:
                raise StoppedError
            work(keys)

        coordinator._round = work_until_round_two
        with pytest.raises(StoppedError):
            coordinator.run()
        self.lost = self.consortium.firms["firm-e"]
        self.lost.wipe()
        self.epoch = coordinator._agreement.agree_keys(fresh=True).epoch
        self.state, self.words = coordinator.state, coordinator.state.to_words()
        self.sums = coordinator._standings.sums_from(1)

    def invitation(self, attempt=9, round_=2, snapshot=(), sums=()):
        return Invitation(self.consortium.job.digest(), self.epoch, round_, attempt, sums, snapshot)

    def joins(self, attempt=9):
        """The joins of the firms that have lost nothing, each of which computes the model first."""
        request = self.invitation(attempt, sums=self.sums)
        digests = {entry.array_name: entry.vector_digest for entry in self.sums}
        given = Given({name: self.consortium.link.shared[digest] for name, digest in digests.items()}, digests)
        answers = (self.consortium.firms[name].side.answer(request, given).message for name in NAMES[:4])
        return tuple(join.join if isinstance(join, EscrowedJoin) else join for join in answers)

    def give(self, witnesses, words=None, *, attempt=9, round_=2, digest=None):
        words = self.words if words is None else words
        digest = digest or hashlib.sha256(words.tobytes()).digest()
        given = Given({ARRAY_SNAPSHOT: words}, {ARRAY_SNAPSHOT: hashlib.sha256(words.tobytes()).digest()})
        request = self.invitation(attempt, round_, (Snapshot(digest, tuple(witnesses)),))
        return self.lost.side.answer(request, given).message

    def is_taken(self, witnesses):
        message = self.give(witnesses)
        join = message.join if isinstance(message, EscrowedJoin) else message
        return isinstance(join, Join) and join.model_hash == self.state.hash


@MODES
def test_control_a_snapshot_that_enough_others_signed_is_taken_and_kept(tmp_path, threshold):
    offer = Offer(tmp_path, threshold)
    assert offer.is_taken(offer.joins())
    offer.lost.crash()
    state = restarted(offer).state
    assert (state.round, state.hash) == (2, offer.state.hash)
    assert np.array_equal(state.normalisation, offer.state.normalisation)
    assert state.best.digest == offer.state.best.digest


def restarted(offer):
    """The firm's side, read again from its files."""
    offer.lost.handle(encode(AskKeys(offer.consortium.job.digest(), 1)), Given())
    return offer.lost.side


def mixed(joins, **fields):
    return (*joins[:3], replace(joins[3], **fields))


@MODES
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda j: (), RefusalCode.GLOBAL_MODEL),
        (lambda j: j[:3], RefusalCode.GLOBAL_MODEL),
        (lambda j: (*j[:3], j[0]), RefusalCode.GLOBAL_MODEL),
        (lambda j: mixed(j, signature=bytes(64)), RefusalCode.SIGNATURE),
        (lambda j: mixed(j, signature=j[0].signature), RefusalCode.SIGNATURE),
        (lambda j: mixed(j, firm="firm-e"), RefusalCode.SIGNATURE),
        (lambda j: mixed(j, firm="stranger"), RefusalCode.ROSTER),
        (lambda j: mixed(j, model_hash=bytes(32)), RefusalCode.SIGNATURE),
        (lambda j: mixed(j, attempt=8), RefusalCode.REPLAY),
        (lambda j: mixed(j, round=1), RefusalCode.REPLAY),
        (lambda j: mixed(j, epoch=1), RefusalCode.REPLAY),
    ],
    ids=[
        "none",
        "one too few",
        "one twice",
        "unsigned",
        "another's signature",
        "the firm itself",
        "a stranger",
        "another model",
        "another attempt",
        "another round",
        "another epoch",
    ],
)
def test_too_few_or_forged_witnesses_are_refused_and_the_firm_stays_ready(tmp_path, threshold, change, code):
    offer = Offer(tmp_path, threshold)
    joins = offer.joins()
    with pytest.raises(RefusedError) as info:
        offer.give(change(joins))
    assert info.value.code is code
    assert offer.lost.side.state.round == 0
    assert offer.is_taken(joins)


def test_joins_of_an_older_attempt_are_no_witnesses(tmp_path):
    offer = Offer(tmp_path)
    old = offer.joins(attempt=9)
    with pytest.raises(RefusedError) as info:
        offer.give(old, attempt=10)
    assert info.value.code is RefusalCode.REPLAY


def test_another_model_under_true_signatures_is_refused(tmp_path):
    offer = Offer(tmp_path)
    joins = offer.joins()
    for word in range(offer.words.size):
        words = offer.words.copy()
        words[word] ^= np.uint64(1)
        with pytest.raises((RefusedError, MessageError)):
            offer.give(joins, words)
    assert offer.lost.side.state.round == 0
    assert offer.is_taken(joins)


@pytest.mark.parametrize("length", [0, 4, -1, 1])
def test_a_snapshot_cut_short_or_extended_is_no_snapshot(tmp_path, length):
    offer = Offer(tmp_path)
    joins = offer.joins()
    words = np.resize(offer.words, length if length in (0, 4) else offer.words.size + length)
    with pytest.raises(MessageError):
        offer.give(joins, words)
    assert offer.is_taken(joins)


def test_another_array_than_announced_is_refused(tmp_path):
    offer = Offer(tmp_path)
    joins = offer.joins()
    for words, digest in [(offer.words, bytes(32)), (offer.words.view(np.float64), None)]:
        with pytest.raises(RefusedError) as info:
            offer.give(joins, words, digest=digest)
        assert info.value.code is RefusalCode.MALFORMED
    assert offer.is_taken(joins)


def test_a_firm_that_is_not_behind_takes_no_snapshot(tmp_path):
    """It computed its model; a snapshot, true or false, changes nothing."""
    offer = Offer(tmp_path)
    offer.joins()
    side = offer.consortium.firms["firm-a"].side
    before = side.state.hash
    false = np.zeros_like(offer.words)
    digest = hashlib.sha256(false.tobytes()).digest()
    request = offer.invitation(attempt=11, snapshot=(Snapshot(digest, ()),))
    side.answer(request, Given({ARRAY_SNAPSHOT: false}, {ARRAY_SNAPSHOT: digest}))
    assert side.state.hash == before


def test_a_snapshot_of_an_earlier_round_does_not_take_a_firm_back(tmp_path):
    offer = Offer(tmp_path)
    assert offer.is_taken(offer.joins())
    older = offer.words.copy()
    older[0] = 1
    reply = offer.give((), older, attempt=12, round_=1)
    assert reply.next_round == 2
    assert offer.lost.side.state.hash == offer.state.hash


@pytest.mark.parametrize("seed", range(8))
def test_a_firm_wiped_at_a_random_step_of_threshold_mode_comes_back_to_the_model_of_all(tmp_path, seed):
    chance = random.Random(f"wipe {seed}")
    phase, number = chance.choice(["join", "update", "vote", "release"]), chance.randint(1, 4)
    faults = [Fault(chance.choice(NAMES), phase, number, "wipe")]
    faults += [
        Fault(chance.choice(NAMES), "update", of, "silent") for of in (1, 2, 5, 6) if of not in (number, number + 1)
    ]
    consortium = Consortium(tmp_path, num_firms=5, rounds=6, statistics=0, faults=faults, threshold=4)
    consortium.run()
    assert {firm.side.state.hash for firm in consortium.firms.values()} == {consortium.coordinator.state.hash}
    check_counted_once(consortium, 6)
