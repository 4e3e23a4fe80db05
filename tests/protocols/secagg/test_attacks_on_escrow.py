"""A firm that lies about what it leaves with the others, or about what others left with it, is named.

Seven firms, five of which must agree; g lies unless a test says who.
"""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dure_protocols.errors import RefusalCode
from dure_protocols.messages import EscrowedJoin, encode
from dure_protocols.secagg.escrow import (
    check_escrow,
    commit_key,
    commit_share,
    conflicts,
    escrow_digest,
    recover_attempt_keys,
    recover_self_seed,
)
from dure_protocols.secagg.keystream import derive
from dure_protocols.secagg.server import in_conflict
from dure_protocols.secagg.shamir import combine
from dure_protocols.secagg.terms import join_parts, release_parts
from tests.protocols.secagg.parties import FIRST, JOB, Parties, changed, refused

FIRMS, THRESHOLD = "abcdefg", 5


@pytest.fixture
def parties():
    return Parties(FIRMS, threshold=THRESHOLD).establish()


def sign_again(parties, joined, **fields):
    """A colluding firm's join with another escrow, well signed."""
    escrow = replace(joined.escrow, **fields)
    join = changed(joined.join, escrow=escrow_digest(escrow))
    signature = parties.identities[join.firm].sign("dure join", JOB, *join_parts(parties.transcript, join))
    return EscrowedJoin(changed(join, signature=signature), escrow)


def with_lie(parties, joins, liar, **fields):
    return tuple(sign_again(parties, join, **fields) if join.firm == liar else join for join in joins)


def opened(parties, joins, survivors, releasing=None, change=lambda releases: releases):
    """The server's sum over these survivors, after `change` to what they released."""
    uploads = parties.upload(joins, who=survivors)
    server = parties.filled(joins, uploads)
    request = parties.release_request(uploads, votes=parties.votes(uploads))
    releases = {name: parties.sessions[name].release(request) for name in releasing or survivors}
    return server.unmask(change(releases))


def escrow_of(joins, firm):
    return next(join.escrow for join in joins if join.firm == firm)


def boxes_with(escrow, changes):
    """Shares in which those for some receivers are others."""
    return tuple(changes.get(part.receiver, lambda p: p)(part) for part in escrow.shares)


def test_another_escrow_than_the_join_signs_is_refused_and_named(parties):
    joins = parties.join()
    lie = EscrowedJoin(joins[6].join, replace(joins[6].escrow, sealed=joins[0].escrow.sealed))
    with refused(RefusalCode.ESCROW, "^g sent another escrow"):
        check_escrow(parties.terms, lie)


@pytest.mark.parametrize("change", ["short", "twice", "to itself", "unordered", "few keys"])
def test_an_escrow_that_does_not_name_each_other_firm_once_is_refused(parties, change):
    joins = parties.join()
    shares, keys = joins[6].escrow.shares, joins[6].escrow.key_commitments
    fields = {
        "short": {"shares": shares[:-1]},
        "twice": {"shares": (*shares[:-1], shares[0])},
        "to itself": {"shares": (*shares[:-1], replace(shares[-1], receiver="g"))},
        "unordered": {"shares": (shares[1], shares[0], *shares[2:])},
        "few keys": {"key_commitments": keys[:-1]},
    }
    with refused(RefusalCode.ESCROW, "^g's escrow does not name"):
        check_escrow(parties.terms, sign_again(parties, joins[6], **fields[change]))


def test_wrong_sealed_keys_are_named_when_the_liar_drops_out(parties):
    joins = parties.join()
    joins = with_lie(parties, joins, "g", sealed=joins[0].escrow.sealed)
    with refused(RefusalCode.ESCROW, "^g's escrow does not open with its own key"):
        opened(parties, joins, "abcdef")


@pytest.mark.parametrize("keys", [b"\x07" * 32 * 6, b"\x07" * 32 * 5, b"\x07" * 33, b""])
def test_other_sealed_keys_than_committed_to_are_named_when_the_liar_drops_out(parties, keys):
    joins = parties.join()
    own_key = key_behind(parties, joins, "g")
    sealed = AESGCM(own_key).encrypt(bytes(12), keys, None)
    with refused(RefusalCode.ESCROW, "^g's escrow holds other keys than it committed to"):
        opened(parties, with_lie(parties, joins, "g", sealed=sealed), "abcdef")


def key_behind(parties, joins, firm):
    """A liar knows its own escrow key; here it is taken from a round in which the firm dropped out."""
    shares = {}
    for place, name in enumerate(FIRMS, start=1):
        if name != firm:
            copy = parties.copy(name)
            copy.accept_cohort(parties.cohort(name, joins))
            held = {entry.dealer: entry for entry in copy._state.held}
            shares[place] = held[firm].escrow_share
    return combine(shares, THRESHOLD)


def test_a_liar_that_does_not_drop_out_harms_nobody(parties):
    joins = parties.join()
    joins = with_lie(parties, joins, "g", sealed=joins[0].escrow.sealed)
    assert np.allclose(parties.mean(opened(parties, joins, FIRMS)), parties.mean_of(FIRMS), atol=1e-3)


def test_a_wrong_share_for_one_firm_is_complained_of_by_it(parties):
    joins = parties.join()
    spoilt = boxes_with(escrow_of(joins, "g"), {"b": lambda part: replace(part, box=part.box[::-1])})
    uploads = parties.upload(with_lie(parties, joins, "g", shares=spoilt))
    assert {name: receipt.complaints for name, (receipt, _) in uploads.items() if receipt.complaints} == {"b": ("g",)}


def test_a_share_that_is_not_the_committed_one_is_complained_of(parties):
    joins = parties.join()
    lie = {"b": lambda part: replace(part, escrow_commitment=commit_share(bytes(33)))}
    uploads = parties.upload(with_lie(parties, joins, "g", shares=boxes_with(escrow_of(joins, "g"), lie)))
    assert uploads["b"][0].complaints == ("g",)
    assert uploads["c"][0].complaints == ()


def test_another_key_than_the_receiver_holds_is_complained_of(parties):
    joins = parties.join()
    keys = escrow_of(joins, "g").key_commitments
    uploads = parties.upload(with_lie(parties, joins, "g", key_commitments=(keys[0], commit_key(bytes(32)), *keys[2:])))
    assert uploads["b"][0].complaints == ("g",)
    assert uploads["a"][0].complaints == ()


def test_a_wrong_share_for_one_firm_does_no_harm_while_enough_are_right(parties):
    joins = parties.join()
    spoilt = boxes_with(escrow_of(joins, "g"), {"b": lambda part: replace(part, box=bytes(len(part.box)))})
    total = opened(parties, with_lie(parties, joins, "g", shares=spoilt), "abcdef")
    assert np.allclose(parties.mean(total), parties.mean_of("abcdef"), atol=1e-3)


def test_wrong_shares_for_too_many_firms_are_named_when_the_liar_drops_out(parties):
    joins = parties.join()
    spoil = {name: lambda part: replace(part, box=bytes(len(part.box))) for name in "bc"}
    lying = with_lie(parties, joins, "g", shares=boxes_with(escrow_of(joins, "g"), spoil))
    with refused(RefusalCode.ESCROW, "^4 right shares of g where 5 are needed"):
        opened(parties, lying, "abcdef")


@pytest.mark.parametrize(("spoilt_for", "opens"), [("b", True), ("bc", False)])
def test_receipts_tell_before_any_release_whether_a_missing_member_s_masks_can_be_removed(parties, spoilt_for, opens):
    joins = parties.join()
    spoil = {name: lambda part: replace(part, box=bytes(len(part.box))) for name in spoilt_for}
    lying = with_lie(parties, joins, "g", shares=boxes_with(escrow_of(joins, "g"), spoil))
    told = parties.filled(lying, parties.upload(lying, who="abcdef")).unopenable
    assert told == ({} if opens else {"g": "dropped out, and its escrow is of no use to b, c, as they say"})


def test_a_survivor_whose_escrow_is_of_no_use_can_still_open_its_own_part(parties):
    joins = parties.join()
    spoil = {name: lambda part: replace(part, box=bytes(len(part.box))) for name in "bc"}
    lying = with_lie(parties, joins, "g", shares=boxes_with(escrow_of(joins, "g"), spoil))
    uploads = parties.upload(lying)
    server = parties.filled(lying, uploads)
    assert server.unopenable == {}
    request = parties.release_request(uploads, votes=parties.votes(uploads))
    releases = {name: parties.sessions[name].release(request) for name in FIRMS}
    assert not server.can_open({name: releases[name] for name in "abcdef"})
    assert server.can_open(releases)
    assert np.allclose(parties.mean(server.unmask(releases)), parties.mean_of(FIRMS), atol=1e-3)


@pytest.mark.parametrize(("releasing", "opens"), [("abcd", False), ("abcde", True), ("acdef", True)])
def test_as_many_right_shares_as_the_threshold_open_a_sum(parties, releasing, opens):
    joins = parties.join()
    uploads = parties.upload(joins, who="abcdef")
    server = parties.filled(joins, uploads)
    request = parties.release_request(uploads, votes=parties.votes(uploads))
    releases = {name: parties.sessions[name].release(request) for name in releasing}
    assert server.can_open(releases) is opens
    assert not server.can_open(with_share(parties, "a", "self_shares", bytes(33))(releases))


def dealt_apart(parties, joins, liar):
    """The liar deals to b a share of another polynomial, sealed and committed to as it should be."""
    dealer = parties.sessions[liar]
    other = dealer._signed_join().escrow  # a second sharing with the same seed and another escrow key
    mixed = tuple(
        b if a.receiver == "b" else a for a, b in zip(escrow_of(joins, liar).shares, other.shares, strict=True)
    )
    return with_lie(parties, joins, liar, shares=mixed)


def test_shares_that_do_not_belong_together_name_their_dealer_when_it_drops_out(parties):
    lying = dealt_apart(parties, parties.join(), "g")
    with refused(RefusalCode.ESCROW, "^g dealt shares that do not belong together"):
        opened(parties, lying, "abcdef")


def test_shares_that_do_not_belong_together_name_their_dealer_when_it_does_not_release(parties):
    lying = dealt_apart(parties, parties.join(), "g")
    with refused(RefusalCode.ESCROW, "^g dealt shares that do not belong together"):
        opened(parties, lying, FIRMS, releasing="abcdef")


def test_firms_that_committed_to_different_keys_with_each_other_are_found(parties):
    joins = parties.join()
    keys = escrow_of(joins, "g").key_commitments
    assert conflicts(parties.terms, joins) == {}
    one = with_lie(parties, joins, "g", key_commitments=(commit_key(bytes(32)), *keys[1:]))
    assert conflicts(parties.terms, one) == {"a": {"g"}, "g": {"a"}}
    assert in_conflict(parties.terms, one) == {
        "a": "escrowed other keys than g did (one of them lies)",
        "g": "escrowed other keys than a did (one of them lies)",
    }


def test_who_disagrees_with_several_is_left_out_alone(parties):
    joins = parties.join()
    keys = escrow_of(joins, "g").key_commitments
    lying = with_lie(parties, joins, "g", key_commitments=(commit_key(b"1"), commit_key(b"2"), *keys[2:]))
    assert in_conflict(parties.terms, lying) == {"g": "escrowed other keys than a, b did"}


def test_the_documented_limit_two_firms_that_lie_about_a_third_put_it_out_in_their_place(parties):
    """Keys are two firms' word against each other. It costs the third firm the attempt, and nobody a secret."""
    joins = parties.join()
    for liar in "fg":
        keys = escrow_of(joins, liar).key_commitments
        joins = with_lie(parties, joins, liar, key_commitments=(commit_key(liar.encode()), *keys[1:]))
    assert in_conflict(parties.terms, joins) == {"a": "escrowed other keys than f, g did"}


def test_firms_that_agree_have_no_conflict_whoever_joins(parties):
    assert in_conflict(parties.terms, parties.join(who="abdeg")) == {}


def with_share(parties, firm, kind, share):
    """What a colluding firm releases: another share of whomever it holds one of, well signed."""

    def change(releases):
        release = releases[firm]
        release = changed(release, **{kind: tuple((dealer, share) for dealer, _ in getattr(release, kind))})
        signature = parties.identities[firm].sign("dure release", JOB, *release_parts(release))
        return releases | {firm: changed(release, signature=signature)}

    return change


@pytest.mark.parametrize("share", [bytes(33), b"\xff" * 33], ids=["of the field", "of no field"])
@pytest.mark.parametrize("kind", ["self_shares", "escrow_shares"])
def test_a_wrong_share_returned_by_one_firm_is_passed_over_while_enough_are_right(parties, kind, share):
    survivors, releasing = ("abcdef", None) if kind == "escrow_shares" else (FIRMS, "abcdef")
    total = opened(parties, parties.join(), survivors, releasing, with_share(parties, "b", kind, share))
    assert np.allclose(parties.mean(total), parties.mean_of(survivors), atol=1e-3)


@pytest.mark.parametrize(("kind", "survivors"), [("self_shares", FIRMS), ("escrow_shares", "abcdef")])
def test_a_wrong_share_names_the_firm_that_returned_it_when_it_is_needed(parties, kind, survivors):
    with refused(
        RefusalCode.ESCROW, r"^4 right shares of (f|g) where 5 are needed; b sent other shares than were dealt"
    ):
        opened(parties, parties.join(), survivors, "abcde", with_share(parties, "b", kind, bytes(33)))


def test_a_firm_that_returns_no_share_is_passed_over(parties):
    def without(releases):
        release = changed(releases["b"], escrow_shares=())
        signature = parties.identities["b"].sign("dure release", JOB, *release_parts(release))
        return releases | {"b": changed(release, signature=signature)}

    total = opened(parties, parties.join(), "abcdef", None, without)
    assert np.allclose(parties.mean(total), parties.mean_of("abcdef"), atol=1e-3)


def test_shares_changed_by_the_server_are_refused_by_their_signature(parties):
    def change(releases):
        return releases | {"b": changed(releases["b"], escrow_shares=releases["c"].escrow_shares)}

    with refused(RefusalCode.SIGNATURE, "^b: "):
        opened(parties, parties.join(), "abcdef", None, change)


def test_a_delivery_exchanged_by_the_server_is_complained_of_and_gives_nothing_away(parties):
    """b gets what was sealed for c, and what was sealed in an earlier attempt: it holds no share of that dealer."""
    earlier = parties.cohort("b", parties.join())
    joins = parties.join((1, 1, 2))
    cohort = parties.cohort("b", joins, (1, 1, 2))
    for_c = parties.cohort("c", joins, (1, 1, 2)).deliveries
    wrong = {"a": for_c[0], "c": earlier.deliveries[1], "d": replace(for_c[3], dealer="d")}
    deliveries = tuple(wrong.get(delivery.dealer, delivery) for delivery in cohort.deliveries)
    parties.sessions["b"].accept_cohort(replace(cohort, deliveries=deliveries))
    receipt = parties.sessions["b"].sign_upload(sha256(b"vector").digest())
    assert receipt.complaints == ("a", "c", "d")


@pytest.mark.parametrize("change", ["one too few", "one twice", "its own"])
def test_a_cohort_without_one_delivery_from_each_other_member_is_refused(parties, change):
    joins = parties.join()
    cohort = parties.cohort("b", joins)
    lists = {
        "one too few": cohort.deliveries[1:],
        "one twice": (*cohort.deliveries[1:], cohort.deliveries[1]),
        "its own": (*cohort.deliveries[1:], replace(cohort.deliveries[0], dealer="b")),
    }
    with refused(RefusalCode.ROSTER):
        parties.sessions["b"].accept_cohort(replace(cohort, deliveries=lists[change]))


def test_an_opened_escrow_key_opens_the_masks_of_its_attempt_and_no_other(parties):
    parties.upload(parties.join())
    roots = dict(parties.sessions["g"]._state.roots)
    joins = parties.join((1, 1, 2))
    uploads = parties.upload(joins, (1, 1, 2), who="abcdef")
    votes = parties.votes(uploads, (1, 1, 2))
    request = parties.release_request(uploads, (1, 1, 2), votes=votes)
    releases = [parties.sessions[name].release(request) for name in "abcdef"]
    keys = recover_attempt_keys(parties.terms, THRESHOLD, joins[6], releases)
    earlier = {peer: derive(root, "dure attempt", (1).to_bytes(8, "big")) for peer, root in roots.items()}
    assert keys == {peer: derive(root, "dure attempt", (2).to_bytes(8, "big")) for peer, root in roots.items()}
    assert not set(keys.values()) & (set(earlier.values()) | set(roots.values()))


def test_an_opened_escrow_key_opens_no_share_that_its_firm_holds(parties):
    """g dropped out, so its attempt keys become known. The shares that others dealt to it must stay closed: each would
    be one share of a survivor's escrow key, whose self seed is opened."""
    joins = parties.join()
    uploads = parties.upload(joins, who="abcdef")
    request = parties.release_request(uploads, votes=parties.votes(uploads))
    releases = [parties.sessions[name].release(request) for name in "abcdef"]
    keys = recover_attempt_keys(parties.terms, THRESHOLD, joins[6], releases)
    for dealer, key in keys.items():
        box = next(part.box for part in escrow_of(joins, dealer).shares if part.receiver == "g")
        for guess in (key, derive(key, "dure share box", dealer.encode())):
            with pytest.raises(InvalidTag):
                AESGCM(guess).decrypt(bytes(12), box, None)


def test_control_enough_shares_give_the_self_seed_of_a_survivor_that_does_not_release(parties):
    joins = parties.join(FIRST)
    uploads = parties.upload(joins)
    request = parties.release_request(uploads, votes=parties.votes(uploads))
    releases = [parties.sessions[name].release(request) for name in "abcde"]
    seed = parties.sessions["g"]._state.self_seed
    assert recover_self_seed(parties.terms, THRESHOLD, joins[6], releases) == seed


def test_no_share_and_no_key_travels_open_to_the_server(parties):
    """Commitments and boxes are all that an escrow shows."""
    joins = parties.join()
    travels = b"".join(encode(join) for join in joins)
    for name, session in parties.sessions.items():
        session.accept_cohort(parties.cohort(name, joins))
        for entry in session._state.held:
            assert entry.self_share not in travels
            assert entry.escrow_share not in travels
        assert session._state.self_seed not in travels
        assert not any(key in travels for key in session._attempt_keys().values())
