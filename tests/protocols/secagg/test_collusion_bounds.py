"""How far the promises reach: at each bound what a server and its colluding firms can do, and below it what not.

Seven firms, a threshold of five: two survivor sets need ten votes, so with seven firms three must vote twice. Updates
are random numbers here, and what an attacker makes of a round is compared with the truth by correlation.
"""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from dure_protocols.errors import RefusalCode, RefusedError
from dure_protocols.messages import ReleaseRequest
from dure_protocols.secagg.escrow import recover_attempt_keys, recover_self_seed
from dure_protocols.secagg.keystream import apply_keystreams
from dure_protocols.secagg.masks import mask_key, self_mask_key
from tests.protocols.secagg.parties import JOB, MODEL, Parties, refused

FIRMS, THRESHOLD = "abcdefg", 5
VICTIM, WITHOUT_VICTIM = "a", "bcdefg"


def with_random_updates(names, **options):
    parties = Parties(names, parameters=3000, **options)
    for name in names:
        noise = np.random.default_rng(names.index(name)).normal(0, 0.2, 3000)
        parties.updates[name] = np.clip(noise, -1, 1).astype(np.float32)
    return parties.establish()


def fields_of(parties, words):
    return words[: parties.layout.packed_words].copy().view(np.uint16).astype(float)


def likeness(parties, words, names):
    """Correlation of a guess at a sum with the truth over these firms."""
    guess = fields_of(parties, words)
    bare = np.zeros(parties.layout.words, np.uint64)
    for name in names:
        parties.contribute(name, bare, bytes(32))
    return float(np.corrcoef(guess, fields_of(parties, bare))[0, 1])


def best_guess(parties, uploads, releases):
    """A server's sum without every self mask that it was given a seed of."""
    total = sum(vector for _, vector in uploads.values())
    for name, release in releases.items():
        key = self_mask_key(release.seed, uploads[name][0].context)
        apply_keystreams(total, subtract=[key])
    return total


@pytest.mark.parametrize(("releasing", "opens"), [("abcd", True), ("abc", False), ("", False)])
def test_in_retry_mode_one_release_too_few_shows_nothing_and_all_show_the_sum(releasing, opens):
    parties = with_random_updates("abcd")
    uploads = parties.upload(parties.join())
    request = parties.release_request(uploads)
    releases = {name: parties.sessions[name].release(request) for name in releasing}
    found = likeness(parties, best_guess(parties, uploads, releases), "abcd")
    assert found > 0.999 if opens else abs(found) < 0.1


@pytest.mark.parametrize("num_releases", range(THRESHOLD + 1))
def test_in_threshold_mode_one_release_too_few_shows_nothing_and_enough_show_the_sum(num_releases):
    parties = with_random_updates(FIRMS, threshold=THRESHOLD)
    joins = parties.join()
    uploads = parties.upload(joins)
    request = parties.release_request(uploads, votes=parties.votes(uploads))
    releases = {name: parties.sessions[name].release(request) for name in FIRMS[:num_releases]}
    if num_releases == THRESHOLD:
        assert likeness(parties, parties.filled(joins, uploads).unmask(releases), FIRMS) > 0.999
        return
    dealers = {join.firm: join for join in joins}
    for missing in FIRMS[num_releases:]:
        with pytest.raises(RefusedError, match=f"{num_releases} right shares"):
            recover_self_seed(parties.terms, THRESHOLD, dealers[missing], releases.values())
    assert abs(likeness(parties, best_guess(parties, uploads, releases), FIRMS)) < 0.1


def test_no_single_upload_shows_anything_when_everybody_else_has_been_opened():
    """Of a firm that dropped out after it uploaded, the pair masks become known, its self mask stays."""
    parties = with_random_updates(FIRMS, threshold=THRESHOLD)
    joins = parties.join()
    uploads = parties.upload(joins)
    survivors = {name: uploads[name] for name in WITHOUT_VICTIM}
    request = parties.release_request(survivors, votes=parties.votes(survivors))
    releases = {name: parties.sessions[name].release(request) for name in WITHOUT_VICTIM}
    server = parties.filled(joins, survivors)
    total = server.unmask(releases)
    assert likeness(parties, total, WITHOUT_VICTIM) > 0.999
    victim = {join.firm: join for join in joins}[VICTIM]
    keys = recover_attempt_keys(parties.terms, THRESHOLD, victim, releases.values())
    assert likeness(parties, _without_pair_masks(parties, uploads[VICTIM], keys), VICTIM) == pytest.approx(0, abs=0.1)
    own = self_mask_key(parties.sessions[VICTIM]._state.self_seed, uploads[VICTIM][0].context)
    bare = _without_pair_masks(parties, uploads[VICTIM], keys)
    apply_keystreams(bare, subtract=[own])  # control: with the self seed, too, the update would lie open
    assert likeness(parties, bare, VICTIM) > 0.999


def _without_pair_masks(parties, upload, keys):
    receipt, vector = upload
    words = vector.copy()
    masks = {peer: mask_key(key, receipt.context) for peer, key in keys.items()}
    apply_keystreams(
        words,
        subtract=[key for peer, key in masks.items() if peer > receipt.firm],
        add=[key for peer, key in masks.items() if peer < receipt.firm],
    )
    return words


def equivocate(parties, joins, uploads, colluders, told_all):
    """Show `told_all` among the honest firms that everybody survived, and the others that the victim dropped out;
    colluders vote for both. Returns the sums that could be opened."""
    sets = {FIRMS: told_all, WITHOUT_VICTIM: set(FIRMS) - set(colluders) - set(told_all) - {VICTIM}}
    opened = {}
    for names, honest in sets.items():
        survivors = {name: uploads[name] for name in names}
        speaking = {name: parties.copy(name) for name in colluders} | {name: parties.sessions[name] for name in honest}
        votes = tuple(session.vote(parties.vote_request(survivors)) for session in speaking.values())
        request = ReleaseRequest(JOB, 1, 1, 1, (), votes)
        try:
            releases = {name: session.release(request) for name, session in speaking.items()}
        except RefusedError:
            continue
        opened[names] = parties.filled(joins, survivors).unmask(releases)
    return opened


def splits(honest):
    return (set(told) for size in range(len(honest) + 1) for told in itertools.combinations(honest, size))


def test_below_a_third_of_colluding_firms_no_split_of_the_others_opens_two_sums():
    colluders, honest = "fg", "abcde"
    for told_all in splits(honest):
        parties = Parties(FIRMS, threshold=THRESHOLD).establish()
        joins = parties.join()
        assert len(equivocate(parties, joins, parties.upload(joins), colluders, told_all)) <= 1


def test_the_documented_limit_from_a_third_of_colluding_firms_on_equivocation_opens_one_update():
    """2t = 10 votes from four honest firms and three that vote twice: the difference of both sums is the victim's."""
    parties = with_random_updates(FIRMS, threshold=THRESHOLD)
    joins = parties.join()
    opened = equivocate(parties, joins, parties.upload(joins), "efg", {"a", "b"})
    assert len(opened) == 2
    stolen = parties.layout.packed_words
    difference = opened[FIRMS] - opened[WITHOUT_VICTIM]
    own = parties.contribute(VICTIM, np.zeros(parties.layout.words, np.uint64), bytes(32))
    assert np.array_equal(difference[:stolen], own[:stolen])


def test_the_documented_limit_in_retry_mode_all_but_one_colluding_member_know_the_last_one_s_update():
    """The sum minus what the others know of themselves: a minimum cohort must hold two honest firms."""
    parties = with_random_updates("abcd")
    opened = parties.run()
    known = np.zeros(parties.layout.words, np.uint64)
    for name in "bcd":
        parties.contribute(name, known, bytes(32))
    assert likeness(parties, opened.total - known, "a") > 0.999


def test_any_single_honest_choice_of_votes_keeps_both_secrets_of_a_firm_apart():
    """For random survivor sets shown to random honest firms, and two colluders: no firm's self seed and escrow key
    both come into the server's hands."""
    chance = random.Random(7)
    for _ in range(10):
        parties = Parties(FIRMS, threshold=THRESHOLD).establish()
        joins = parties.join()
        uploads = parties.upload(joins)
        shown = [tuple(sorted(chance.sample(FIRMS, chance.randint(5, 7)))) for _ in range(2)]
        told = {name: chance.choice(shown) for name in "abcde"}
        self_shares, key_shares = {}, {}
        for names in set(shown):
            survivors = {name: uploads[name] for name in names}
            honest = [n for n in "abcde" if told[n] == names and n in names]
            speaking = {n: parties.copy(n) for n in "fg" if n in names} | {n: parties.sessions[n] for n in honest}
            votes = tuple(session.vote(parties.vote_request(survivors)) for session in speaking.values())
            for session in speaking.values():
                try:
                    release = session.release(ReleaseRequest(JOB, 1, 1, 1, (), votes))
                except RefusedError:
                    continue
                for dealer, _ in release.self_shares:
                    self_shares.setdefault(dealer, set()).add(release.firm)
                for dealer, _ in release.escrow_shares:
                    key_shares.setdefault(dealer, set()).add(release.firm)
        for victim in "abcde":
            colluding = {"f", "g"}
            has_seed = len(self_shares.get(victim, set()) | colluding) >= THRESHOLD
            has_key = len(key_shares.get(victim, set()) | colluding) >= THRESHOLD
            assert not (has_seed and has_key)


def test_the_documented_limit_in_threshold_mode_others_open_a_sum_below_a_firm_s_own_minimum():
    """What a firm uploaded, enough others can open: its own policy decides whether it uploads and votes, no more.
    What holds for all firms is what the job file says."""
    parties = Parties(FIRMS, threshold=THRESHOLD).establish()
    parties.sessions["g"].use_terms(replace(parties.terms, minimum_cohort=7))
    joins = parties.join()
    uploads = parties.upload(joins)
    survivors = {name: uploads[name] for name in "bcdefg"}
    with refused(RefusalCode.COHORT_TOO_SMALL):
        parties.sessions["g"].vote(parties.vote_request(survivors))
    request = parties.release_request(survivors, votes=parties.votes(survivors, who="bcdef"))
    server = parties.filled(joins, survivors)
    total = server.unmask({name: parties.sessions[name].release(request) for name in "bcdef"})
    assert np.allclose(parties.mean(total), parties.mean_of("bcdefg"), atol=1e-3)
    session = parties.sessions["g"]  # it believes the sum, for it is true, and notes it for its guard
    session.check_sum(parties.published(server, total), total, parties.layout, MODEL)
