"""Scripts of refusals: in each state of a firm, what a lying server may ask, the code that comes back, and the honest
request behind it, which is accepted: no refusal changes anything."""

from dataclasses import replace

from dure_protocols.messages import (
    AskKeys,
    Cohort,
    Invitation,
    ReleaseRequest,
    Roster,
    Snapshot,
    VoteRequest,
)
from dure_protocols.secagg.terms import names, names_digest, numbers, receipt_parts, vote_parts
from dure_protocols.wire import digest
from tests.vectors.make_forged import four_firms, rejoined, resigned, three_firms
from tests.vectors.make_refusals_later import later_cases
from tests.vectors.make_rounds import (
    Attempt,
    advertise,
    ciphertexts_for,
    contribution,
    encapsulate,
    encapsulations,
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
    yield from later_cases()


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
    refuse("with a join of another attempt", "replay", a, b, rejoined(THREE, c, attempt=2))
    refuse("with a firm on another model", "global-model", a, b, rejoined(THREE, c, model_hash=pattern("other model")))
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
