"""Firms that lie about their escrow, over the real coordinator: named, and the others go on where they can."""

from dataclasses import replace

import pytest

from dure_protocols.messages import EscrowedJoin
from dure_protocols.secagg.escrow import commit_key, escrow_digest
from dure_protocols.secagg.firm import FirmSession
from dure_protocols.secagg.terms import join_parts, release_parts
from dure_server.coordinator import conversation, rounds
from dure_server.coordinator.conversation import JobFailedError
from tests.simulation.consortium import Consortium, Fault
from tests.simulation.test_threshold import ALL, SEVEN, attempts, check_all_agree, check_counted_once

LIAR = "firm-g"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(conversation, "ABSENCE_SECONDS", 0.01)
    monkeypatch.setattr(rounds, "FIRST_PAUSE_SECONDS", 0.01)


class LyingSession(FirmSession):
    """A firm that runs another program: its escrow, or what it releases, passes through `lie`, and is well signed."""

    def lie_about_escrow(self, escrow):
        return escrow

    def lie_about_release(self, release):
        return release

    def _signed_join(self):
        honest = super()._signed_join()
        escrow = self.lie_about_escrow(honest.escrow)
        join = replace(honest.join, escrow=escrow_digest(escrow))
        signature = self._sign("dure join", *join_parts(self._transcript, join))
        return EscrowedJoin(replace(join, signature=signature), escrow)

    def release(self, request):
        release = self.lie_about_release(super().release(request))
        return replace(release, signature=self._sign("dure release", *release_parts(release)))


class OtherKeys(LyingSession):
    """Commits to other keys than three of its peers."""

    def lie_about_escrow(self, escrow):
        other = tuple(commit_key(bytes([place])) for place in range(3))
        return replace(escrow, key_commitments=other + escrow.key_commitments[3:])


class OtherKeyWithOne(LyingSession):
    """Commits to another key than one of its peers."""

    def lie_about_escrow(self, escrow):
        return replace(escrow, key_commitments=(commit_key(b""), *escrow.key_commitments[1:]))


class NoShares(LyingSession):
    """Deals nothing that opens to three of its peers."""

    def lie_about_escrow(self, escrow):
        spoilt = tuple(replace(part, box=bytes(len(part.box))) for part in escrow.shares[:3])
        return replace(escrow, shares=spoilt + escrow.shares[3:])


class OneWrongShare(LyingSession):
    """Deals nothing that opens to one of its peers."""

    def lie_about_escrow(self, escrow):
        return replace(escrow, shares=(replace(escrow.shares[0], box=bytes(82)), *escrow.shares[1:]))


class WrongSealedKeys(LyingSession):
    """Seals something else under its escrow key."""

    def lie_about_escrow(self, escrow):
        return replace(escrow, sealed=bytes(len(escrow.sealed)))


class WrongReturns(LyingSession):
    """Returns other shares than it was dealt."""

    def lie_about_release(self, release):
        def other(shares):
            return tuple((dealer, bytes(33)) for dealer, _ in shares)

        return replace(release, self_shares=other(release.self_shares), escrow_shares=other(release.escrow_shares))


def with_liar(tmp_path, program, *faults, rounds=2, name=LIAR):
    consortium = Consortium(tmp_path, rounds=rounds, statistics=0, faults=faults, **SEVEN)
    consortium.run_until_keys()
    consortium.firms[name].side._session.__class__ = program
    return consortium


def notes(consortium):
    with consortium.store.reading() as at:
        return {row.number: row.reason for row in at.rounds.of(consortium.job.id) if row.sum_digest}


def test_a_firm_that_commits_to_other_keys_is_left_out_and_named(tmp_path):
    consortium = with_liar(tmp_path, OtherKeys)
    consortium.run()
    assert consortium.members_by_round()[1] == ALL[:6]
    check_counted_once(consortium, 2)
    assert consortium.coordinator._joining.refused[LIAR].startswith("escrowed other keys than firm-a, firm-b, firm-c")


def test_two_firms_that_committed_to_different_keys_are_both_left_out_and_named(tmp_path):
    consortium = with_liar(tmp_path, OtherKeyWithOne)
    consortium.run()
    assert consortium.members_by_round()[1] == ALL[1:6]
    check_counted_once(consortium, 2)
    refused = consortium.coordinator._joining.refused
    assert "one of them lies" in refused[LIAR]
    assert "one of them lies" in refused["firm-a"]


def test_a_wrong_share_for_one_firm_is_in_the_round_s_note_and_harms_nobody(tmp_path):
    consortium = with_liar(tmp_path, OneWrongShare, Fault(LIAR, "update", 1, "silent"))
    consortium.run()
    assert consortium.members_by_round()[1] == ALL[:6]
    assert attempts(consortium)[1] == 1
    assert notes(consortium)[1] == "firm-a could not use the escrow of firm-g"
    check_counted_once(consortium, 2)
    check_all_agree(consortium)


def test_a_firm_that_dealt_too_few_shares_and_drops_out_costs_an_attempt_and_not_the_job(tmp_path):
    """Receipts say so before anybody releases."""
    consortium = with_liar(tmp_path, NoShares, Fault(LIAR, "update", 1, "silent"))
    consortium.run()
    assert consortium.members_by_round()[1] == ALL[:6]
    assert attempts(consortium)[1] == 2
    check_counted_once(consortium, 2)
    check_all_agree(consortium)


def test_a_firm_that_dealt_too_few_shares_and_does_not_drop_out_costs_nothing(tmp_path):
    consortium = with_liar(tmp_path, NoShares)
    consortium.run()
    assert consortium.members_by_round()[1] == ALL
    assert notes(consortium)[1].endswith("could not use the escrow of firm-g")
    check_counted_once(consortium, 2)


def test_a_firm_that_sealed_other_keys_and_drops_out_ends_the_job_with_its_name(tmp_path):
    """Nobody can see it before the sum is opened, and who released releases no more."""
    consortium = with_liar(tmp_path, WrongSealedKeys, Fault(LIAR, "update", 1, "silent"))
    with pytest.raises(JobFailedError, match="cannot be opened: firm-g's escrow does not open with its own key"):
        consortium.run()
    assert consortium.members_by_round() == {}


def test_wrong_shares_returned_by_one_firm_are_made_up_for_by_one_that_was_slow(tmp_path):
    faults = Fault("firm-c", "update", 1, "silent"), Fault("firm-d", "release", 1, "silent")
    consortium = Consortium(tmp_path, rounds=2, statistics=0, faults=faults, num_firms=7, threshold=5)
    consortium.run_until_keys()
    consortium.firms["firm-a"].side._session.__class__ = WrongReturns
    push, asked = consortium.link.push, []

    def push_and_answer_the_second_time(asks):  # firm-d was slow
        asked.extend(ask.place.phase for ask in asks[:1] if ask.place.phase == "release")
        if len(asked) == 2:
            consortium.link.faults.clear()
        return push(asks)

    consortium.link.push = push_and_answer_the_second_time
    consortium.run()
    assert set(consortium.members_by_round()[1]) == set(ALL) - {"firm-c"}
    check_counted_once(consortium, 2)


def test_wrong_shares_that_nobody_can_make_up_for_end_the_job_with_the_name_of_who_returned_them(tmp_path):
    faults = Fault("firm-c", "update", 1, "silent"), Fault("firm-d", "release", 1, "refuse")
    consortium = with_liar(tmp_path, WrongReturns, *faults, name="firm-a")
    with pytest.raises(JobFailedError, match=r"4 right shares of firm-d .* firm-a sent other shares than were dealt"):
        consortium.run()
