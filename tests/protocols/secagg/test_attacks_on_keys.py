"""What a lying server, or a firm with it, tries while firms agree on keys."""

from dataclasses import replace

import pytest

from dure_protocols.errors import RefusalCode
from dure_protocols.messages import Establish, Roster
from dure_protocols.secagg.handshake import (
    _NONCE,
    _box,
    _key_parts,
    _roster_digest,
)  # colluding firms run this code, too
from dure_protocols.secagg.keystream import derive
from dure_protocols.secagg.server import establish_for
from tests.protocols.secagg.parties import FIRST, JOB, Parties, refused


def with_entry(roster, firm, **fields):
    """A roster in which one firm's entry is another; its signature is the old one unless given."""
    entries = tuple(replace(e, **fields) if e.firm == firm else e for e in roster.advertisements)
    return replace(roster, advertisements=entries)


def signed_entry(parties, roster, firm, **fields):
    """A roster in which a colluding firm itself signs other keys than it made."""
    entry = replace(next(e for e in roster.advertisements if e.firm == firm), **fields)
    parts = entry.epoch.to_bytes(8, "big"), firm.encode(), entry.x25519, entry.mlkem
    signature = parties.identities[firm].sign("dure advertisement", JOB, *parts)
    return with_entry(roster, firm, **fields, signature=signature)


@pytest.mark.parametrize("fields", [{"x25519": bytes(31) + b"\x09"}, {"mlkem": bytes(1184)}], ids=["x25519", "mlkem"])
def test_a_substituted_key_is_refused(fields):
    parties = Parties()
    roster = with_entry(parties.advertise(), "b", **fields)
    with refused(RefusalCode.SIGNATURE):
        parties.sessions["a"].encapsulate(roster)


def test_another_key_for_the_firm_itself_is_refused():
    parties = Parties()
    roster = parties.advertise()
    own = next(e for e in roster.advertisements if e.firm == "b")
    with refused(RefusalCode.ROSTER):
        parties.sessions["a"].encapsulate(with_entry(roster, "a", x25519=own.x25519, mlkem=own.mlkem))


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


def test_a_firm_s_key_that_would_make_the_pair_secret_known_is_refused():
    """A colluding firm signs an X25519 point of small order: the shared secret would be zeros for everyone."""
    parties = Parties()
    roster = signed_entry(parties, parties.advertise(), "d", x25519=bytes(32))
    with refused(RefusalCode.ROSTER, "no honest firm has"):
        parties.sessions["a"].encapsulate(roster)


def test_a_firm_that_signs_a_malformed_kem_key_is_named():
    parties = Parties()
    roster = signed_entry(parties, parties.advertise(), "d", mlkem=b"\xff" * 1184)
    with refused(RefusalCode.ROSTER, "d advertised a malformed"):
        parties.sessions["a"].encapsulate(roster)


def test_keys_of_an_older_epoch_are_refused():
    parties = Parties()
    old = parties.advertise(1)
    new = parties.advertise(2)
    mixed = tuple(o if o.firm == "b" else n for o, n in zip(old.advertisements, new.advertisements, strict=True))
    with refused(RefusalCode.REPLAY):
        parties.sessions["a"].encapsulate(Roster(JOB, 2, mixed))


def test_keys_of_an_older_epoch_under_a_new_number_are_refused():
    parties = Parties()
    old = parties.advertise(1)
    new = parties.advertise(2)
    mixed = tuple(
        replace(o, epoch=2) if o.firm == "b" else n for o, n in zip(old.advertisements, new.advertisements, strict=True)
    )
    with refused(RefusalCode.SIGNATURE):
        parties.sessions["a"].encapsulate(Roster(JOB, 2, mixed))


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_is_not_begun_twice(epoch):
    parties = Parties().establish()
    with refused(RefusalCode.REPLAY):
        parties.sessions["a"].advertise(epoch)


def test_a_roster_is_accepted_once():
    """A second one could have the firm encapsulate to other keys."""
    parties = Parties()
    roster = parties.advertise()
    parties.sessions["a"].encapsulate(roster)
    with refused(RefusalCode.OUT_OF_ORDER):
        parties.sessions["a"].encapsulate(roster)


def requests_to_establish(parties):
    return parties.encapsulate(parties.advertise())


def test_ciphertexts_exchanged_on_the_way_are_refused():
    parties = Parties()
    requests = requests_to_establish(parties)
    first, second, *rest = requests["d"].ciphertexts
    swapped = replace(first, ciphertext=second.ciphertext), replace(second, ciphertext=first.ciphertext), *rest
    with refused(RefusalCode.SIGNATURE):
        parties.sessions["d"].establish(replace(requests["d"], ciphertexts=swapped))


def test_a_ciphertext_for_another_firm_is_refused():
    parties = Parties()
    requests = requests_to_establish(parties)
    with refused(RefusalCode.ROSTER):
        parties.sessions["d"].establish(replace(requests["c"], ciphertexts=requests["d"].ciphertexts[:2]))
    mixed = requests["c"].ciphertexts[0], *requests["d"].ciphertexts[1:]
    with refused(RefusalCode.ROSTER, "is for c"):
        parties.sessions["d"].establish(replace(requests["d"], ciphertexts=mixed))


def test_a_tag_box_exchanged_or_emptied_on_the_way_is_refused():
    """The server wants a firm that does not know the tag key, or knows another."""
    parties = Parties()
    requests = requests_to_establish(parties)
    first, *rest = requests["d"].ciphertexts
    for box in (b"", requests["c"].ciphertexts[0].tag_box):
        with refused(RefusalCode.SIGNATURE):
            parties.sessions["d"].establish(replace(requests["d"], ciphertexts=(replace(first, tag_box=box), *rest)))


def resealed(parties, key, **fields):
    """A colluding sender's own other ciphertext, well signed."""
    other = replace(key, **fields)
    roster = _roster_digest(parties.sessions[key.sender]._state.handshake)
    signature = parties.identities[key.sender].sign("dure ciphertext", JOB, *_key_parts(roster, other))
    return replace(other, signature=signature)


def test_a_first_firm_that_seals_no_tag_key_for_a_firm_is_named():
    parties = Parties()
    requests = requests_to_establish(parties)
    first, *rest = requests["d"].ciphertexts
    empty = resealed(parties, first, tag_box=bytes(len(first.tag_box)))
    with refused(RefusalCode.ROSTER, "a sealed no tag key"):
        parties.sessions["d"].establish(replace(requests["d"], ciphertexts=(empty, *rest)))


def test_firms_that_were_given_different_tag_keys_do_not_mask_together():
    """The first firm colludes and seals another tag key for d: transcripts differ, and no join of d convinces a."""
    parties = Parties()
    roster = parties.advertise()
    sent = [parties.sessions[name].encapsulate(roster) for name in "abcd"]
    first = parties.sessions["a"]
    key = next(key for key in sent[0].ciphertexts if key.receiver == "d")
    other = _sealed_again(first, key)
    requests = {name: establish_for(name, JOB, 1, sent) for name in "abcd"}
    forged = tuple(other if k.sender == "a" else k for k in requests["d"].ciphertexts)
    transcripts = {
        name: parties.sessions[name].establish(
            replace(requests[name], ciphertexts=forged) if name == "d" else requests[name]
        )
        for name in "abcd"
    }
    assert transcripts["d"] != transcripts["b"] == transcripts["c"]
    parties.transcript = transcripts["b"]
    joins = parties.join()
    with refused(RefusalCode.SIGNATURE):
        parties.sessions["b"].accept_cohort(parties.cohort("b", joins))


def _sealed_again(session, key):
    """The same ciphertext with another tag key in its box, as only its sender can make it."""
    state = session._state.handshake
    secret = dict(state.secrets)[key.receiver]
    roster = _roster_digest(state)
    root = session._handshake._root(state, roster, key, secret)
    box = _box(derive(root, "dure tag key box")).encrypt(_NONCE, b"another tag key of thirty-two by", None)
    other = replace(key, tag_box=box)
    return replace(other, signature=session._sign("dure ciphertext", *_key_parts(roster, other)))


def test_firms_that_saw_different_rosters_do_not_establish():
    """The server restarts one firm's keys in between: its ciphertexts are signed over another roster."""
    parties = Parties()
    roster = parties.advertise()
    other = Parties(seed="other keys for everyone")
    late = other.sessions["a"].advertise(1)
    sent = [parties.sessions[name].encapsulate(roster) for name in "bcd"]
    seen = replace(roster, advertisements=(late, *roster.advertisements[1:]))
    sent.append(other.sessions["a"].encapsulate(seen))
    with refused(RefusalCode.SIGNATURE):
        parties.sessions["d"].establish(establish_for("d", JOB, 1, sent))


def test_ciphertexts_of_another_epoch_do_not_establish():
    parties = Parties()
    old = requests_to_establish(parties)
    new = parties.encapsulate(parties.advertise(2))
    with refused(RefusalCode.SIGNATURE):
        parties.sessions["d"].establish(replace(new["d"], ciphertexts=old["d"].ciphertexts))
    with refused(RefusalCode.OUT_OF_ORDER):
        parties.sessions["d"].establish(old["d"])


def test_ephemeral_keys_are_erased_when_pair_keys_stand():
    parties = Parties()
    roster = parties.advertise()
    ephemeral = {name: session._state.handshake.ephemeral for name, session in parties.sessions.items()}
    requests = parties.encapsulate(roster)
    for name, session in parties.sessions.items():
        assert ephemeral[name] in session.snapshot()
        session.establish(requests[name])
        assert ephemeral[name][:32] not in session.snapshot()
        assert ephemeral[name][32:] not in session.snapshot()


def test_every_two_firms_hold_one_root_and_nobody_else_holds_it():
    parties = Parties().establish()
    roots = {name: dict(session._state.roots) for name, session in parties.sessions.items()}
    for one in "abcd":
        for other in "abcd":
            if one < other:
                assert roots[one][other] == roots[other][one]
    assert len({root for of in roots.values() for root in of.values()}) == 6
    assert len({session._state.epochs[-1].tag_key for session in parties.sessions.values()}) == 1


def test_a_join_without_pair_keys_is_refused():
    parties = Parties()
    parties.advertise()
    with refused(RefusalCode.STATE_LOST):
        parties.join(FIRST, who="a")


def test_roots_of_a_round_are_gone_in_the_next():
    parties = Parties().establish()
    parties.run()
    before = [root for _, root in parties.sessions["a"]._state.roots]
    parties.join((1, 2, 1), model=bytes(32))
    stored = parties.sessions["a"].snapshot()
    assert not any(root in stored for root in before)


def test_establish_requests_of_another_shape_are_refused():
    parties = Parties()
    requests = requests_to_establish(parties)
    keys = requests["d"].ciphertexts
    for listed in (keys[:-1], (*keys, keys[0]), ()):
        with refused(RefusalCode.ROSTER):
            parties.sessions["d"].establish(Establish(JOB, 1, listed))
