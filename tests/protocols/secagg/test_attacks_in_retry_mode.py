"""What a lying server tries in the rounds of retry mode."""

from dataclasses import replace

import numpy as np
import pytest

from dure_protocols.errors import MessageError, MisuseError, RefusalCode
from dure_protocols.messages import Cohort
from dure_protocols.secagg.keystream import apply_keystreams
from dure_protocols.secagg.masks import self_mask_key
from dure_protocols.secagg.terms import receipt_parts
from tests.protocols.secagg.parties import JOB, MODEL, OTHER_MODEL, Parties, changed, receipts_of, refused


@pytest.fixture
def parties():
    return Parties().establish()


def test_control_when_everyone_releases_the_server_learns_exactly_the_sum(parties):
    opened = parties.run()
    assert np.allclose(parties.mean(opened.total), parties.mean_of("abcd"), atol=1e-3)
    for session in parties.sessions.values():
        session.check_sum(opened.published, opened.total, parties.layout, MODEL)


def test_different_models_to_different_firms_are_refused(parties):
    joins = (*parties.join(who="abc"), *parties.join(who="d", model=OTHER_MODEL))
    for name in "abcd":
        with refused(RefusalCode.GLOBAL_MODEL):
            parties.sessions[name].accept_cohort(Cohort(JOB, 1, 1, 1, joins))


def fields_without_self_masks(parties, vectors):
    """What a server sees even with every self mask in hand."""
    total = sum(vectors.values())
    for session in parties.sessions.values():
        apply_keystreams(total, subtract=[self_mask_key(session._state.self_seed, session._state.context)])
    return total[: parties.layout.packed_words].view(np.uint16).astype(float)


def test_control_one_member_set_for_everybody_leaves_the_sum(parties):
    joins = parties.join()
    vectors = {name: parties.masked(parties.sessions[name], name, parties.cohort(name, joins)) for name in "abcd"}
    fields = fields_without_self_masks(parties, vectors)
    assert np.ptp(fields) <= 4  # all parameters are equal but for the rounding of four firms


def test_different_member_sets_to_different_firms_leave_noise_and_no_update(parties):
    """a, b, c mask for everyone; d is told that only c and d take part. What d adds cancels with nobody."""
    joins = parties.join()
    vectors = {name: parties.masked(parties.sessions[name], name, Cohort(JOB, 1, 1, 1, joins)) for name in "abc"}
    vectors["d"] = parties.masked(parties.sessions["d"], "d", Cohort(JOB, 1, 1, 1, joins[2:]))
    fields = fields_without_self_masks(parties, vectors)
    assert np.std(fields) > 2**13  # uniform over 16 bits has 18918


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda j: j[:1], RefusalCode.COHORT_TOO_SMALL),
        (lambda j: j[1:], RefusalCode.ROSTER),
        (lambda j: (*j, j[1]), RefusalCode.ROSTER),
        (lambda j: (*j[:-1], changed(j[-1], firm="stranger")), RefusalCode.ROSTER),
        (lambda j: (*j[:-1], changed(j[-1], signature=bytes(64))), RefusalCode.SIGNATURE),
        (lambda j: (*j[:-1], changed(j[-1], signature=j[0].signature)), RefusalCode.SIGNATURE),
        (lambda j: (*j[:-1], changed(j[-1], attempt=2)), RefusalCode.REPLAY),
        (lambda j: (*j[:-1], changed(j[-1], model_hash=OTHER_MODEL)), RefusalCode.SIGNATURE),
        (lambda j: (*j[:-1], changed(j[-1], escrow=OTHER_MODEL)), RefusalCode.SIGNATURE),
    ],
    ids=[
        "below the minimum",
        "without us",
        "one twice",
        "a stranger",
        "unsigned",
        "another's signature",
        "another attempt",
        "forged model",
        "forged escrow",
    ],
)
def test_a_cohort_that_did_not_join_as_shown_is_refused(parties, change, code):
    joins = parties.join()
    with refused(code):
        parties.sessions["a"].accept_cohort(Cohort(JOB, 1, 1, 1, change(joins)))


def test_a_cohort_below_the_firm_s_own_minimum_is_refused():
    parties = Parties(minimum_cohort=3).establish()
    joins = parties.join()
    with refused(RefusalCode.COHORT_TOO_SMALL):
        parties.sessions["a"].accept_cohort(Cohort(JOB, 1, 1, 1, joins[:2]))
    parties.sessions["a"].accept_cohort(Cohort(JOB, 1, 1, 1, joins[:3]))


def test_escrow_has_no_place_in_retry_mode(parties):
    other = Parties("abcde", threshold=4).establish()
    delivery = other.cohort("a", other.join()).deliveries[0]
    joins = parties.join()
    with refused(RefusalCode.MALFORMED):
        parties.sessions["a"].accept_cohort(replace(parties.cohort("a", joins), deliveries=(delivery,)))


def test_a_replayed_join_of_an_earlier_round_is_refused(parties):
    parties.run()
    old = parties.join((1, 2, 1), model=OTHER_MODEL)
    new = parties.join((1, 3, 1), model=OTHER_MODEL)
    mixed = tuple(o if o.firm == "b" else n for o, n in zip(old, new, strict=True))
    with refused(RefusalCode.REPLAY):
        parties.sessions["a"].accept_cohort(Cohort(JOB, 1, 3, 1, mixed))


@pytest.mark.parametrize("place", [(1, 1, 1), (1, 0, 5), (1, 1, 0)])
def test_a_replayed_round_or_attempt_is_refused(parties, place):
    parties.join()
    with refused(RefusalCode.REPLAY):
        parties.join(place)


def test_a_new_epoch_does_not_make_an_attempt_new(parties):
    parties.join()
    parties.establish(2)
    with refused(RefusalCode.REPLAY):
        parties.join((2, 1, 1))
    with refused(RefusalCode.STATE_LOST):
        parties.join((1, 1, 2))


def test_a_cohort_of_another_attempt_than_was_joined_is_refused(parties):
    old = parties.join()
    parties.join((1, 1, 2))
    with refused(RefusalCode.OUT_OF_ORDER):
        parties.sessions["a"].accept_cohort(Cohort(JOB, 1, 1, 1, old))


def test_masks_of_one_attempt_are_made_once(parties):
    joins = parties.join()
    parties.sessions["a"].accept_cohort(parties.cohort("a", joins))
    for again in (joins, joins[:3]):
        with refused(RefusalCode.ATTEMPT_SPENT):
            parties.sessions["a"].accept_cohort(parties.cohort("a", again))


def test_a_second_vector_under_the_same_masks_is_never_signed(parties):
    parties.upload(parties.join())
    with pytest.raises(MisuseError):
        parties.sessions["a"].sign_upload(bytes(32))


def test_no_release_before_every_member_has_uploaded(parties):
    joins = parties.join()
    uploads = parties.upload(joins, who="abc")
    with refused(RefusalCode.ROSTER):
        parties.sessions["a"].release(parties.release_request(uploads))


def test_no_release_where_the_firm_itself_has_not_uploaded(parties):
    joins = parties.join()
    uploads = parties.upload(joins, who="abc")
    with refused(RefusalCode.OUT_OF_ORDER):
        parties.sessions["d"].release(parties.release_request(uploads))


def test_a_forged_receipt_releases_nothing(parties):
    joins = parties.join()
    uploads = parties.upload(joins, who="abc")
    receipt, vector = uploads["c"]
    uploads["d"] = (changed(receipt, firm="d"), vector)
    with refused(RefusalCode.SIGNATURE):
        parties.sessions["a"].release(parties.release_request(uploads))


def test_a_receipt_of_an_earlier_attempt_releases_nothing(parties):
    earlier = parties.upload(parties.join())
    joins = parties.join((1, 1, 2))
    uploads = parties.upload(joins, (1, 1, 2), who="abc")
    uploads["d"] = earlier["d"]
    with refused(RefusalCode.REPLAY):
        parties.sessions["a"].release(parties.release_request(uploads, (1, 1, 2)))


def test_another_vector_in_the_firm_s_own_name_releases_nothing(parties):
    """Even if the signature were good."""
    uploads = parties.upload(parties.join())
    forged = changed(uploads["a"][0], vector_digest=bytes(32))
    forged = changed(forged, signature=parties.identities["a"].sign("dure masked update", JOB, *receipt_parts(forged)))
    uploads["a"] = (forged, uploads["a"][1])
    with refused(RefusalCode.ROSTER, "another masked vector"):
        parties.sessions["a"].release(parties.release_request(uploads))


def test_a_second_release_is_refused_unless_it_is_the_first_again(parties):
    """An agent that dies before its answer is stored must be able to give it again, and nothing else."""
    uploads = parties.upload(parties.join())
    request = parties.release_request(uploads)
    first = parties.sessions["a"].release(request)
    restored = parties.copy("a")
    assert restored.release(request) == first
    for other in (replace(request, attempt=2), replace(request, round=2), replace(request, epoch=2)):
        with refused(RefusalCode.OUT_OF_ORDER):
            restored.release(other)
    with refused(RefusalCode.ROSTER):
        restored.release(replace(request, uploads=request.uploads[:-1]))


def test_a_vote_has_no_place_in_retry_mode(parties):
    uploads = parties.upload(parties.join())
    with refused(RefusalCode.OUT_OF_ORDER):
        parties.sessions["a"].vote(parties.vote_request(uploads))


def test_a_released_round_is_not_joined_again(parties):
    parties.run()
    with refused(RefusalCode.ALREADY_RELEASED):
        parties.join((1, 1, 2), who="a", model=OTHER_MODEL)


def test_retry_mode_differencing_fails_because_one_released_is_never_in_another_attempt(parties):
    """The server tells a that all uploaded, and the others that a dropped out, to subtract the two sums."""
    joins = parties.join()
    uploads = parties.upload(joins)
    request = parties.release_request(uploads)
    parties.sessions["a"].release(request)
    with refused(RefusalCode.ALREADY_RELEASED):
        parties.join((1, 1, 2), who="a")
    parties.upload(parties.join((1, 1, 2), who="bcd"), (1, 1, 2))
    for name in "bcd":  # having gone on, they never open the first attempt
        with refused(RefusalCode.OUT_OF_ORDER):
            parties.sessions[name].release(request)


def test_a_firm_contributes_once_on_one_global_model(parties):
    parties.run()
    with refused(RefusalCode.ALREADY_RELEASED):
        parties.join((1, 2, 1))


def test_a_new_epoch_does_not_make_a_firm_contribute_twice_on_one_model(parties):
    parties.run()
    parties.establish(2)
    with refused(RefusalCode.ALREADY_RELEASED):
        parties.join((2, 2, 1))


def test_another_job_does_not_make_a_firm_contribute_twice_on_one_model(parties):
    parties.run()
    other = Parties(job=bytes(32))
    other.disclosures = parties.disclosures
    other.sessions = {name: other.fresh(name) for name in "abcd"}
    other.establish()
    with refused(RefusalCode.ALREADY_RELEASED):
        other.join()


def test_an_attempt_that_was_abandoned_counts_as_no_contribution(parties):
    """In retry mode nobody but the firm itself opens what it uploaded."""
    parties.upload(parties.join())
    opened = parties.run((1, 1, 2), who="abc")
    assert np.allclose(parties.mean(opened.total), parties.mean_of("abc"), atol=1e-3)


def test_cross_round_differencing_is_refused_where_the_policy_asks_for_two_firms():
    parties = Parties(minimum_difference=2).establish()
    parties.run()
    joins = parties.join((1, 2, 1), who="abc", model=OTHER_MODEL)
    with refused(RefusalCode.COHORT_TOO_SMALL):
        parties.sessions["a"].accept_cohort(Cohort(JOB, 1, 2, 1, joins))
    joins = parties.join((1, 2, 2), who="ab", model=OTHER_MODEL)
    parties.sessions["a"].accept_cohort(Cohort(JOB, 1, 2, 2, joins))


def test_statistics_are_never_summed_over_cohorts_that_differ_by_one_firm():
    """Round 0 sums statistics, which do not change from job to job: two is the default there."""
    parties = Parties().establish()
    parties.run((1, 0, 1))
    other = Parties(job=bytes(32))
    other.disclosures = parties.disclosures
    other.sessions = {name: other.fresh(name) for name in "abcd"}
    other.establish()
    joins = other.join((1, 0, 1), who="abc", model=OTHER_MODEL)
    with refused(RefusalCode.COHORT_TOO_SMALL):
        other.sessions["a"].accept_cohort(other.cohort("a", joins, (1, 0, 1)))


def test_a_release_of_another_attempt_does_not_unmask(parties):
    joins = parties.join()
    uploads = parties.upload(joins)
    request = parties.release_request(uploads)
    releases = {name: session.release(request) for name, session in parties.sessions.items()}
    releases["b"] = changed(releases["b"], context=bytes(32))
    with refused(RefusalCode.REPLAY):
        parties.filled(joins, uploads).unmask(releases)


def test_a_release_with_another_seed_names_its_firm(parties):
    joins = parties.join()
    uploads = parties.upload(joins)
    request = parties.release_request(uploads)
    releases = {name: session.release(request) for name, session in parties.sessions.items()}
    releases["b"] = changed(releases["b"], seed=bytes(32))
    with refused(RefusalCode.SIGNATURE, "^b: "):
        parties.filled(joins, uploads).unmask(releases)


@pytest.mark.parametrize("wrong", ["twice", "short", "stranger"])
def test_the_server_names_a_firm_that_uploads_what_does_not_belong(parties, wrong):
    joins = parties.join()
    uploads = parties.upload(joins)
    server = parties.filled(joins, {"a": uploads["a"]})
    receipt, vector = uploads["b"]
    if wrong == "twice":
        receipt, vector = uploads["a"]
    if wrong == "short":
        vector = vector[:-1]
    if wrong == "stranger":
        receipt = changed(receipt, firm="e")
    with refused(
        {"twice": RefusalCode.REPLAY, "short": RefusalCode.MALFORMED, "stranger": RefusalCode.ROSTER}[wrong],
        r"^(a|b|'e')",
    ):
        server.add(receipt, vector, parties.layout)


def test_a_member_too_few_releases_do_not_unmask(parties):
    joins = parties.join()
    uploads = parties.upload(joins)
    request = parties.release_request(uploads)
    releases = {name: parties.sessions[name].release(request) for name in "abc"}
    with pytest.raises(MessageError, match="3 members released where 4 are needed"):
        parties.filled(joins, uploads).unmask(releases)


def test_votes_release_nothing_in_retry_mode(parties):
    uploads = parties.upload(parties.join())
    request = parties.release_request(uploads)
    with refused(RefusalCode.ROSTER):
        parties.sessions["a"].release(replace(request, uploads=receipts_of(uploads)[:2]))
    with refused(RefusalCode.ROSTER):
        parties.sessions["a"].release(replace(request, uploads=()))
