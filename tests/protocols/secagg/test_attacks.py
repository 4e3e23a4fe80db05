"""What a lying server tries in retry mode, each test named by the sentence it proves; controls show the same pipeline
working when nobody lies."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from dure_protocols.errors import MessageError, MisuseError, RefusalCode, RefusedError
from dure_protocols.messages import Cohort, Establish, Invitation, Roster
from dure_protocols.secagg.codec import decode_sum
from dure_protocols.secagg.firm import self_mask_key
from dure_protocols.secagg.keystream import apply_keystreams
from tests.protocols.secagg.parties import JOB, LAYOUT, MODEL, Parties, changed

OTHER = sha256(b"another model").digest()


@pytest.fixture
def parties():
    return Parties().establish()


def refused(code):
    class Context:
        def __enter__(self):
            self.raises = pytest.raises(RefusedError)
            self.info = self.raises.__enter__()

        def __exit__(self, *exc):
            assert self.raises.__exit__(*exc)
            assert self.info.value.code is code
            return True

    return Context()


def mean_of(words, members):
    return decode_sum(words, LAYOUT, members, 1.0, 1).mean


def test_control_when_everyone_releases_the_server_learns_exactly_the_sum(parties):
    joins = parties.join()
    uploads = parties.upload(joins)
    request = parties.request(uploads)
    releases = {name: session.release(request) for name, session in parties.sessions.items()}
    total = parties.attempt(joins, uploads).unmask(releases)
    assert np.allclose(mean_of(total, 4), (1 + 0.5 + 0.25 + 0.125) / 4, atol=1e-3)


def test_a_substituted_key_is_refused():
    parties = Parties()
    roster = parties.advertise()
    bad = tuple(replace(e, x25519=bytes(31) + b"\x09") if e.firm == "b" else e for e in roster.advertisements)
    with refused(RefusalCode.SIGNATURE):
        parties.sessions["a"].encapsulate(replace(roster, advertisements=bad))


def test_another_key_for_the_firm_itself_is_refused():
    parties = Parties()
    roster = parties.advertise()
    own = next(e for e in roster.advertisements if e.firm == "b")
    bad = tuple(replace(own, firm="a") if e.firm == "a" else e for e in roster.advertisements)
    with refused(RefusalCode.ROSTER):
        parties.sessions["a"].encapsulate(replace(roster, advertisements=bad))


@pytest.mark.parametrize("change", ["shrunk", "doubled", "stranger"])
def test_a_roster_that_is_not_the_job_s_firms_is_refused(change):
    parties = Parties()
    entries = parties.advertise().advertisements
    lists = {
        "shrunk": entries[:-1],
        "doubled": (*entries, entries[0]),
        "stranger": (*entries[:-1], replace(entries[-1], firm="e")),
    }
    with refused(RefusalCode.ROSTER):
        parties.sessions["a"].encapsulate(Roster(JOB, 1, lists[change]))


class _Weak:
    """What a colluding firm holds in place of an X25519 key."""

    def public_key(self):
        return self

    def public_bytes_raw(self):
        return bytes(32)


def test_a_firm_s_key_that_would_make_the_pair_secret_known_is_refused():
    """A colluding firm signs an X25519 point of small order: the shared secret would be zeros for everyone."""
    parties = Parties()
    roster = parties.advertise()
    entry = next(e for e in roster.advertisements if e.firm == "b")
    parts = (1).to_bytes(8, "big"), b"b", bytes(32), entry.mlkem
    weak = replace(entry, x25519=bytes(32), signature=parties.identities["b"].sign("dure advertisement", JOB, *parts))
    seen = replace(roster, advertisements=tuple(weak if e.firm == "b" else e for e in roster.advertisements))
    ephemeral = parties.sessions["b"]._ephemeral_keys
    parties.sessions["b"]._ephemeral_keys = lambda: (_Weak(), ephemeral()[1])
    ciphertexts = tuple(session.encapsulate(seen) for session in parties.sessions.values())
    with refused(RefusalCode.ROSTER):
        parties.sessions["a"].establish(Establish(JOB, 1, ciphertexts))


def test_keys_of_an_older_epoch_are_refused():
    parties = Parties()
    old = parties.advertise(1)
    new = parties.advertise(2)
    mixed = tuple(o if o.firm == "b" else n for o, n in zip(old.advertisements, new.advertisements, strict=True))
    with refused(RefusalCode.REPLAY):
        parties.sessions["a"].encapsulate(Roster(JOB, 2, mixed))


def test_an_epoch_is_not_begun_twice(parties):
    with refused(RefusalCode.REPLAY):
        parties.sessions["a"].advertise(1)


def test_ciphertexts_exchanged_on_the_way_are_refused():
    parties = Parties()
    request = parties.encapsulate(parties.advertise())
    first, *rest = request.ciphertexts
    swapped = replace(first, ciphertexts=tuple((n, rest[0].ciphertexts[0][1]) for n, _ in first.ciphertexts))
    with refused(RefusalCode.SIGNATURE):
        parties.sessions["d"].establish(replace(request, ciphertexts=(swapped, *rest)))
    with refused(RefusalCode.ROSTER):
        parties.sessions["a"].establish(replace(request, ciphertexts=(swapped, *rest)))


def test_firms_that_saw_different_rosters_do_not_establish():
    """The server restarts one firm's keys in between: its ciphertexts are signed over another roster."""
    parties = Parties()
    roster = parties.advertise()
    ciphertexts = [parties.sessions[n].encapsulate(roster) for n in "abc"]
    other = Parties("abcd")
    other.randomness(7)  # other keys for everyone
    late = other.fresh("d")
    advertisement = late.advertise(1)
    seen = (*roster.advertisements[:-1], advertisement)
    ciphertexts.append(late.encapsulate(Roster(JOB, 1, seen)))
    with refused(RefusalCode.SIGNATURE):
        parties.sessions["a"].establish(Establish(JOB, 1, tuple(ciphertexts)))


def test_different_models_to_different_firms_are_refused(parties):
    joins = (*parties.join(who="abc"), *parties.join(who="d", model=OTHER))
    with refused(RefusalCode.GLOBAL_MODEL):
        parties.sessions["a"].accept_cohort(Cohort(JOB, 1, 1, 1, joins))


def test_different_member_sets_to_different_firms_leave_noise_and_no_update(parties):
    """a, b, c mask for everyone; d is told that only c and d take part. What d adds cancels with nobody."""
    joins = parties.join()
    everyone = Cohort(JOB, 1, 1, 1, joins)
    vectors = {name: parties.vector(name, everyone) for name in "abc"}
    vectors["d"] = parties.vector("d", Cohort(JOB, 1, 1, 1, joins[2:]))
    total = sum(vectors.values())
    for session in parties.sessions.values():  # even with every self mask in hand
        key = self_mask_key(session._state.self_seed, session._state.context)
        apply_keystreams(total, subtract=[key])
    fields = total[: LAYOUT.packed_words].view(np.uint16).astype(float)
    assert np.std(fields) > 2**13  # uniform over 16 bits has 18918; the true sum's fields are equal
    assert not np.allclose(fields, fields[0])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda j: j[:1], RefusalCode.COHORT_TOO_SMALL),
        (lambda j: j[1:], RefusalCode.ROSTER),
        (lambda j: (*j, j[1]), RefusalCode.ROSTER),
        (lambda j: (*j[:-1], changed(j[-1], firm="stranger")), RefusalCode.ROSTER),
        (lambda j: (*j[:-1], changed(j[-1], signature=bytes(64))), RefusalCode.SIGNATURE),
        (lambda j: (*j[:-1], changed(j[-1], attempt=2)), RefusalCode.REPLAY),
        (lambda j: (*j[:-1], changed(j[-1], model_hash=OTHER)), RefusalCode.SIGNATURE),
    ],
    ids=["below the minimum", "without us", "one twice", "a stranger", "unsigned", "another attempt", "forged model"],
)
def test_a_cohort_that_did_not_join_as_shown_is_refused(parties, change, code):
    joins = parties.join()
    with refused(code):
        parties.sessions["a"].accept_cohort(Cohort(JOB, 1, 1, 1, change(joins)))


def test_a_replayed_join_of_an_earlier_round_is_refused(parties):
    parties.released(1)
    old = parties.join(2)
    new = parties.join(3)
    mixed = tuple(o if o.firm == "b" else n for o, n in zip(old, new, strict=True))
    with refused(RefusalCode.REPLAY):
        parties.sessions["a"].accept_cohort(Cohort(JOB, 1, 3, 1, mixed))


@pytest.mark.parametrize("place", [(1, 1), (0, 5), (1, 0)])
def test_a_replayed_round_or_attempt_is_refused(parties, place):
    parties.join(1, 1)
    with refused(RefusalCode.REPLAY):
        parties.join(*place)


def test_masks_of_one_attempt_are_made_once(parties):
    joins = parties.join()
    cohort = Cohort(JOB, 1, 1, 1, joins)
    parties.sessions["a"].accept_cohort(cohort)
    with refused(RefusalCode.ATTEMPT_SPENT):
        parties.sessions["a"].accept_cohort(cohort)


def test_a_second_vector_under_the_same_masks_is_never_signed(parties):
    parties.upload(parties.join())
    with pytest.raises(MisuseError):
        parties.sessions["a"].sign_upload(bytes(32))


def test_a_state_rolled_back_after_a_crash_still_knows_the_attempt_is_spent(parties):
    """What is stored before the upload says that the masks were used; the restored session will not make them again."""
    joins = parties.join()
    cohort = Cohort(JOB, 1, 1, 1, joins)
    parties.sessions["a"].accept_cohort(cohort)
    stored = parties.sessions["a"].snapshot()
    restored = parties.fresh("a")
    restored.restore(stored)
    with refused(RefusalCode.ATTEMPT_SPENT):
        restored.accept_cohort(cohort)


def test_a_snapshot_goes_on_exactly_where_it_stood(parties):
    joins = parties.join()
    uploads = parties.upload(joins)
    for name in "abcd":
        restored = parties.fresh(name)
        restored.restore(parties.sessions[name].snapshot())
        parties.sessions[name] = restored
    releases = {n: s.release(parties.request(uploads)) for n, s in parties.sessions.items()}
    total = parties.attempt(joins, uploads).unmask(releases)
    assert np.allclose(mean_of(total, 4), 1.875 / 4, atol=1e-3)


def test_a_snapshot_of_another_job_is_refused(parties):
    other = Parties(job=sha256(b"other job").digest())
    with refused(RefusalCode.STATE_LOST):
        other.sessions["a"].restore(parties.sessions["a"].snapshot())


def test_a_damaged_snapshot_is_refused(parties):
    snapshot = parties.sessions["a"].snapshot()
    with pytest.raises(MessageError):
        parties.fresh("a").restore(snapshot[:-1])


def test_no_release_before_every_member_has_uploaded(parties):
    joins = parties.join()
    uploads = parties.upload(joins, who="abc")
    with refused(RefusalCode.ROSTER):
        parties.sessions["a"].release(parties.request(uploads))


def test_a_forged_receipt_releases_nothing(parties):
    joins = parties.join()
    uploads = parties.upload(joins, who="abc")
    receipt, vector = uploads["c"]
    uploads["d"] = (changed(receipt, firm="d"), vector)
    with refused(RefusalCode.SIGNATURE):
        parties.sessions["a"].release(parties.request(uploads))


def test_another_vector_in_the_firm_s_own_name_releases_nothing(parties):
    joins = parties.join()
    uploads = parties.upload(joins)
    state = parties.sessions["a"]._state
    parts = state.context, b"a", bytes(32)
    forged = parties.identities["a"].sign("dure masked update", JOB, *parts)  # even if the signature were good
    uploads["a"] = (changed(uploads["a"][0], vector_digest=bytes(32), signature=forged), uploads["a"][1])
    with refused(RefusalCode.ROSTER):
        parties.sessions["a"].release(parties.request(uploads))


def test_a_second_release_is_refused_unless_it_is_the_first_again(parties):
    """An agent that dies before its answer is stored must be able to give it again, and nothing else."""
    joins = parties.join()
    uploads = parties.upload(joins)
    request = parties.request(uploads)
    first = parties.sessions["a"].release(request)
    restored = parties.fresh("a")
    restored.restore(parties.sessions["a"].snapshot())
    assert restored.release(request) == first
    for other in (replace(request, attempt=2), replace(request, round=2), replace(request, epoch=2)):
        with refused(RefusalCode.OUT_OF_ORDER):
            restored.release(other)
    with refused(RefusalCode.ROSTER):
        restored.release(replace(request, uploads=request.uploads[:-1]))


def test_a_released_round_is_not_joined_again(parties):
    parties.released(1)
    with refused(RefusalCode.ALREADY_RELEASED):
        parties.join(1, 2, who="a", model=OTHER)


def test_retry_mode_differencing_fails_because_one_released_is_never_in_another_attempt(parties):
    """The server tells a that all uploaded, and the others that a dropped out, to subtract the two sums."""
    joins = parties.join()
    uploads = parties.upload(joins)
    parties.sessions["a"].release(parties.request(uploads))
    with refused(RefusalCode.ALREADY_RELEASED):
        parties.join(1, 2, who="a")
    second = parties.join(1, 2, who="bcd")
    parties.upload(second, 1, 2)
    for name in "bcd":  # having gone on, they never open the first attempt
        with refused(RefusalCode.OUT_OF_ORDER):
            parties.sessions[name].release(parties.request(uploads))


def test_a_firm_contributes_once_on_one_global_model(parties):
    joins = parties.join()
    request = parties.request(parties.upload(joins))
    for session in parties.sessions.values():
        session.release(request)
    with refused(RefusalCode.ALREADY_RELEASED):
        parties.join(2, model=MODEL)


def test_a_new_epoch_does_not_make_a_firm_contribute_twice_on_one_model(parties):
    joins = parties.join()
    request = parties.request(parties.upload(joins))
    for session in parties.sessions.values():
        session.release(request)
    parties.establish(2)
    with refused(RefusalCode.ALREADY_RELEASED):
        parties.join(2, epoch=2, model=MODEL)


def test_the_guard_refuses_cohorts_that_differ_by_too_few_firms():
    parties = Parties(minimum_difference=2).establish()
    parties.released(1)
    joins = parties.join(2, who="abc")
    with refused(RefusalCode.COHORT_TOO_SMALL):
        parties.sessions["a"].accept_cohort(Cohort(JOB, 1, 2, 1, joins))
    joins = parties.join(2, 2, who="ab")
    parties.sessions["a"].accept_cohort(Cohort(JOB, 1, 2, 2, joins))


def test_a_release_of_another_attempt_does_not_unmask(parties):
    joins = parties.join()
    uploads = parties.upload(joins)
    request = parties.request(uploads)
    releases = {n: s.release(request) for n, s in parties.sessions.items()}
    releases["b"] = changed(releases["b"], context=bytes(32))
    with refused(RefusalCode.REPLAY):
        parties.attempt(joins, uploads).unmask(releases)


@pytest.mark.parametrize("wrong", ["twice", "short", "stranger"])
def test_the_server_names_a_firm_that_uploads_what_does_not_belong(parties, wrong):
    joins = parties.join()
    uploads = parties.upload(joins)
    server = parties.attempt(joins, {"a": uploads["a"]})
    receipt, vector = uploads["b"]
    if wrong == "twice":
        receipt, vector = uploads["a"]
    if wrong == "short":
        vector = vector[:-1]
    if wrong == "stranger":
        receipt = changed(receipt, firm="e")
    with pytest.raises(RefusedError, match=r"^(a|b|'e')"):
        server.add(receipt, vector, LAYOUT)


def test_a_rejoin_without_pair_keys_is_refused():
    parties = Parties()
    parties.advertise()
    with refused(RefusalCode.STATE_LOST):
        parties.sessions["a"].join(Invitation(JOB, 1, 1, 1, ()), MODEL, MODEL)


def test_a_published_sum_over_other_members_than_released_to_is_not_believed(parties):
    parties.released(1)
    session = parties.sessions["a"]
    assert session.may_have_published(1, ("d", "c", "b", "a"))
    assert not session.may_have_published(1, ("a", "b", "c"))
    assert not session.may_have_published(2, ("a", "b", "c", "d"))
    assert session.may_have_published(2, ("b", "c", "d"))


def test_a_job_that_is_over_leaves_no_key_and_takes_part_no_more(parties):
    parties.released(1)
    session = parties.sessions["a"]
    roots = [root for _, root in session._state.roots]
    session.retire()
    stored = session.snapshot()
    assert not any(root in stored for root in roots)
    restored = parties.fresh("a")
    restored.restore(stored)
    with refused(RefusalCode.OUT_OF_ORDER):
        restored.advertise(2)
    with refused(RefusalCode.OUT_OF_ORDER):
        restored.join(Invitation(JOB, 1, 2, 1, ()), OTHER, OTHER)


def test_secrets_show_in_no_repr(parties):
    joins = parties.join()
    keys = parties.sessions["a"].accept_cohort(Cohort(JOB, 1, 1, 1, joins))
    shown = (
        repr(parties.sessions["a"]) + repr(parties.sessions["a"]._state) + repr(keys) + repr(parties.identities["a"])
    )
    seed = parties.sessions["a"]._state.self_seed
    assert seed.hex() not in shown
    assert all(key.hex() not in shown and repr(key) not in shown for key in keys.add + keys.subtract)
