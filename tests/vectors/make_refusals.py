"""Scripts of refusals: in each state of a firm, what a lying server may ask, the code that comes back, and the honest
request behind it, which is accepted: no refusal changes anything."""

from dataclasses import replace

import numpy as np

from dure_protocols.messages import (
    AskKeys,
    Cohort,
    Invitation,
    PublishedSum,
    ReleaseRequest,
    Roster,
    Snapshot,
    VoteRequest,
)
from dure_protocols.secagg.terms import join_parts, names, names_digest, numbers, receipt_parts, vote_parts
from dure_protocols.wire import digest
from tests.vectors.make_rounds import (
    LATE,
    LATE_SEED,
    RETRY,
    RETRY_SEED,
    Attempt,
    advertise,
    ciphertexts_for,
    contribution,
    encapsulate,
    encapsulations,
    handshake,
    model_of,
)
from tests.vectors.make_scene import FOUR, THREE, Scene, pattern

JOB = THREE.job


def cases():
    yield before_keys()
    yield rosters()
    yield ciphertexts()
    yield cohorts()
    yield releases()
    yield votes()
    yield deliveries()
    yield from differencing()
    yield statistics()
    yield sums()
    yield threshold_sums()
    yield snapshots()
    yield two_witnesses()
    yield over()


def three_firms():
    """What the others send is what they send in round 3 of the script of retry mode."""
    return Scene(THREE, ["keys", "three firms"], seed=RETRY_SEED, only=["firm-a"], bytes_of=["retry_round", RETRY])


def four_firms(*also, policy=None):
    """What the others send is what they send in round 1 of a script of threshold mode."""
    begun, of = ["keys", "four firms"], ["threshold_round", LATE]
    return Scene(FOUR, begun, policy, seed=LATE_SEED, only=["firm-a", *also], bytes_of=of)


def resigned(firms, firm, label, message, parts):
    """A message with a good signature of a firm that lies."""
    return replace(message, signature=firms.sign(firm, label, *parts))


def before_keys():
    scene = Scene(THREE)
    scene.refused("an invitation", "firm-a", Invitation(JOB, 1, 1, 1, ()), "state-lost", **model_of(1))
    scene.refused("a roster", "firm-a", Roster(JOB, 1, ()), "out-of-order")
    scene.refused("a cohort", "firm-a", Cohort(JOB, 1, 1, 1, ()), "out-of-order")
    scene.refused("a release request", "firm-a", ReleaseRequest(JOB, 1, 1, 1, ()), "out-of-order")
    offered = Invitation(JOB, 1, 1, 1, (), (Snapshot(pattern("snapshot"), ()),))
    scene.check_witnesses("a snapshot", "firm-a", offered, pattern("model").hex(), "state-lost")
    scene.refused("a request cut short", "firm-a", bytes([3]) + JOB, "malformed")
    scene.ask("keys for epoch 4", "firm-a", AskKeys(JOB, 4))
    scene.refused("the same epoch again", "firm-a", AskKeys(JOB, 4), "replay")
    scene.refused("an older epoch", "firm-a", AskKeys(JOB, 3), "replay")
    return scene.case("before an epoch's keys", "firm-a has no keys yet")


def rosters():
    scene = Scene(THREE, only=["firm-a"], bytes_of=["keys", "three firms"])
    roster = advertise(scene)
    c, b, a = roster.advertisements

    def refuse(name, code, *entries, epoch=1):
        given = {"encapsulations": encapsulations(THREE, "firm-a")}
        scene.refused(name, "firm-a", Roster(JOB, epoch, entries), code, **given)

    def signed(entry):
        parts = entry.epoch.to_bytes(8, "big"), entry.firm.encode(), entry.x25519, entry.mlkem
        return resigned(THREE, entry.firm, "dure advertisement", entry, parts)

    refuse("of an epoch that nobody began", "out-of-order", a, b, c, epoch=2)
    refuse("without one firm", "roster", a, b)
    refuse("with one firm twice", "roster", a, b, c, c)
    refuse("with a stranger in a firm's place", "roster", a, b, replace(c, firm="firm-d"))
    refuse("with another key for the firm itself", "roster", signed(replace(a, x25519=b.x25519)), b, c)
    refuse("with a key that its firm did not sign", "signature", a, replace(b, x25519=c.x25519), c)
    refuse("with one firm's entry of another epoch", "replay", a, signed(replace(b, epoch=2)), c)
    refuse("with an X25519 key of small order, signed", "roster", a, signed(replace(b, x25519=bytes(32))), c)
    encapsulate(scene, "firm-a", roster)
    refuse("once more", "out-of-order", a, b, c)
    return scene.case("a roster", "firm-a has advertised its keys and waits for the roster")


def ciphertexts():
    scene = Scene(THREE, only=["firm-c"], bytes_of=["keys", "three firms"])
    roster = advertise(scene)
    sent = [encapsulate(scene, name, roster) for name in THREE.names]
    honest = ciphertexts_for("firm-c", THREE, sent)
    b, a = honest.ciphertexts
    for_b = sent[0].ciphertexts[0]

    def refuse(name, code, *keys, epoch=1):
        scene.refused(name, "firm-c", replace(honest, epoch=epoch, ciphertexts=keys), code)

    def signed(key, roster_digest):
        parts = roster_digest, key.sender.encode(), key.receiver.encode(), key.ciphertext, key.tag_box
        return resigned(THREE, key.sender, "dure ciphertext", key, parts)

    refuse("of another epoch", "out-of-order", a, b, epoch=2)
    refuse("one is missing", "roster", a)
    refuse("one twice", "roster", a, b, b)
    refuse("one that is for another firm", "roster", for_b, b)
    refuse("exchanged on the way", "signature", replace(a, ciphertext=for_b.ciphertext), b)
    refuse("another tag box", "signature", replace(a, tag_box=for_b.tag_box), b)
    refuse("signed over another roster", "signature", a, signed(b, pattern("another roster")))
    roster_digest = _roster_digest(roster)
    refuse("a tag box that does not open, signed", "roster", signed(replace(a, tag_box=bytes(48)), roster_digest), b)
    scene.ask("honest", "firm-c", honest)
    refuse("once more", "out-of-order", a, b)
    return scene.case(
        "ciphertexts", "firm-c has accepted the roster and waits for the ciphertexts of firm-a and firm-b"
    )


def _roster_digest(roster):
    entries = sorted(roster.advertisements, key=lambda entry: entry.firm)
    keys = (part for entry in entries for part in (entry.x25519, entry.mlkem))
    return digest("dure roster", numbers(roster.epoch), names(entry.firm for entry in entries), *keys)


def _established(name):
    """The transcript in an Established of the handshake that a script begins with."""
    return handshake(name).reply(f"{name.names[0]} establishes").transcript


def _rejoined(firms, join, **changes):
    """A join with other fields, signed by its firm."""
    changed = replace(join, **changes)
    return resigned(firms, join.firm, "dure join", changed, join_parts(_established(firms), changed))


def cohorts():
    scene = three_firms()
    round_ = Attempt(scene, 3).join()
    c, b, a = round_.joins
    refused = scene.refused
    for name, place in {"an older round": (1, 1), "the same attempt": (3, 1), "an older attempt": (3, 0)}.items():
        refused(f"an invitation to {name}", "firm-a", Invitation(JOB, 1, *place, ()), "replay", **model_of(3))
    refused(
        "an invitation of an epoch without keys", "firm-a", Invitation(JOB, 2, 4, 1, ()), "state-lost", **model_of(4)
    )

    def refuse(name, code, *joins, place=(1, 3, 1), deliveries=()):
        given = contribution(THREE, "firm-a", 3)
        refused(name, "firm-a", Cohort(JOB, *place, joins, deliveries), code, contribution=given)

    refuse("of an attempt that the firm did not join", "out-of-order", a, b, c, place=(1, 3, 2))
    refuse("below the minimum", "cohort-too-small", a)
    refuse("without the firm itself", "roster", b, c)
    refuse("with one firm twice", "roster", a, b, b)
    refuse("with a stranger", "roster", a, b, replace(c, firm="firm-d"))
    refuse("with a join whose signature is another's", "signature", a, b, replace(c, signature=b.signature))
    refuse("with a join of another attempt", "replay", a, b, _rejoined(THREE, c, attempt=2))
    refuse("with a firm on another model", "global-model", a, b, _rejoined(THREE, c, model_hash=pattern("other model")))
    refuse("with a delivery in retry mode", "malformed", a, b, c, deliveries=(_delivery(),))
    round_.mask()
    refuse("once more", "attempt-spent", a, b, c)
    later = Invitation(JOB, 1, 4, 1, ())
    scene.ask("an invitation on a model that the firm uploaded on, but never released", "firm-a", later, **model_of(3))
    return scene.case("a cohort", "firm-a has joined attempt 1 of round 3")


def _delivery():
    four = four_firms()
    return Attempt(four, 1).join().deliveries("firm-a")[0]


def releases():
    scene = three_firms()
    round_ = Attempt(scene, 3).join()
    request = ReleaseRequest(JOB, *round_.place, ())
    scene.refused("before the firm uploaded", "firm-a", request, "out-of-order")
    round_.mask()
    honest = round_.release_request()
    c, b, a = honest.uploads

    def refuse(name, code, *uploads, place=(1, 3, 1)):
        scene.refused(name, "firm-a", ReleaseRequest(JOB, *place, uploads), code)

    def signed(receipt, **changes):
        changed = replace(receipt, **changes)
        return resigned(THREE, receipt.firm, "dure masked update", changed, receipt_parts(changed))

    refuse("of another attempt", "out-of-order", a, b, c, place=(1, 3, 2))
    refuse("before every member uploaded", "roster", a, b)
    refuse("one receipt twice", "roster", a, b, c, c)
    refuse("a receipt whose signature is another's", "signature", a, b, replace(c, signature=b.signature))
    refuse("a receipt of another context", "replay", a, b, signed(c, context=pattern("other context")))
    refuse("another vector in the firm's own name", "roster", signed(a, vector_digest=bytes(32)), b, c)
    round_.release()
    scene.ask("the same request again gets the same answer", "firm-a", honest)
    refuse("with fewer receipts", "roster", a, b)
    again = Invitation(JOB, 1, 3, 2, ())
    scene.refused("an invitation to the released round", "firm-a", again, "already-released", **model_of(9))
    later = Invitation(JOB, 1, 4, 1, ())
    scene.refused("an invitation on the released model", "firm-a", later, "already-released", **model_of(3))
    Attempt(scene, 4).join()
    refuse("the released attempt after the next join", "out-of-order", a, b, c)
    return scene.case("a release in retry mode", "firm-a goes through round 3 and joins round 4")


def votes():
    scene = four_firms("firm-d")
    job, round_ = FOUR.job, Attempt(scene, 1).join()
    scene.refused("a vote before the firm uploaded", "firm-a", VoteRequest(job, *round_.place, ()), "out-of-order")
    round_.mask("firm-a", "firm-b", "firm-c", "firm-d")
    all_four = round_.receipts
    a, b, c, d = all_four.values()

    def vote(name, code, *uploads, place=(1, 1, 1)):
        scene.refused(f"a vote: {name}", "firm-a", VoteRequest(job, *place, uploads), code)

    def release(name, code, *votes, place=(1, 1, 1)):
        scene.refused(f"a release: {name}", "firm-a", ReleaseRequest(job, *place, (), votes), code)

    def signed(vote, **changes):
        changed = replace(vote, **changes)
        return resigned(FOUR, vote.firm, "dure vote", changed, vote_parts(changed))

    vote("of another attempt", "out-of-order", a, b, c, place=(1, 1, 2))
    vote("without the firm itself", "roster", b, c, d)
    vote("one survivor twice", "roster", a, b, c, c)
    vote("fewer than the threshold", "cohort-too-small", a, b)
    vote("a receipt whose signature is another's", "signature", a, b, replace(c, signature=d.signature))
    changed = replace(c, complaints=("firm-a",))
    vote("a receipt with other complaints than signed", "signature", a, b, changed)
    other = replace(a, vector_digest=bytes(32))
    other = resigned(FOUR, "firm-a", "dure masked update", other, receipt_parts(other))
    vote("another vector in the firm's own name", "roster", other, b, c)
    release("before the firm voted", "out-of-order")
    round_.receipts = {name: all_four[name] for name in ("firm-a", "firm-b", "firm-c")}
    round_.vote()
    scene.ask("a vote: the same survivors get the same vote", "firm-a", round_.vote_request())
    vote("for another survivor set", "already-released", a, b, c, d)
    one, two, three = round_.votes.values()
    release("fewer votes than the threshold", "roster", one, two)
    release("one vote twice", "roster", one, two, two)
    stranger = signed(replace(three, firm="firm-d"))
    release("a vote of a firm that is no survivor", "roster", one, two, stranger)
    crossed = signed(three, survivors=names_digest(["firm-a", "firm-c", "firm-d"]))
    release("a vote for another survivor set", "replay", one, two, crossed)
    old = signed(three, context=pattern("other context"))
    release("a vote of another context", "replay", one, two, old)
    release("a vote whose signature is another's", "signature", one, two, replace(three, signature=two.signature))
    release("of another attempt", "out-of-order", one, two, three, place=(1, 1, 2))
    round_.release()
    vote("after the release", "out-of-order", a, b, c)
    again = Invitation(job, 1, 1, 2, ())
    scene.refused("an invitation to the released round", "firm-a", again, "already-released", **model_of(1))
    scene.ask("an invitation to a further attempt of the round", "firm-d", again, **model_of(1))
    later = Invitation(job, 1, 2, 1, ())
    scene.refused(
        "an invitation on a model that the firm uploaded on", "firm-d", later, "already-released", **model_of(1)
    )
    return scene.case(
        "votes and releases in threshold mode", "firm-a goes through round 1; firm-d is left out after its upload"
    )


def deliveries():
    scene = four_firms()
    round_ = Attempt(scene, 1).join()
    honest = round_.cohort("firm-a")
    d, c, b = honest.deliveries
    given = {"contribution": contribution(FOUR, "firm-a", 1)}
    for name, kept in {"one is missing": (b, c), "one twice": (b, c, d, d), "none": ()}.items():
        scene.refused(name, "firm-a", replace(honest, deliveries=kept), "roster", **given)
    scene.ask("two exchanged: named in the receipt", "firm-a", _exchanged(honest), **given)
    scene.refused("once more", "firm-a", honest, "attempt-spent", **given)
    return scene.case(
        "deliveries in threshold mode", "firm-a has joined; what the others escrowed for it comes with the cohort"
    )


def _exchanged(cohort):
    """Two dealers' shares, each under the other's name."""
    d, c, b = cohort.deliveries
    return replace(cohort, deliveries=(replace(b, shares=c.shares), replace(c, shares=b.shares), d))


def differencing():
    scene = four_firms(policy={"minimum_difference": 2})
    Attempt(scene, 1).join().mask().vote().release()
    second = Attempt(scene, 2).join("firm-a", "firm-b", "firm-c")
    given = {"contribution": contribution(FOUR, "firm-a", 2)}
    scene.refused("a cohort without one firm", "firm-a", second.cohort("firm-a"), "cohort-too-small", **given)
    third = Attempt(scene, 3).join().mask()
    third.receipts.pop("firm-d")
    scene.refused("survivors without one firm", "firm-a", third.vote_request(), "cohort-too-small")
    yield scene.case(
        "cohorts that differ by one firm", "the firms' policy asks for a difference of two; round 1 was over all four"
    )
    scene = four_firms(policy={"minimum_difference": 2})
    first = (
        Attempt(scene, 1).join().mask().vote("firm-b", "firm-c", "firm-d").release("firm-b", "firm-c", "firm-d").open()
    )
    first.checked_by("firm-a")
    second = Attempt(scene, 2).join("firm-a", "firm-b", "firm-c")
    scene.refused("a cohort without one firm", "firm-a", second.cohort("firm-a"), "cohort-too-small", **given)
    yield scene.case(
        "a sum that the others opened counts as released",
        "firm-a uploaded in round 1 and did not vote; the sum over all four that it checked is one of its own",
    )
    yield from _combinations()


def _combinations():
    scene = Scene(THREE, ["keys", "three firms"], {"minimum_difference": 3}, seed="pairs", only=["firm-a"])
    Attempt(scene, 1).join("firm-a", "firm-b").mask().release()
    second = Attempt(scene, 2).join("firm-a", "firm-c")
    given = {"contribution": contribution(THREE, "firm-a", 2)}
    scene.refused("with another firm instead", "firm-a", second.cohort("firm-a"), "cohort-too-small", **given)
    yield scene.case(
        "cohorts that differ by two firms", "the policy asks for three; round 1 was over firm-a and firm-b"
    )
    policy = {"minimum_difference": 2, "threshold": None}
    scene = Scene(FOUR, ["keys", "four firms"], policy, seed="combinations", only=["firm-a"])
    for round_, other in enumerate(("firm-b", "firm-c", "firm-d"), start=1):
        Attempt(scene, round_).join("firm-a", other).mask().release()
    last = Attempt(scene, 4).join()
    given = {"contribution": contribution(FOUR, "firm-a", 4)}
    scene.refused("all four", "firm-a", last.cohort("firm-a"), "cohort-too-small", **given)
    yield scene.case(
        "cohorts whose combination is one firm",
        "firm-a released with each other firm alone, in retry mode: those three sums less one over all four are two of"
        " its own",
    )


def statistics():
    scene = three_firms()
    Attempt(scene, 0).join().mask().release()
    Attempt(scene, 1).join("firm-a", "firm-b").mask()
    return scene.case(
        "statistics do not bind updates",
        "round 0 was over all three firms; a cohort of two in round 1 is accepted, because the guard counts statistics"
        " and updates apart",
    )


def sums():
    scene = three_firms()
    round_ = Attempt(scene, 3).join().mask().release().open()
    published, vector = round_.published, bytes.fromhex(round_.vector)

    def refuse(name, code, firm="firm-a", published=published, changed=vector, **model):
        round_.check(name, firm, code, published, changed.hex(), **model)

    def without(*members):
        return replace(published, cohort=members, members=members)

    refuse("of an epoch whose tag key the firm has not", "snapshot-needed", published=replace(published, epoch=2))
    refuse(
        "over part of the cohort, in retry mode", "roster", published=replace(published, members=("firm-a", "firm-b"))
    )
    refuse("over other members than the firm released to", "roster", published=without("firm-a", "firm-b"))
    refuse("over a stranger", "roster", published=without("firm-a", "firm-b", "firm-d"))
    refuse("over one member twice", "roster", published=without("firm-a", "firm-b", "firm-c", "firm-c"))
    refuse("over one member", "roster", published=without("firm-b"))
    later = replace(published, round=4)
    refuse("of a round in which the firm sent nothing, with it among the members", "roster", published=later)
    for name, at in {
        "in a field": 0,
        "in the count": 16,
        "in the number of firms": 24,
        "in a metric": 32,
        "in the tag": 40,
    }.items():
        changed = vector[:at] + bytes([vector[at] ^ 1]) + vector[at + 1 :]
        refuse(f"with another bit {name}", "false-sum", changed=changed)
    words = np.frombuffer(vector, "<u8")
    refuse("doubled: the tag fits, the number of firms does not", "false-sum", changed=(2 * words).tobytes())
    refuse("of another attempt", "false-sum", published=replace(published, attempt=2))
    other = pattern("other model").hex()
    refuse("that firms on another model made", "false-sum", model_hash=other)
    round_.checked_by("firm-a")
    return scene.case(
        "a published sum", "all three firms have released in round 3, and firm-a checks what is published"
    )


def threshold_sums():
    scene = four_firms("firm-d")
    round_ = Attempt(scene, 1).join().mask("firm-a", "firm-b", "firm-c").vote().release().open()

    def refuse(name, firm, code, *members):
        round_.check(name, firm, code, replace(round_.published, members=members))

    refuse("over fewer than the firm released to", "firm-a", "roster", "firm-a", "firm-b")
    refuse("over all, where the firm released to three", "firm-a", "roster", *FOUR.names)
    refuse("with the vector of a firm that sent none", "firm-d", "roster", "firm-a", "firm-b", "firm-d")
    refuse("over fewer than its vectors", "firm-d", "false-sum", "firm-a", "firm-b")
    refuse("over a stranger", "firm-d", "roster", "firm-a", "firm-b", "firm-e")
    round_.checked_by("firm-a", "firm-d")
    later = Invitation(FOUR.job, 1, 2, 1, ())
    scene.ask("an invitation on the model that others contributed on", "firm-d", later, **model_of(1))
    scene.refused(
        "an invitation on the model that the firm released on", "firm-a", later, "already-released", **model_of(1)
    )
    shows = "firm-a released to three in round 1; firm-d joined and sent nothing; both check what is published"
    return scene.case("a published sum in threshold mode", shows)


def snapshots():
    scene = four_firms()
    round_ = Attempt(scene, 1).join("firm-b", "firm-c", "firm-d")
    d, c, b = round_.joins
    model = bytes.fromhex(round_.model["model_hash"])

    def offer(*witnesses):
        return Invitation(FOUR.job, 1, 1, 1, (), (Snapshot(pattern("snapshot"), witnesses),))

    check = scene.check_witnesses
    hash_ = model.hex()
    check("too few witnesses", "firm-a", offer(b, c), hash_, "global-model")
    check("one witness twice", "firm-a", offer(b, c, c), hash_, "global-model")
    check("witnesses of another model", "firm-a", offer(b, c, d), pattern("other model").hex(), "global-model")
    other = replace(d, model_hash=pattern("other model"))
    signed = resigned(FOUR, "firm-d", "dure join", other, join_parts(_established(FOUR), other))
    check("one witness on another model", "firm-a", offer(b, c, signed), hash_, "global-model")
    check(
        "a witness whose signature is another's",
        "firm-a",
        offer(b, c, replace(d, signature=b.signature)),
        hash_,
        "signature",
    )
    old = _rejoined(FOUR, d, attempt=2)
    check("a witness of another attempt", "firm-a", offer(b, c, old), hash_, "replay")
    check("a witness that is no firm of the job", "firm-a", offer(b, c, replace(d, firm="firm-e")), hash_, "roster")
    check("enough witnesses", "firm-a", offer(b, c, d), hash_)
    return scene.case(
        "a snapshot's witnesses", "firm-a lost its model; the joins of three others vouch for the one offered"
    )


def two_witnesses():
    scene = three_firms()
    round_ = Attempt(scene, 3).join("firm-b", "firm-c")
    offered = Invitation(JOB, *round_.place, (), (Snapshot(pattern("snapshot"), round_.joins),))
    scene.check_witnesses("both others", "firm-a", offered, round_.model["model_hash"])
    one = replace(offered, snapshot=(Snapshot(pattern("snapshot"), round_.joins[:1]),))
    scene.check_witnesses("one other", "firm-a", one, round_.model["model_hash"], "global-model")
    return scene.case(
        "a snapshot's witnesses among three firms", "all other firms must vouch where they are fewer than three"
    )


def over():
    scene = three_firms()
    Attempt(scene, 3).join().mask().release()
    scene.retire("the job ends", "firm-a")
    scene.refused("keys for a new epoch", "firm-a", AskKeys(JOB, 2), "out-of-order")
    scene.refused("an invitation", "firm-a", Invitation(JOB, 1, 4, 1, ()), "out-of-order", **model_of(4))
    published = PublishedSum(1, 3, 1, tuple(THREE.names), tuple(THREE.names), pattern("sum"))
    layout = {"parameters": 0, "bits": 12, "max_members": 3, "exact": 0}
    scene.check_sum("a sum", "firm-a", published, bytes(32).hex(), layout, model_of(3), "snapshot-needed")
    return scene.case("a job that is over", "firm-a has answered Finished; its keys are erased")
