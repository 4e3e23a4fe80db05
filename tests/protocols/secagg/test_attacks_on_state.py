"""State rolled back or restored after a crash, damaged on disk, and what is left of it at the end."""

from hashlib import sha256

import numpy as np
import pytest

from dure_protocols.errors import MessageError, MisuseError, RefusalCode
from tests.protocols.secagg.parties import MODEL, OTHER_MODEL, Parties, refused

MODES = pytest.mark.parametrize(("names", "threshold"), [("abcd", None), ("abcde", 4)], ids=["retry", "threshold"])


@pytest.fixture
def parties():
    return Parties().establish()


def restart(parties, name):
    """The firm's process ends and begins again from what was stored."""
    restored = parties.fresh(name)
    restored.restore(parties.sessions[name].snapshot())
    parties.sessions[name] = restored


@MODES
def test_a_state_restored_after_a_crash_still_knows_that_the_attempt_is_spent(names, threshold):
    """What is stored before the upload says that the masks were used; the restored session will not make them again."""
    parties = Parties(names, threshold=threshold).establish()
    cohort = parties.cohort("a", parties.join())
    parties.sessions["a"].accept_cohort(cohort)
    restart(parties, "a")
    with refused(RefusalCode.ATTEMPT_SPENT):
        parties.sessions["a"].accept_cohort(cohort)
    with refused(RefusalCode.REPLAY):
        parties.join(who="a")


def test_a_state_rolled_back_before_its_join_opens_one_of_its_two_vectors_only():
    """It joins the same attempt again with another self seed and masks another vector: the first stays noise."""
    parties = Parties("abc").establish()
    before = parties.sessions["a"].snapshot()
    joins = parties.join()
    uploads = parties.upload(joins)
    rolled_back = parties.fresh("a")
    rolled_back.restore(before)
    parties.sessions["a"] = rolled_back
    joins = (rolled_back.join(parties.invitation(), MODEL, MODEL), *joins[1:])
    first = uploads["a"]
    uploads = parties.upload(joins, who="a") | {name: uploads[name] for name in "bc"}
    request = parties.release_request(uploads)
    releases = {name: session.release(request) for name, session in parties.sessions.items()}
    opened = parties.filled(joins, uploads).unmask(releases)
    assert np.allclose(parties.mean(opened), parties.mean_of("abc"), atol=1e-3)
    noise = opened - uploads["a"][1] + first[1]
    assert not np.any(noise[parties.layout.tail] == opened[parties.layout.tail])


def test_in_threshold_mode_a_state_rolled_back_before_its_join_deals_another_escrow():
    parties = Parties("abcde", threshold=4).establish()
    before = parties.sessions["a"].snapshot()
    first = parties.join()
    rolled_back = parties.fresh("a")
    rolled_back.restore(before)
    second = rolled_back.join(parties.invitation(), MODEL, MODEL)
    assert second.escrow != first[0].escrow
    assert second.join.escrow != first[0].join.escrow


@MODES
def test_the_documented_limit_a_state_rolled_back_between_join_and_upload_masks_two_vectors_alike(names, threshold):
    """Why protocol state must never come from a backup (docs/protocol.md, 8): the difference of the two is plain."""
    parties = Parties(names, threshold=threshold).establish()
    joins = parties.join()
    stored = parties.sessions["a"].snapshot()
    (_, first) = parties.upload(joins, who="a")["a"]
    rolled_back = parties.fresh("a")
    rolled_back.restore(stored)
    parties.sessions["a"], parties.updates["a"] = rolled_back, parties.updates["a"] / 2
    if threshold is not None:  # where the memory of models is not rolled back, it is refused at the upload
        with refused(RefusalCode.ALREADY_RELEASED):
            parties.upload(joins, who="a")
        return
    (_, second) = parties.upload(joins, who="a")["a"]
    difference = (first - second)[: parties.layout.packed_words]
    assert difference.max() < 2**62 or (-difference).max() < 2**62


@MODES
def test_a_release_remembered_outside_the_job_survives_a_state_that_was_rolled_back(names, threshold):
    parties = Parties(names, threshold=threshold).establish()
    before = parties.sessions["a"].snapshot()
    parties.run()
    rolled_back = parties.fresh("a")
    rolled_back.restore(before)
    with refused(RefusalCode.ALREADY_RELEASED):
        rolled_back.join(parties.invitation((1, 1, 2)), MODEL, MODEL)


@MODES
def test_a_snapshot_goes_on_exactly_where_it_stood_at_every_step(names, threshold):
    parties = Parties(names, threshold=threshold)
    roster = parties.advertise()
    for name in names:
        restart(parties, name)
    requests = parties.encapsulate(roster)
    for name in names:
        restart(parties, name)
    (parties.transcript,) = {parties.sessions[name].establish(requests[name]) for name in names}
    for name in names:
        restart(parties, name)
    joins = parties.join()
    for name in names:
        restart(parties, name)
    uploads = parties.upload(joins)
    for name in names:
        restart(parties, name)
    votes = parties.votes(uploads) if threshold else ()
    for name in names:
        restart(parties, name)
    request = parties.release_request(uploads, votes=votes)
    server = parties.filled(joins, uploads)
    total = server.unmask({name: parties.sessions[name].release(request) for name in names})
    for name in names:
        restart(parties, name)
        parties.sessions[name].check_sum(parties.published(server, total), total, parties.layout, MODEL)
    assert np.allclose(parties.mean(total), parties.mean_of(names), atol=1e-3)


def test_a_restored_upload_signs_no_second_vector(parties):
    parties.upload(parties.join())
    restart(parties, "a")
    with pytest.raises(MisuseError):
        parties.sessions["a"].sign_upload(sha256(b"another vector").digest())


def test_a_snapshot_of_another_job_is_refused(parties):
    other = Parties(job=sha256(b"other job").digest())
    with refused(RefusalCode.STATE_LOST):
        other.sessions["a"].restore(parties.sessions["a"].snapshot())


@MODES
def test_a_snapshot_cut_short_or_extended_is_refused(names, threshold):
    parties = Parties(names, threshold=threshold).establish()
    parties.upload(parties.join())
    stored = parties.sessions["a"].snapshot()
    for damaged in (stored[:-1], stored + b"\0", stored[: len(stored) // 2]):
        with pytest.raises(MessageError):
            parties.fresh("a").restore(damaged)


def test_a_session_is_of_the_identity_that_the_job_lists(parties):
    with refused(RefusalCode.ROSTER):
        type(parties.sessions["a"])("b", parties.identities["a"], parties.terms, parties.randomness, None)


def test_terms_of_another_job_are_not_taken_up(parties):
    with pytest.raises(MisuseError):
        parties.sessions["a"].use_terms(Parties(job=bytes(32)).terms)


@MODES
def test_a_job_that_is_over_leaves_no_key_and_takes_part_no_more(names, threshold):
    parties = Parties(names, threshold=threshold).establish()
    parties.run()
    session = parties.sessions["a"]
    state = session._state
    secrets = [root for _, root in state.roots] + [state.self_seed, state.epochs[-1].tag_key]
    secrets += [share for held in state.held for share in (held.self_share, held.escrow_share)]
    session.retire()
    stored = session.snapshot()
    assert not any(secret in stored for secret in secrets)
    restart(parties, "a")
    with refused(RefusalCode.OUT_OF_ORDER):
        parties.sessions["a"].advertise(2)
    with refused(RefusalCode.OUT_OF_ORDER):
        parties.join((1, 2, 1), who="a", model=OTHER_MODEL)


@MODES
def test_secrets_show_in_no_repr(names, threshold):
    parties = Parties(names, threshold=threshold).establish()
    uploads = parties.upload(parties.join())
    votes = parties.votes(uploads) if threshold else ()
    session = parties.sessions["a"]
    release = session.release(parties.release_request(uploads, votes=votes))
    shown = "".join(map(repr, [session, session._state, parties.identities["a"], release, *session._state.held]))
    state = session._state
    secrets = [state.self_seed, state.epochs[-1].tag_key, *(root for _, root in state.roots)]
    secrets += [share for held in state.held for share in (held.self_share, held.escrow_share)]
    assert not any(secret.hex() in shown or repr(secret)[2:-1] in shown for secret in secrets)


def test_mask_keys_show_in_no_repr(parties):
    keys = parties.sessions["a"].accept_cohort(parties.cohort("a", parties.join()))
    shown = repr(keys)
    for key in (*keys.add, *keys.subtract, keys.tag):
        assert key.hex() not in shown
        assert repr(key)[2:-1] not in shown
