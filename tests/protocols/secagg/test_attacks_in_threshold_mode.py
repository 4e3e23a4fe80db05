"""What a lying server, with colluding firms or without, tries in the rounds of threshold mode: seven firms, five of
which must agree."""

from dataclasses import replace

import numpy as np
import pytest

from dure_protocols.errors import MessageError, MisuseError, RefusalCode
from dure_protocols.messages import ReleaseRequest
from dure_protocols.secagg.terms import names_digest, receipt_parts, vote_parts
from tests.protocols.secagg.parties import JOB, MODEL, OTHER_MODEL, Parties, changed, refused

FIRMS, THRESHOLD = "abcdefg", 5


@pytest.fixture
def parties():
    return Parties(FIRMS, threshold=THRESHOLD).establish()


@pytest.fixture
def uploads(parties):
    return parties.upload(parties.join())


def some(uploads, names):
    return {name: uploads[name] for name in names}


def release_by(parties, votes):
    return ReleaseRequest(JOB, 1, 1, 1, (), votes)


@pytest.mark.parametrize(
    ("survivors", "releasing"),
    [(FIRMS, FIRMS), ("abcdef", "abcdef"), ("acdfg", "acdfg"), (FIRMS, "abcde"), ("bcdefg", "cdefg")],
    ids=["all", "one dropped out", "two dropped out", "two did not release", "one of each"],
)
def test_control_enough_survivors_open_exactly_their_sum(parties, survivors, releasing):
    opened = parties.run(survivors=survivors, releasing=releasing)
    assert opened.published.members == tuple(survivors)
    assert np.allclose(parties.mean(opened.total), parties.mean_of(survivors), atol=1e-3)
    for session in parties.sessions.values():
        session.check_sum(opened.published, opened.total, parties.layout, MODEL)


def test_survivor_set_equivocation_a_firm_votes_for_one_set_an_attempt(parties, uploads):
    parties.votes(some(uploads, "abcdef"), who="abc")
    for others in ("abcdefg", "abcde", "abcdeg"):
        with refused(RefusalCode.ALREADY_RELEASED):
            parties.sessions["a"].vote(parties.vote_request(some(uploads, others)))


def test_the_same_vote_is_given_again(parties, uploads):
    request = parties.vote_request(uploads)
    vote = parties.sessions["a"].vote(request)
    assert parties.copy("a").vote(request) == vote


def test_survivor_set_equivocation_neither_set_is_opened_when_the_firms_are_split(parties, uploads):
    """The server shows a to d all survivors and e to g all but a. Neither reaches the threshold."""
    votes = parties.votes(uploads, who="abcd"), parties.votes(some(uploads, "bcdefg"), who="efg")
    for voted in votes:
        for name in FIRMS:
            with refused(RefusalCode.ROSTER):
                parties.sessions[name].release(release_by(parties, voted))


def test_crossed_votes_for_two_sets_do_not_add_up_to_a_threshold(parties, uploads):
    for_all = parties.votes(uploads, who="abcd")
    for_six = parties.votes(some(uploads, "bcdefg"), who="efg")
    for name in FIRMS:
        with refused(RefusalCode.REPLAY, "voted for another survivor set"):
            parties.sessions[name].release(release_by(parties, for_all[1:] + for_six))


@pytest.mark.parametrize("trick", ["one twice", "one too few", "renamed", "unsigned", "of a firm that dropped out"])
def test_votes_that_are_not_those_of_enough_survivors_release_nothing(trick):
    parties = Parties(FIRMS, threshold=THRESHOLD).establish()
    uploads = parties.upload(parties.join(), who="abcdef")
    votes = parties.votes(uploads, who="abcde")
    lists = {
        "one twice": (*votes[:4], votes[0]),
        "one too few": votes[:4],
        "renamed": (*votes[:4], changed(votes[3], firm="f")),
        "unsigned": (*votes[:4], changed(votes[4], signature=bytes(64))),
        "of a firm that dropped out": (*votes[:4], changed(votes[4], firm="g")),
    }
    code = RefusalCode.SIGNATURE if trick in {"renamed", "unsigned"} else RefusalCode.ROSTER
    with refused(code):
        parties.sessions["a"].release(release_by(parties, lists[trick]))


def test_votes_of_an_earlier_attempt_release_nothing(parties):
    earlier = parties.votes(parties.upload(parties.join()))
    uploads = parties.upload(parties.join((1, 1, 2)), (1, 1, 2))
    parties.votes(uploads, (1, 1, 2))
    with refused(RefusalCode.REPLAY):
        parties.sessions["a"].release(parties.release_request(uploads, (1, 1, 2), votes=earlier))


def test_nothing_is_released_without_the_firm_s_own_vote(parties, uploads):
    """A colluding majority of votes does not open a sum over survivors that the firm has not checked."""
    votes = parties.votes(uploads, who="bcdefg")
    with refused(RefusalCode.OUT_OF_ORDER):
        parties.sessions["a"].release(release_by(parties, votes))


def test_receipts_release_nothing_in_threshold_mode(parties, uploads):
    parties.votes(uploads)
    with refused(RefusalCode.ROSTER):
        parties.sessions["a"].release(parties.release_request(uploads))


def test_never_both_shares_of_one_firm(parties, uploads):
    """Whoever dropped out: of each firm either the self seed's share is given or the escrow key's, and in the same
    attempt never the other one."""
    survivors = some(uploads, "abcdef")
    votes = parties.votes(survivors)
    releases = {name: parties.sessions[name].release(release_by(parties, votes)) for name in survivors}
    for name, release in releases.items():
        assert [dealer for dealer, _ in release.self_shares] == [other for other in "abcdef" if other != name]
        assert [dealer for dealer, _ in release.escrow_shares] == ["g"]
        with refused(RefusalCode.OUT_OF_ORDER):
            parties.sessions[name].vote(parties.vote_request(some(uploads, "abcdeg")))
    forged = tuple(changed(vote, survivors=names_digest("abcdeg")) for vote in votes)
    resigned = tuple(
        changed(vote, signature=parties.identities[vote.firm].sign("dure vote", JOB, *vote_parts(vote)))
        for vote in forged
    )
    with refused(RefusalCode.REPLAY):  # even with everybody's good signature
        parties.sessions["a"].release(release_by(parties, resigned))


def test_a_second_release_is_the_first_again_or_refused(parties, uploads):
    votes = parties.votes(uploads)
    first = parties.sessions["a"].release(release_by(parties, votes))
    again = parties.copy("a")
    assert again.release(release_by(parties, votes[:THRESHOLD])) == first
    for other in ({"attempt": 2}, {"round": 2}, {"epoch": 2}):
        with refused(RefusalCode.OUT_OF_ORDER):
            again.release(replace(release_by(parties, votes), **other))
    with refused(RefusalCode.ALREADY_RELEASED):
        parties.join((1, 1, 2), who="a")


@pytest.mark.parametrize(
    ("names", "code"),
    [("abcd", RefusalCode.COHORT_TOO_SMALL), ("bcdefg", RefusalCode.ROSTER)],
    ids=["below the threshold", "without us"],
)
def test_survivors_that_are_too_few_or_leave_the_firm_out_get_no_vote(parties, uploads, names, code):
    with refused(code):
        parties.sessions["a"].vote(parties.vote_request(some(uploads, names)))


def test_survivors_that_never_uploaded_get_no_vote(parties):
    uploads = parties.upload(parties.join(), who="abcdef")
    request = parties.vote_request(uploads)
    receipt = uploads["f"][0]
    for forged, code in [
        ((*request.uploads, changed(receipt, firm="g")), RefusalCode.SIGNATURE),
        ((*request.uploads, receipt), RefusalCode.ROSTER),
        ((*request.uploads, changed(receipt, firm="stranger")), RefusalCode.ROSTER),
    ]:
        with refused(code):
            parties.sessions["a"].vote(replace(request, uploads=forged))


def test_a_survivor_outside_the_cohort_gets_no_vote(parties):
    joins = parties.join(who="abcdef")
    uploads = parties.upload(joins)
    stranger = parties.sessions["g"]
    stranger.join(parties.invitation(), MODEL, MODEL)
    receipt = changed(uploads["f"][0], firm="g")
    receipt = changed(
        receipt, signature=parties.identities["g"].sign("dure masked update", JOB, *receipt_parts(receipt))
    )
    with refused(RefusalCode.ROSTER):
        parties.sessions["a"].vote(
            replace(parties.vote_request(uploads), uploads=(*parties.vote_request(uploads).uploads, receipt))
        )


def test_another_vector_in_the_firm_s_own_name_gets_no_vote(parties, uploads):
    forged = changed(uploads["a"][0], vector_digest=bytes(32))
    forged = changed(forged, signature=parties.identities["a"].sign("dure masked update", JOB, *receipt_parts(forged)))
    with refused(RefusalCode.ROSTER, "another masked vector"):
        parties.sessions["a"].vote(parties.vote_request(uploads | {"a": (forged, uploads["a"][1])}))


def test_receipts_of_an_earlier_attempt_get_no_vote(parties, uploads):
    later = parties.upload(parties.join((1, 1, 2)), (1, 1, 2), who="abcdef")
    with refused(RefusalCode.REPLAY):
        parties.sessions["a"].vote(parties.vote_request(later | {"g": uploads["g"]}, (1, 1, 2)))


def test_a_cohort_below_the_threshold_is_refused(parties):
    joins = parties.join()
    with refused(RefusalCode.COHORT_TOO_SMALL):
        parties.sessions["a"].accept_cohort(parties.cohort("a", joins[:4]))


def test_survivors_below_the_firm_s_own_minimum_get_no_vote():
    parties = Parties(FIRMS, threshold=THRESHOLD, minimum_cohort=6).establish()
    uploads = parties.upload(parties.join())
    with refused(RefusalCode.COHORT_TOO_SMALL):
        parties.sessions["a"].vote(parties.vote_request(some(uploads, "abcde")))


def test_different_models_to_different_firms_are_refused(parties):
    joins = (*parties.join(who="abcdef"), *parties.join(who="g", model=OTHER_MODEL))
    for name in FIRMS:
        with refused(RefusalCode.GLOBAL_MODEL):
            parties.sessions[name].accept_cohort(parties.cohort(name, joins))


def test_different_member_sets_to_different_firms_open_no_sum(parties):
    """Who was told of another cohort signs another context: its receipt counts with nobody else."""
    joins = parties.join()
    uploads = parties.upload(joins, who="abcdef")
    uploads["g"] = parties.upload(joins[1:], who="g")["g"]
    with refused(RefusalCode.REPLAY, "^g masked for another"):
        parties.sessions["a"].vote(parties.vote_request(uploads))
    with refused(RefusalCode.REPLAY, "^b masked for another"):
        parties.sessions["g"].vote(parties.vote_request(some(uploads, "bcdefg")))


def test_no_vote_and_no_release_before_the_firm_has_uploaded(parties):
    joins = parties.join()
    uploads = parties.upload(joins, who="abcdef")
    parties.sessions["g"].accept_cohort(parties.cohort("g", joins))
    with refused(RefusalCode.OUT_OF_ORDER):
        parties.sessions["g"].vote(parties.vote_request(uploads))
    with refused(RefusalCode.OUT_OF_ORDER):
        parties.sessions["g"].release(release_by(parties, parties.votes(uploads)))


def test_a_second_vector_under_the_same_masks_is_never_made_nor_signed(parties):
    joins = parties.join()
    parties.upload(joins)
    with pytest.raises(MisuseError):
        parties.sessions["a"].sign_upload(bytes(32))
    for again in (joins, joins[:5]):
        with refused(RefusalCode.ATTEMPT_SPENT):
            parties.sessions["a"].accept_cohort(parties.cohort("a", again))


def test_uploading_counts_as_contributing_on_a_model(parties, uploads):
    """The others can open the sum without the firm, so in the next round the same model is refused."""
    with refused(RefusalCode.ALREADY_RELEASED):
        parties.join((1, 2, 1), who="a")


def test_uploading_counts_in_another_job_too(parties, uploads):
    other = Parties(FIRMS, threshold=THRESHOLD, job=bytes(32))
    other.disclosures = parties.disclosures
    other.sessions = {name: other.fresh(name) for name in FIRMS}
    other.establish()
    with refused(RefusalCode.ALREADY_RELEASED):
        other.join()


def test_a_fresh_attempt_of_the_same_round_does_not_count_twice(parties, uploads):
    parties.votes(uploads, who="abcd")
    opened = parties.run((1, 1, 2))
    assert np.allclose(parties.mean(opened.total), parties.mean_of(FIRMS), atol=1e-3)


def test_a_fresh_attempt_on_another_model_of_an_old_contribution_is_refused(parties, uploads):
    parties.run((1, 1, 2), model=OTHER_MODEL)
    with refused(RefusalCode.ALREADY_RELEASED):
        parties.join((1, 2, 1), model=MODEL)


def test_two_attempts_of_one_round_are_never_both_opened(parties, uploads):
    """The difference would be whoever is in one only. Who has released joins no more, so too few are left."""
    votes = parties.votes(uploads)
    for name in "abcde":
        parties.sessions[name].release(release_by(parties, votes))
    for name in "abcde":
        with refused(RefusalCode.ALREADY_RELEASED):
            parties.join((1, 1, 2), who=name)
    joins = parties.join((1, 1, 2), who="fg")
    with refused(RefusalCode.COHORT_TOO_SMALL):
        parties.sessions["f"].accept_cohort(parties.cohort("f", joins, (1, 1, 2)))


def test_who_joined_a_later_attempt_opens_no_earlier_one(parties, uploads):
    votes = parties.votes(uploads)
    parties.join((1, 1, 2), who="a")
    with refused(RefusalCode.OUT_OF_ORDER):
        parties.sessions["a"].release(release_by(parties, votes))


def test_one_release_too_few_does_not_unmask(parties, uploads):
    votes = parties.votes(uploads)
    releases = {name: parties.sessions[name].release(release_by(parties, votes)) for name in "abcd"}
    joins = [session._signed_join() for session in parties.sessions.values()]
    with pytest.raises(MessageError, match="4 members released where 5 are needed"):
        parties.filled(joins, uploads).unmask(releases)


def test_differencing_over_survivors_is_refused_where_the_policy_asks_for_two_firms():
    """The cohort is everybody in both rounds; the server drops one firm's upload in the second."""
    parties = Parties(FIRMS, threshold=THRESHOLD, minimum_difference=2).establish()
    parties.run()
    at = (1, 2, 1)
    uploads = parties.upload(parties.join(at, model=OTHER_MODEL), at)
    with refused(RefusalCode.COHORT_TOO_SMALL):
        parties.sessions["a"].vote(parties.vote_request(some(uploads, "abcdef"), at))
    parties.sessions["a"].vote(parties.vote_request(some(uploads, "abcde"), at))


def test_a_sum_that_others_opened_counts_for_the_guard_of_a_firm_that_did_not_release():
    parties = Parties(FIRMS, threshold=THRESHOLD, minimum_difference=2).establish()
    opened = parties.run(releasing="bcdef")
    session = parties.sessions["a"]
    session.check_sum(opened.published, opened.total, parties.layout, MODEL)
    session.note_sum(opened.published, MODEL)
    at = (1, 2, 1)
    joins = parties.join(at, who="abcdef", model=OTHER_MODEL)
    with refused(RefusalCode.COHORT_TOO_SMALL):
        session.accept_cohort(parties.cohort("a", joins, at))
