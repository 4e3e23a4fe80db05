"""A published sum that is not what the members sent is refused by every firm: the tag (docs/protocol.md, section 5).

Firms share the key of the tag and the server does not hold it. At the end stands what this does not promise: a server
with one firm of the job can forge.
"""

import random
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dure_protocols.errors import MessageError, RefusalCode
from dure_protocols.secagg import rows, tags
from dure_protocols.secagg.codec import VectorLayout, carries_tag
from dure_protocols.secagg.layout import TAG_WORDS
from dure_protocols.secagg.masks import tag_key
from dure_protocols.secagg.terms import mask_context
from tests.protocols.secagg.parties import MODEL, OTHER_MODEL, Opened, Parties, refused

RETRY, THRESHOLD = ("abcd", None), ("abcde", 4)
MODES = pytest.mark.parametrize("mode", [RETRY, THRESHOLD], ids=["retry", "threshold"])


def a_round(mode, **options) -> tuple[Parties, Opened]:
    names, threshold = mode
    parties = Parties(names, threshold=threshold).establish()
    return parties, parties.run(**options)


def check(parties, opened, words, *, model=MODEL, **published):
    """Let every firm check a sum."""
    entry = replace(opened.published, vector_digest=sha256(words.tobytes()).digest(), **published)
    for session in parties.sessions.values():
        session.check_sum(entry, words, parties.layout, model)


def refused_by_everyone(code, parties, opened, words, *, model=MODEL, **published):
    entry = replace(opened.published, vector_digest=sha256(words.tobytes()).digest(), **published)
    for session in parties.sessions.values():
        with refused(code):
            session.check_sum(entry, words, parties.layout, model)


@MODES
def test_control_the_true_sum_is_believed_by_everyone_as_often_as_it_comes(mode):
    parties, opened = a_round(mode)
    check(parties, opened, opened.total)
    check(parties, opened, opened.total)


WORDS = {
    "a field": 0,
    "another field of a word": (0, 48),
    "the count": 2,
    "the firms": 3,
    "an exact word": 4,
    "the low tag word": 5,
    "the high tag word": 6,
}


@MODES
@pytest.mark.parametrize("place", WORDS)
@pytest.mark.parametrize("change", [1, -1, 1 << 7])
def test_a_sum_with_one_number_changed_is_refused(mode, place, change):
    parties, opened = a_round(mode)
    word, shift = WORDS[place] if isinstance(WORDS[place], tuple) else (WORDS[place], 0)
    words = opened.total.copy()
    words[word : word + 1] += np.uint64((change << shift) % 2**64)
    refused_by_everyone(RefusalCode.FALSE_SUM, parties, opened, words)


@MODES
def test_a_sum_with_any_bit_changed_is_refused(mode):
    parties, opened = a_round(mode)
    for bit in range(64 * parties.layout.words):
        words = opened.total.copy()
        words[bit // 64] ^= np.uint64(1 << bit % 64)
        with refused(RefusalCode.FALSE_SUM):
            parties.sessions["a"].check_sum(opened.published, words, parties.layout, MODEL)


@MODES
def test_a_sum_of_the_members_in_another_order_of_parameters_is_refused(mode):
    parties = Parties(*mode[:1], threshold=mode[1])
    for name in parties.updates:
        parties.updates[name][1] = -parties.updates[name][1]
    parties.establish()
    opened = parties.run()
    words = opened.total.copy()
    words[:2] = words[1::-1]
    refused_by_everyone(RefusalCode.FALSE_SUM, parties, opened, words)


@MODES
@pytest.mark.parametrize(
    ("published", "model"),
    [
        ({"attempt": 2}, MODEL),
        ({"round": 3}, MODEL),
        ({"round": 1}, MODEL),
        ({}, OTHER_MODEL),
    ],
    ids=["attempt", "later round", "earlier round", "model"],
)
def test_a_sum_of_another_attempt_round_or_model_is_refused(mode, published, model):
    """For a firm that took no part: one that did compares members first."""
    names, threshold = mode
    parties = Parties(names, threshold=threshold).establish()
    others = names[:-1]
    opened = parties.run((1, 2, 1), who=others)
    spectator = parties.sessions[names[-1]]
    spectator.check_sum(opened.published, opened.total, parties.layout, MODEL)
    with refused(RefusalCode.FALSE_SUM):
        spectator.check_sum(replace(opened.published, **published), opened.total, parties.layout, model)


def test_a_sum_of_another_cohort_is_refused():
    parties = Parties().establish()
    opened = parties.run(who="abc")
    for cohort in (("a", "b"), ("a", "c"), ("b", "c")):
        with refused(RefusalCode.FALSE_SUM):
            entry = replace(opened.published, cohort=cohort, members=cohort)
            parties.sessions["d"].check_sum(entry, opened.total, parties.layout, MODEL)


def test_in_retry_mode_a_sum_over_some_of_its_cohort_is_refused_by_a_firm_that_took_no_part():
    parties = Parties().establish()
    opened = parties.run(who="abc")
    entry = replace(opened.published, members=("a", "b"))
    with refused(RefusalCode.ROSTER):
        parties.sessions["d"].check_sum(entry, opened.total, parties.layout, MODEL)


def test_in_threshold_mode_a_sum_of_another_cohort_is_refused():
    parties = Parties("abcdef", threshold=5).establish()
    opened = parties.run(who="abcde")
    entry = replace(opened.published, cohort=("a", "b", "c", "d", "e", "f"))
    with refused(RefusalCode.FALSE_SUM):
        parties.sessions["f"].check_sum(entry, opened.total, parties.layout, MODEL)


@MODES
def test_a_sum_of_an_earlier_epoch_under_a_new_one_is_refused(mode):
    parties, opened = a_round(mode)
    parties.establish(2)
    check(parties, opened, opened.total)
    refused_by_everyone(RefusalCode.FALSE_SUM, parties, opened, opened.total, epoch=2)
    refused_by_everyone(RefusalCode.SNAPSHOT_NEEDED, parties, opened, opened.total, epoch=3)


@MODES
def test_a_replayed_sum_of_the_round_before_is_refused(mode):
    parties, first = a_round(mode)
    second = parties.run((1, 2, 1), model=OTHER_MODEL)
    refused_by_everyone(RefusalCode.FALSE_SUM, parties, second, first.total, model=OTHER_MODEL)
    check(parties, second, second.total, model=OTHER_MODEL)


def attempt_tag_key(parties, opened):
    """What any one firm of the job can derive."""
    epoch = parties.sessions["b"]._state.epochs[-1]
    place = opened.published.epoch, opened.published.round, opened.published.attempt
    return tag_key(epoch.tag_key, mask_context(parties.terms, epoch.transcript, *place, opened.published.cohort, MODEL))


def bare_vector(parties, opened, name):
    """One firm's vector without masks, tag and all: what a server would need to add it once more or take it out."""
    return parties.contribute(name, np.zeros(parties.layout.words, np.uint64), attempt_tag_key(parties, opened))


@MODES
@pytest.mark.parametrize("factor", [-1, 1], ids=["left out", "added twice"])
def test_a_sum_with_one_vector_left_out_or_added_twice_is_refused(mode, factor):
    """The tag is linear: the firms word tells, and the members' constants."""
    parties, opened = a_round(mode)
    vector = bare_vector(parties, opened, "a")
    words = opened.total + vector if factor == 1 else opened.total - vector
    refused_by_everyone(RefusalCode.FALSE_SUM, parties, opened, words)


@MODES
@pytest.mark.parametrize("factor", [0, 2, 3])
def test_a_sum_scaled_is_refused(mode, factor):
    """The tag is linear: the firms word tells, and the members' constants."""
    parties, opened = a_round(mode)
    refused_by_everyone(RefusalCode.FALSE_SUM, parties, opened, opened.total * np.uint64(factor))


SEVEN = "abcdefg"


def opened_by_five(parties, uploading):
    """A sum over those who upload, opened by a to e: the others are not told who else is in it."""
    joins = parties.join(who=SEVEN)
    uploads = parties.upload(joins, who=uploading)
    votes = parties.votes(uploads, who="abcde")
    server = parties.filled(joins, uploads)
    request = parties.release_request(uploads, votes=votes)
    total = server.unmask({name: parties.sessions[name].release(request) for name in "abcde"})
    return total, parties.published(server, total)


def test_a_sum_under_as_many_other_names_is_refused_by_a_member_that_did_not_release():
    """Else its guard against differencing would note a cohort that was never summed."""
    parties = Parties(SEVEN, threshold=5, minimum_difference=2).establish()
    total, published = opened_by_five(parties, "abcdef")
    parties.sessions["f"].check_sum(published, total, parties.layout, MODEL)
    for members in ("abcdeg", "abcdfg", "bcdefg"):
        with refused(RefusalCode.FALSE_SUM):
            lie = replace(published, members=tuple(members))
            parties.sessions["f"].check_sum(lie, total, parties.layout, MODEL)
    parties.sessions["f"].note_sum(published, MODEL)
    joins = parties.join((1, 2, 1), who=SEVEN, model=OTHER_MODEL)
    with refused(RefusalCode.COHORT_TOO_SMALL):
        parties.sessions["f"].accept_cohort(parties.cohort("f", joins, (1, 2, 1)))


@pytest.mark.parametrize("named", ["abc", "abcd", "bcdef"])
def test_a_sum_multiplied_to_fit_another_number_of_members_is_refused(named):
    """Modulo p every multiple of a sum without packed words is one that decodes; its members' constants tell."""
    parties = Parties(SEVEN, threshold=5, parameters=0).establish()
    parties.updates = dict.fromkeys(parties.updates, np.zeros(0, np.float32))
    total, published = opened_by_five(parties, "abcdef")
    factor = len(named) * pow(6, -1, tags.PRIME) % tags.PRIME
    words = total.copy()
    words[parties.layout.tail] = [multiplied(value, factor) for value in total[parties.layout.tail].view(np.int64)]
    tag = tags.joined(total[-TAG_WORDS:]) * factor % tags.PRIME
    words[-TAG_WORDS:] = tags.split(tag, bytes(32))
    lie = replace(published, members=tuple(named))
    with refused(RefusalCode.FALSE_SUM):
        parties.sessions["g"].check_sum(lie, words, parties.layout, MODEL)


def multiplied(value, factor):
    product = int(value) * factor % tags.PRIME
    return np.uint64((product if product < 2**60 else product - tags.PRIME) % 2**64)


def test_statistics_over_some_of_the_firms_are_no_sum():
    parties = Parties().establish()
    opened = parties.run((1, 0, 1), who="abc")
    with refused(RefusalCode.ROSTER):
        parties.sessions["d"].check_sum(opened.published, opened.total, parties.layout, MODEL)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 64), st.integers(0, 2**32))
def test_what_is_published_tells_nothing_of_a_tag_but_the_sum_of_tags(num, seed):
    """The same tag sum, made of other tags: blinded words are spread alike, far wider than what they would tell."""
    chance = random.Random(seed)
    made = [chance.randrange(tags.PRIME) for _ in range(num)]
    words = sum((tags.split(tag, chance.randbytes(32)) for tag in made), np.zeros(TAG_WORDS, np.uint64))
    assert tags.joined(words) == sum(made) % tags.PRIME
    whole = sum(int(word) << 16 * at for at, word in enumerate(words.view(np.int64)))
    wraps = whole // tags.PRIME
    assert wraps > 2**30 > 2**20 * num  # how often single tags wrapped is a matter of `num`; blinding is of 2^40
    assert int(words.view(np.int64)[0]) >> 16 > 2**26 > 2**18 * num


@pytest.mark.parametrize("minimum", [2, 3])
def test_the_documented_limit_in_retry_mode_disjoint_cohorts_part_the_model_unless_a_majority_is_asked_for(minimum):
    """Both sums of the round are true. A minimum cohort of more than half of the firms leaves room for one only."""
    parties = Parties("abcd", minimum_cohort=minimum).establish()
    if minimum > 2:
        with refused(RefusalCode.COHORT_TOO_SMALL):
            parties.run((1, 1, 1), who="ab")
        return
    one, other = parties.run((1, 1, 1), who="ab"), parties.run((1, 1, 2), who="cd")
    for opened, who in ((one, "ab"), (other, "cd")):
        for name in who:
            parties.sessions[name].check_sum(opened.published, opened.total, parties.layout, MODEL)
    assert not np.allclose(parties.mean(one.total), parties.mean(other.total))


def test_a_sum_of_fewer_survivors_under_the_names_of_more_is_refused():
    parties, opened = a_round(THRESHOLD, survivors="abcd")
    with refused(RefusalCode.FALSE_SUM):
        entry = replace(opened.published, members=opened.published.cohort)
        session = parties.fresh("e")
        session.restore(parties.sessions["e"].snapshot())
        session._state.contributed_key, session._state.contributed_round = MODEL, 1  # as if it had uploaded
        session.check_sum(entry, opened.total, parties.layout, MODEL)


@MODES
@pytest.mark.parametrize(
    "members",
    [("a", "b"), ("b", "c", "d"), ("a", "b", "c", "stranger"), ("a", "a", "b", "c"), ("a",), ()],
)
def test_a_sum_that_names_other_members_than_were_released_to_is_refused(mode, members):
    parties, opened = a_round(mode)
    refused_by_everyone(RefusalCode.ROSTER, parties, opened, opened.total, members=members)
    refused_by_everyone(RefusalCode.ROSTER, parties, opened, opened.total, members=members, cohort=members)


def test_a_sum_with_a_vector_that_the_firm_did_not_release_is_refused():
    parties = Parties().establish()
    joins = parties.join()
    uploads = parties.upload(joins)
    request = parties.release_request(uploads)
    total = parties.filled(joins, uploads).unmask({name: parties.copy(name).release(request) for name in "abcd"})
    with refused(RefusalCode.ROSTER):
        parties.sessions["a"].check_sum(parties.published(parties.attempt(joins), total), total, parties.layout, MODEL)


@MODES
@pytest.mark.parametrize("length", [-1, 1])
def test_a_sum_cut_short_or_extended_is_no_sum(mode, length):
    parties, opened = a_round(mode)
    words = np.resize(opened.total, opened.total.size + length)
    for session in parties.sessions.values():
        with pytest.raises(MessageError):
            session.check_sum(opened.published, words, parties.layout, MODEL)


@MODES
def test_random_forgeries_never_pass_over_many_keys(mode):
    chance = random.Random(3)
    for _ in range(10):
        names, threshold = mode
        parties = Parties(names, threshold=threshold, seed=chance.random()).establish()
        opened = parties.run()
        for _ in range(60):
            words = opened.total.copy()
            words[chance.randrange(parties.layout.packed_words)] += np.uint64(1 << chance.randrange(48))
            key = attempt_tag_key(parties, opened)
            assert not carries_tag(words, parties.layout, key, opened.published.members)


LAYOUTS = st.builds(VectorLayout, st.integers(0, 40), st.integers(2, 20), st.integers(2, 12), st.integers(0, 3))


@settings(max_examples=40, deadline=None)
@given(layout=LAYOUTS, seed=st.integers(0, 2**32), key=st.binary(min_size=32, max_size=32), num=st.integers(1, 12))
def test_tags_of_vectors_add_up_to_the_tag_of_their_sum(layout, seed, key, num):
    """Linearity over every layout; and any difference in the sum of integers is a difference of tags."""
    num = min(num, layout.max_members)
    chance = np.random.default_rng(seed)
    total = np.zeros(layout.words, np.uint64)
    for _ in range(num):
        fields = chance.integers(0, 2**layout.bits - 1, layout.packed_words * layout.fields, np.uint64)
        vector = np.zeros(layout.words, np.uint64)
        for place in range(layout.fields):
            shift = np.uint64(place * layout.field_bits)
            vector[: layout.packed_words] += fields[place :: layout.fields] << shift
        vector[layout.tail] = np.array([7, 1, *chance.integers(0, 2**40, layout.exact)], np.uint64)
        total += tagged(vector, layout, key, [f"firm-{_}"])
    members = [f"firm-{number}" for number in range(num)]
    assert carries_tag(total, layout, key, members)
    place = int(chance.integers(layout.words))
    total[place] += np.uint64(1)
    assert not carries_tag(total, layout, key, members)


def tagged(vector, layout, key, members):
    """A vector with the tag that a holder of the key puts under it."""
    spread = tags.TagKey.of(layout, key)
    packed = rows.tag_of(vector[: layout.packed_words], layout, spread)
    tag = spread.tag(packed, vector[layout.tail].view(np.int64)) + tags.constant_of(key, members)
    vector[-TAG_WORDS:] = tags.split(tag % tags.PRIME, np.random.default_rng(len(members)).bytes(32))
    return vector


@MODES
def test_the_documented_limit_a_server_with_one_firm_s_tag_key_forges_a_sum(mode):
    """All firms hold the key, so one that colludes lets the server put any sum in the place of the true one."""
    parties, opened = a_round(mode)
    forged = opened.total.copy()
    forged[: parties.layout.packed_words] = 0
    tagged(forged, parties.layout, attempt_tag_key(parties, opened), opened.published.members)
    check(parties, opened, forged)
    assert not np.allclose(parties.mean(forged), parties.mean(opened.total))
