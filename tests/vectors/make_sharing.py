"""Cases of Shamir's sharing and of escrows."""

from dataclasses import replace

from dure_protocols import messages
from dure_protocols.secagg.escrow import deal, escrow_digest, open_delivery
from dure_protocols.secagg.shamir import PRIME, split
from dure_protocols.wire import Writer
from tests.vectors.make_bytes import case, hexed
from tests.vectors.make_scene import FOUR, Recording, pattern
from tests.vectors.project_side import terms_of


def sharing_cases():
    secret = {"secret": hexed("secret"), "randomness": hexed("coefficients", 96)}
    inputs = secret | {"threshold": 3, "points": [1, 2, 4, 5]}
    yield case("split: three of four", "split", inputs)
    large = {"secret": "ff" * 32, "randomness": "ff" * 48, "threshold": 2, "points": [1, 256]}
    yield case("split: coefficients are reduced modulo P", "split", large)
    shares = split(pattern("secret"), 3, [1, 2, 4, 5], Recording("coefficients"))
    given = {str(point): share.hex() for point, share in zip((1, 2, 4, 5), shares, strict=True)}
    expected = {"secret": hexed("secret")}
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
        "self_seed": hexed(f"self seed of {dealer}"),
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
