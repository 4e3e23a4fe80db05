"""Cases of numbers: masks, shares, the codec, tags, and the global model."""

from dataclasses import replace

import numpy as np

from dure_protocols import messages
from dure_protocols.global_state import GlobalState, layout_of, model_digest
from dure_protocols.job import JobFile
from dure_protocols.secagg.codec import Contribution, VectorLayout, add_contribution
from dure_protocols.secagg.escrow import deal, escrow_digest, open_delivery
from dure_protocols.secagg.rows import tag_of
from dure_protocols.secagg.shamir import PRIME, split
from dure_protocols.secagg.tags import TagKey
from dure_protocols.secagg.tags import split as split_tag
from dure_protocols.wire import Writer
from tests.vectors.make_bytes import case
from tests.vectors.make_scene import FOUR, Recording, pattern, update
from tests.vectors.project_side import terms_of


def _hex(label, length=32):
    return pattern(label, length).hex()


def mask_cases():
    context = {
        "job_digest": _hex("job"),
        "transcript": _hex("transcript"),
        "place": [2, 3, 4],
        "cohort": ["firm-c", "firm-a", "firm-b"],
        "model_hash": _hex("model"),
    }
    keys = {"root": _hex("root"), "dealer": "firm-a", "self_seed": _hex("seed"), "tag_key": _hex("tag key")}
    for name, ratchets, changes in (
        ("the keys of an attempt in round 3", 3, {}),
        ("in round 0 the root is as it was established", 0, {"place": [2, 0, 1]}),
        ("a smaller cohort has other keys", 3, {"cohort": ["firm-a", "firm-b"]}),
    ):
        yield case(name, "attempt keys", keys | {"ratchets": ratchets, "context": context | changes})
    one, two, three = (_hex(f"mask {number}") for number in range(3))
    zeros, ones = bytes(40).hex(), (b"\xff" * 40).hex()
    yield case("masks added and subtracted", "masks", {"vector": zeros, "add": [one, two], "subtract": [three]})
    yield case("words overflow modulo 2^64", "masks", {"vector": ones, "add": [one], "subtract": []})
    both = {"vector": ones, "add": [one], "subtract": [one]}
    yield case("what is added and subtracted cancels", "masks", both, {"vector": ones})


def sharing_cases():
    secret = {"secret": _hex("secret"), "randomness": _hex("coefficients", 96)}
    inputs = secret | {"threshold": 3, "points": [1, 2, 4, 5]}
    yield case("split: three of four", "split", inputs)
    large = {"secret": "ff" * 32, "randomness": "ff" * 48, "threshold": 2, "points": [1, 256]}
    yield case("split: coefficients are reduced modulo P", "split", large)
    shares = split(pattern("secret"), 3, [1, 2, 4, 5], Recording("coefficients"))
    given = {str(point): share.hex() for point, share in zip((1, 2, 4, 5), shares, strict=True)}
    expected = {"secret": _hex("secret")}
    without_first = {point: share for point, share in given.items() if point != "1"}
    yield case("combine: the three lowest points", "combine", {"threshold": 3, "shares": given}, expected)
    yield case("combine: any other three", "combine", {"threshold": 3, "shares": without_first}, expected)
    spoiled = {"5": "00" * 33} | dict(reversed(given.items())) | {"5": "00" * 33}
    yield case(
        "combine: a wrong share at the highest point plays no part",
        "combine",
        {"threshold": 3, "shares": spoiled},
        expected,
    )
    refused = {"refusal": "malformed"}
    few = {point: given[point] for point in ("1", "5")}
    yield case("combine: two are too few", "combine", {"threshold": 3, "shares": few}, refused)
    outside = given | {"1": PRIME.to_bytes(33, "big").hex()}
    yield case("combine: P itself is no share", "combine", {"threshold": 3, "shares": outside}, refused)
    short = given | {"1": given["1"][2:]}
    yield case("combine: a share of 32 bytes", "combine", {"threshold": 3, "shares": short}, refused)
    beyond = {str(point): (PRIME - 1).to_bytes(33, "big").hex() for point in (1, 2)}
    yield case("combine: a value that is no secret of 32 bytes", "combine", {"threshold": 2, "shares": beyond}, refused)
    yield from _escrow_cases()


NAMES = FOUR.names
PEERS = NAMES[1:]


def _dealt(dealer="firm-a", threshold=3):
    peers = [name for name in NAMES if name != dealer]
    pairs = {peer: "attempt key " + " ".join(sorted((dealer, peer))) for peer in peers}
    attempt_keys = {peer: pattern(label) for peer, label in pairs.items()}
    box_keys = {peer: pattern(f"box key {dealer} {peer}") for peer in peers}
    draw = Recording(f"escrow of {dealer}")
    made = deal(terms_of(FOUR.terms), threshold, pattern(f"self seed of {dealer}"), attempt_keys, box_keys, draw)
    inputs = {
        "firms": NAMES,
        "threshold": threshold,
        "dealer": dealer,
        "self_seed": _hex(f"self seed of {dealer}"),
        "attempt_keys": {peer: key.hex() for peer, key in attempt_keys.items()},
        "box_keys": {peer: key.hex() for peer, key in box_keys.items()},
        "randomness": draw.drawn.hex(),
    }
    return made, inputs


def _written(value):
    writer = Writer()
    value.write(writer)
    return bytes(writer).hex()


def _escrow_cases():
    made, inputs = _dealt()
    yield case("escrow: what firm-a leaves with three others", "escrow", inputs)
    honest = messages.Delivery("firm-a", made.key_commitments[1], made.shares[1])
    shares = honest.shares
    box, commitment = bytes([shares.box[0] ^ 1]) + shares.box[1:], pattern("other")
    keys = {"attempt_key": inputs["attempt_keys"]["firm-c"], "box_key": inputs["box_keys"]["firm-c"]}
    wrong = {
        "its box has another byte": replace(honest, shares=replace(shares, box=box)),
        "it is for another firm": replace(honest, shares=made.shares[0]),
        "it commits to another attempt key": replace(honest, key_commitment=made.key_commitments[0]),
        "it commits to another share of the self seed": replace(
            honest, shares=replace(shares, self_commitment=commitment)
        ),
        "it commits to another share of the escrow key": replace(
            honest, shares=replace(shares, escrow_commitment=commitment)
        ),
    }
    opened = {"receiver": "firm-c"} | keys
    yield case("delivery: firm-c opens its shares", "delivery", opened | {"delivery": _written(honest)})
    for name, delivery in wrong.items():
        yield case(f"delivery: none, {name}", "delivery", opened | {"delivery": _written(delivery)}, {"held": None})
    yield from _recovery_cases(made, inputs)
    yield from _check_cases()
    escrows = {firm: _dealt(firm)[0] for firm in NAMES[:3]}
    agree = {firm: _written(escrow) for firm, escrow in escrows.items()}
    plain = {"firms": NAMES, "threshold": 3}
    yield case("conflicts: none", "conflicts", plain | {"escrows": agree}, {"conflicts": [], "left_out": []})
    honest, other = escrows["firm-b"].key_commitments, pattern("x")
    for name, keys, pairs, left_out in (
        ("one of two lies, and nobody knows which", (other, *honest[1:]), "a", ["firm-a", "firm-b"]),
        ("who disagrees with two others", (other, other, honest[2]), "ac", ["firm-b"]),
    ):
        lying = replace(escrows["firm-b"], key_commitments=keys)
        found = {"conflicts": [sorted(["firm-b", f"firm-{letter}"]) for letter in pairs], "left_out": left_out}
        inputs = plain | {"escrows": agree | {"firm-b": _written(lying)}}
        yield case(f"conflicts: {name}", "conflicts", inputs, found)


def _check_cases():
    made, _ = _dealt()
    lists = {
        "complete": made,
        "two receivers exchanged": replace(made, shares=(made.shares[1], made.shares[0], made.shares[2])),
        "one share is missing": replace(made, shares=made.shares[:2]),
        "one commitment is missing": replace(made, key_commitments=made.key_commitments[:2]),
    }
    for name, escrow in lists.items():
        given = {"firms": NAMES, "threshold": 3, "dealer": "firm-a", "escrow": _written(escrow)}
        given["signed"] = escrow_digest(escrow).hex()
        expects = {"accepted": True} if escrow is made else {"refusal": "escrow"}
        yield case(f"the server's check: {name}", "escrow check", given, expects)
    given = given | {"escrow": _written(made), "signed": pattern("other").hex()}
    yield case("the server's check: not the one that the join signs", "escrow check", given, {"refusal": "escrow"})


def _recovery_cases(made, inputs):
    plain = {"firms": NAMES, "threshold": 3, "dealer": "firm-a", "escrow": _written(made)}
    opened = {}
    for which in ("self", "escrow"):
        opened[which] = {}
        for delivery in (
            messages.Delivery("firm-a", *part) for part in zip(made.key_commitments, made.shares, strict=True)
        ):
            held = _held(delivery, inputs)
            opened[which][delivery.shares.receiver] = getattr(held, f"{which}_share").hex()
    seed, key = {"of": "self seed"}, {"of": "attempt keys"}
    found = {"self_seed": inputs["self_seed"]}
    yield case("recovery: the self seed, of three shares", "recovery", plain | seed | {"shares": opened["self"]}, found)
    keys = {"attempt_keys": inputs["attempt_keys"]}
    yield case(
        "recovery: the attempt keys, of three shares", "recovery", plain | key | {"shares": opened["escrow"]}, keys
    )
    refused = {"refusal": "escrow"}
    one_wrong = opened["self"] | {"firm-b": opened["escrow"]["firm-b"]}
    yield case("recovery: a share that was not dealt", "recovery", plain | seed | {"shares": one_wrong}, refused)
    two = {firm: opened["self"][firm] for firm in ("firm-b", "firm-c")}
    yield case("recovery: two shares", "recovery", plain | seed | {"shares": two}, refused)
    easy, dealt = _dealt(threshold=2)
    share = _held(messages.Delivery("firm-a", easy.key_commitments[0], easy.shares[0]), dealt).escrow_share
    spare = {
        peer: _held(messages.Delivery("firm-a", *part), dealt).self_share.hex()
        for peer, part in zip(PEERS, zip(easy.key_commitments, easy.shares, strict=True), strict=True)
    }
    spare["firm-b"] = share.hex()
    enough = plain | seed | {"threshold": 2, "escrow": _written(easy), "shares": spare}
    yield case("recovery: a share that was not dealt does no harm while enough are right", "recovery", enough, found)
    sealed = replace(made, sealed=bytes([made.sealed[0] ^ 1]) + made.sealed[1:])
    shares = {"shares": opened["escrow"]}
    yield case(
        "recovery: keys that do not open", "recovery", plain | key | shares | {"escrow": _written(sealed)}, refused
    )
    other = replace(made, key_commitments=(pattern("x"), *made.key_commitments[1:]))
    yield case(
        "recovery: other keys than committed to",
        "recovery",
        plain | key | shares | {"escrow": _written(other)},
        refused,
    )
    other = replace(made, self_commitment=pattern("x"))
    shares = {"shares": opened["self"], "escrow": _written(other)}
    yield case("recovery: another secret than committed to", "recovery", plain | seed | shares, refused)


def _held(delivery, inputs):
    receiver = delivery.shares.receiver
    keys = (bytes.fromhex(inputs[which][receiver]) for which in ("attempt_keys", "box_keys"))
    return open_delivery(delivery, receiver, *keys)


TAG_KEY = _hex("tag key")
LAYOUTS = {
    "12 bits, 16 firms: four fields of 16 bits": (12, 16, 13, 2),
    "12 bits, 3 firms: four fields of 16 bits": (12, 3, 7, 0),
    "8 bits, 16 firms: five fields of 12 bits": (8, 16, 12, 1),
    "6 bits, 4 firms: eight fields of 8 bits": (6, 4, 19, 0),
    "16 bits, 3 firms: three fields of 21 bits": (16, 3, 10, 0),
    "24 bits, 256 firms: two fields of 32 bits": (24, 256, 5, 0),
    "2 bits, 2 firms: 21 fields of 3 bits": (2, 2, 40, 0),
}


def _layout(bits, members, size, exact=0):
    return {"parameters": size, "bits": bits, "max_members": members, "exact": exact}


def _contribution(layout, **changes):
    plain = {
        "layout": layout,
        "update": update("codec", layout["parameters"]).tobytes().hex() if layout["parameters"] else None,
        "weight": 0.75,
        "count": 750,
        "exact": [0.1, -3.5, 2.0**-25, 3 * 2.0**-25][: layout["exact"]],
        "clip": 0.125,
        "rounding": 0x0123456789ABCDEF,
        "tag_key": TAG_KEY,
        "residual": None,
    }
    return plain | changes


def _words(layout, *contributions):
    """The sum of contributions, as hex."""
    shape = VectorLayout(**layout)
    total = np.zeros(shape.words, np.uint64)
    for given in contributions:
        update_ = None if given["update"] is None else np.frombuffer(bytes.fromhex(given["update"]), "<f4")
        contribution = Contribution(update_, given["weight"], given["count"], np.array(given["exact"], np.float64))
        key = bytes.fromhex(given["tag_key"])
        add_contribution(total, shape, contribution, clip=given["clip"], rounding=given["rounding"], tag_key=key)
    return total


def codec_cases():
    numbers = [0, 1, 2, 12, 2**31, 2**32 - 1]
    for seed in (0, 0x0123456789ABCDEF, 2**64 - 1):
        yield case(f"rounding noise of seed {seed}", "rounding", {"seed": seed, "numbers": numbers})
    for name, shape in LAYOUTS.items():
        yield case(f"contribution: {name}", "contribution", _contribution(_layout(*shape)))
    layout = _layout(12, 16, 13, 2)
    special = np.zeros(13, "<f4")
    special[:9] = 1.0, -1.0, 1 / 6, -1 / 6, 1e-30, -1e-38, 3e38, -3e38, -0.0
    kept = update("residual", 13, 0.01).tobytes().hex()
    finest = {"exact": [2.0**-25, 3 * 2.0**-25]}
    for name, changes in {
        "values beyond the clip, tiny and negative zero": {"update": special.tobytes().hex()},
        "error feedback: a residual is added and the next is left": {"residual": kept},
        "a weight of zero": {"weight": 0.0},
        "a weight that float32 rounds": {"weight": 1 / 3, "clip": 0.1},
        "another seed of the rounding": {"rounding": 1},
        "a seed of zero, a count of zero": {"rounding": 0, "count": 0},
        "halves of the last bit go to even": finest,
    }.items():
        yield case(f"contribution: {name}", "contribution", _contribution(layout, **changes))
    yield case("contribution: statistics, no parameters", "contribution", _contribution(_layout(12, 16, 0, 4)))
    rows = _contribution(
        _layout(12, 3, 2053),
        update={"size": 2053, "values": {"0": 0.5, "511": -0.25, "2047": 0.1, "2048": 0.2, "2052": -0.1}},
    )
    yield case("contribution: a whole row of 512 words and one of two", "contribution", rows)
    refused = {"refusal": "out-of-range"}
    for name, changes in {
        "NaN": {"update": np.full(13, np.nan, "<f4").tobytes().hex()},
        "infinity": {"update": np.full(13, np.inf, "<f4").tobytes().hex()},
        "a metric of 2^32": {"exact": [2.0**32, 0.0]},
        "a count of 2^56": {"count": 2**56},
    }.items():
        yield case(f"refused: {name}", "contribution", _contribution(layout, **changes), refused)
    yield from _sum_cases(layout)


def _three(layout):
    """Three firms' contributions."""
    return [
        _contribution(
            layout,
            update=update(f"codec {number}", layout["parameters"]).tobytes().hex(),
            count=100 * number,
            weight=number / 10,
            rounding=number,
        )
        for number in (1, 2, 3)
    ]


def _sum_cases(layout):
    total = _words(layout, *_three(layout))
    plain = {"layout": layout, "clip": 0.125, "count_cap": 1000}
    yield case("sum: of three", "sum", plain | {"vector": total.tobytes().hex()})
    one = _words(layout, _contribution(layout, count=1000, weight=1.0))
    yield case("sum: of one, its count at the cap", "sum", plain | {"vector": one.tobytes().hex()})
    refused = {"refusal": "malformed"}
    for name, place, value in (
        ("of no vectors", 5, 0),
        ("of more vectors than the layout takes", 5, 17),
        ("a count of zero", 4, 0),
        ("a count over the members' cap", 4, 3001),
    ):
        changed = total.copy()
        changed[place] = value
        yield case(f"refused: {name}", "sum", plain | {"vector": changed.tobytes().hex()}, refused)
    yield case("refused: a word less", "sum", plain | {"vector": total[:-1].tobytes().hex()}, refused)


def tag_cases():
    for name, shape in {
        "four fields, two units": (12, 16, 13, 2),
        "five fields of 12 bits, three units": (8, 16, 12, 0),
        "no parameters": (12, 16, 0, 3),
        "two rows": (12, 3, 2053, 0),
    }.items():
        yield case(f"key: {name}", "tag key", {"layout": _layout(*shape), "key": TAG_KEY})
    yes, no = {"carries_tag": True}, {"carries_tag": False}
    for name, shape in LAYOUTS.items():
        layout = _layout(*shape)
        total = _words(layout, *_three(layout)[: min(3, shape[1])])
        inputs = {"layout": layout, "key": TAG_KEY, "vector": total.tobytes().hex()}
        yield case(f"the sum carries its tag: {name}", "tag", inputs, yes)
    layout = _layout(8, 16, 12, 1)
    total = _words(layout, *_three(layout))
    wrong = {"under another key": (total, _hex("other key"))}
    for name, place, change in (
        ("one field is one more", 0, 1),
        ("a bit that no field owns", 1, 1 << 60),
        ("one row more in the count", 3, 1),
        ("one vector more", 4, 1),
        ("a metric's last bit", 5, 1),
        ("a tail value of 2^60 and more", 3, 1 << 60),
        ("another tag", 6, 1),
    ):
        changed = total.copy()
        changed[place] ^= np.uint64(change)
        wrong[name] = changed, TAG_KEY
    for value, name in ((2**60 - 1, "largest"), (2**60, "too large"), (1 - 2**60, "smallest"), (-(2**60), "too small")):
        tagged = _retagged(layout, total, value).tobytes().hex()
        expects = yes if "est" in name else no
        inputs = {"layout": layout, "key": TAG_KEY, "vector": tagged}
        yield case(f"a tail value that is {name}, under its right tag", "tag", inputs, expects)
    moved = total.copy()  # the same field sums, exchanged between two parameters
    moved[0], moved[1] = total[1], total[0]
    wrong["two words exchanged"] = moved, TAG_KEY
    for name, (words, key) in wrong.items():
        inputs = {"layout": layout, "key": key, "vector": words.tobytes().hex()}
        yield case(f"refused: {name}", "tag", inputs, no)


def _retagged(layout, total, value):
    """A sum with another metric, and the tag that belongs to it, as only who holds the key can make it."""
    shape, words = VectorLayout(**layout), total.copy()
    words[shape.tail][-1:].view(np.int64)[0] = value
    key = TagKey.of(shape, bytes.fromhex(TAG_KEY))
    packed = tag_of(words[: shape.packed_words], shape, key)
    words[-2:] = split_tag(key.tag(packed, words[shape.tail].view(np.int64)))
    return words


INITIAL = update("initial model", 7, 1.0)


def _job(**changes):
    values = {
        "id": "mills",
        "title": "Tool wear, Österreich",
        "consortium": "valley",
        "firms": FOUR.terms["firms"],
        "minimum_cohort": 2,
        "model": {
            "name": "tabular",
            "digest": "0" * 64,
            "parameters": 7,
            "initial_digest": model_digest(INITIAL).hex(),
            "statistics": 2,
            "round_metrics": ["loss", "error"],
        },
        "contract": {"name": "milling"},
        "codec": {"clip": 0.25, "count_cap": 1000, "clip_rule": "rms"},
        "server_step": {"learning_rate": 0.7},
        "rounds": 2,
        "selection_metric": "loss",
        "seed": 7,
    }
    return JobFile.model_validate(values | changes)


def model_cases():
    job = _job()
    text = job.to_bytes().decode()
    yield case("the job file's digest, over its canonical text", "job", {"text": text})
    yield case("refused: the same file with a blank", "job", {"text": text + " "}, {"refusal": "malformed"})
    threshold = _job(mode="threshold", threshold=3).to_bytes().decode()
    yield case("a job in threshold mode", "job", {"text": threshold})
    means = update("mean", 7, 0.01).tobytes().hex()
    for rate in (1.0, 0.7):
        inputs = {"model": INITIAL.tobytes().hex(), "mean": means, "learning_rate": rate}
        yield case(f"the server step at a learning rate of {rate}", "server step", inputs)
    codec = job.codec.model_dump(mode="json")
    for name, fills, clip in (
        ("follows the root mean square", 0.03, 0.25),
        ("at most four times narrower", 0.0, 0.25),
        ("at most four times wider", 3.0, 0.25),
        ("a negative sum of fills counts as none", -1.0, 0.25),
        ("never 2^20 times the first", 3.0, 0.25 * 2**20),
    ):
        inputs = {"codec": codec, "clip": clip, "fills": fills, "members": 3}
        yield case(f"the next clip {name}", "clip", inputs)
    yield case("the next clip after a sum of one", "clip", {"codec": codec, "clip": 0.25, "fills": 0.01, "members": 1})
    values, lost = (
        np.array(row, "<f4").tobytes().hex() for row in ([0.25, -0.125, 0.0625, 1], [0, 0.0625, 0.03125, 0])
    )
    filled = {"update": values, "weight": 0.5, "clip": 0.25, "residual": None}
    yield case("what an update fills of its clip", "fill", filled)
    yield case("what an update and a residual fill of the clip", "fill", filled | {"residual": lost})
    yield from _course_cases(job)


def _sums(job):
    """The sums of each round of a job over three firms, made by the state as it moves."""
    state = GlobalState(job, INITIAL)
    while not state.is_over:
        round_ = state.round
        layout = layout_of(job, round_)
        total = np.zeros(layout.words, np.uint64)
        for firm in range(1, 4):
            loss = {0: 0, 1: 2, 2: 2, 3: 3}[round_] + firm  # the same twice: the first of equals stays the best
            exact = np.array([loss * 0.25, 4.0, loss * 0.5, 0.0 if round_ == 2 else 4.0, 0.3])[: layout.exact]
            given = update(f"course {round_} {firm}", layout.parameters, 0.2) if layout.parameters else None
            contribution = Contribution(given, firm / 10, firm * 100, exact)
            add_contribution(total, layout, contribution, clip=state.clip, rounding=firm, tag_key=bytes(32))
        state.advance(total.copy(), 3)
        yield {"vector": total.tobytes().hex(), "members": 3}


def _course_cases(job):
    moving, plain = job, _job(codec={"clip": 0.25, "count_cap": 1000}, selection_metric=None)
    initial = {"initial": INITIAL.tobytes().hex()}
    for name, of in (
        ("statistics, two training rounds whose sums move the clip, a closing round", moving),
        ("a fixed clip and no selection", plain),
    ):
        inputs = {"job": of.to_bytes().decode(), "sums": list(_sums(of))} | initial
        yield case(f"course of a job: {name}", "course", inputs)
    state = GlobalState(moving, INITIAL)
    given = {"job": moving.to_bytes().decode()} | initial
    for published in _sums(moving):
        if state.round in {0, 2}:
            vector = state.to_words().tobytes().hex()
            yield case(f"snapshot of the state before round {state.round}", "snapshot", given | {"vector": vector})
        state.advance(np.frombuffer(bytes.fromhex(published["vector"]), "<u8").copy(), 3)
    cut = state.to_words()[:-1].tobytes().hex()
    yield case("refused: a snapshot cut short", "snapshot", given | {"vector": cut}, {"refusal": "malformed"})
    flags = state.to_words()
    flags[1] = 4
    yield case(
        "refused: a snapshot with an unknown flag",
        "snapshot",
        given | {"vector": flags.tobytes().hex()},
        {"refusal": "malformed"},
    )
    wrong = inputs | {"sums": [inputs["sums"][0] | {"members": 2}]}
    yield case("refused: a sum that counts more vectors than members", "course", wrong, {"refusal": "malformed"})
    other = inputs | {"initial": (INITIAL + 1).astype("<f4").tobytes().hex()}
    yield case("refused: another first model than the job's", "course", other, {"refusal": "global-model"})
