"""Scripts of refusals behind a first sum: cohorts that show too much, false sums, snapshots, a job that is over."""

from dataclasses import replace

import numpy as np

from dure_protocols.messages import AskKeys, Invitation, PublishedSum, Snapshot
from dure_protocols.secagg.terms import join_parts
from tests.vectors.make_forged import established, four_firms, rejoined, resigned, three_firms
from tests.vectors.make_rounds import Attempt, contribution, model_of
from tests.vectors.make_scene import FOUR, THREE, Scene, pattern

JOB = THREE.job


def later_cases():
    yield from differencing()
    yield statistics()
    yield sums()
    yield threshold_sums()
    yield snapshots()
    yield two_witnesses()
    yield over()


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
    signed = resigned(FOUR, "firm-d", "dure join", other, join_parts(established(FOUR), other))
    check("one witness on another model", "firm-a", offer(b, c, signed), hash_, "global-model")
    check(
        "a witness whose signature is another's",
        "firm-a",
        offer(b, c, replace(d, signature=b.signature)),
        hash_,
        "signature",
    )
    old = rejoined(FOUR, d, attempt=2)
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
