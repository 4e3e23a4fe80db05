"""What each case of the vector files expects, recomputed from its inputs: one function an operation."""

import numpy as np

from . import codec, keys, messages, model, script, sharing, side, wire
from .side import floats, layout_of
from .wire import Refused

unhex = bytes.fromhex


def compute(operation, inputs):
    """What is expected of a case. A refusal is a result as any other."""
    try:
        return OPERATIONS[operation](inputs)
    except Refused as refused:
        return {"refusal": refused.code}


def differing(content, compute=compute):
    """Names of a file's cases in which something else is computed than expected."""
    return [case["name"] for case in content["cases"] if compute(case["operation"], case["inputs"]) != case["expected"]]


def digest(inputs):
    return {"digest": wire.digest(inputs["label"], *map(unhex, inputs["parts"])).hex()}


def derive(inputs):
    return {"key": wire.derive(unhex(inputs["key"]), inputs["label"], *map(unhex, inputs["parts"])).hex()}


def keystream(inputs):
    return {"bytes": wire.keystream(unhex(inputs["key"]), inputs["length"]).hex()}


def names(inputs):
    members = inputs["members"]
    return {"bytes": wire.names(members).hex(), "digest": keys.members_digest(members).hex()}


def numbers(inputs):
    return {"bytes": wire.numbers(*inputs["values"]).hex()}


def signature(inputs):
    seed = unhex(inputs["seed"])
    public = wire.public_key(seed)
    made = wire.sign(seed, inputs["label"], *map(unhex, inputs["parts"]))
    return {"public_key": public.hex(), "fingerprint": wire.sha256(public).hex(), "signature": made.hex()}


def message(inputs):
    form = messages.KINDS[inputs["kind"]][1]
    value = {"kind": inputs["kind"]} | _from_json(form, inputs["fields"])
    data = messages.encode(value)
    assert messages.decode(data) == value
    return {"bytes": data.hex()}


def _from_json(form, value):
    if isinstance(form, list):
        return {name: _from_json(inner, value[name]) for name, inner in form}
    if form in messages.PLAIN:
        return value
    if form[0] in {"fixed", "blob"}:
        return unhex(value)
    if form[0] == "pair":
        return [_from_json(form[1], value[0]), _from_json(form[2], value[1])]
    return [_from_json(form[1], item) for item in value]


def decoding(inputs):
    return {"kind": messages.decode(b"".join(unhex(part) * times for part, times in inputs["bytes"]))["kind"]}


def decapsulation(inputs):
    seed = unhex(inputs["seed"])
    public = keys.public_halves(bytes(32) + seed)[1]
    secret = keys.decapsulate(seed, unhex(inputs["ciphertext"]))
    return {"public_key_sha256": wire.sha256(public).hex(), "secret": secret.hex()}


def attempt(inputs):
    root = keys.ratchet(unhex(inputs["root"]), inputs["ratchets"])
    bound, number = inputs["context"], inputs["context"]["place"][2]
    hashes = unhex(bound["job_digest"]), unhex(bound["transcript"])
    context = keys.mask_context(*hashes, bound["place"], bound["cohort"], unhex(bound["model_hash"]))
    key = keys.attempt_key(root, number)
    made = {
        "root": root,
        "attempt_key": key,
        "box_key": keys.box_key(root, number, inputs["dealer"]),
        "context": context,
        "pair_mask_key": keys.pair_mask_key(key, context),
        "self_mask_key": keys.self_mask_key(unhex(inputs["self_seed"]), context),
        "tag_key": keys.attempt_tag_key(unhex(inputs["tag_key"]), context),
    }
    return {name: value.hex() for name, value in made.items()}


def masks(inputs):
    add, subtract = ([unhex(key) for key in inputs[name]] for name in ("add", "subtract"))
    return {"vector": wire.from_words(codec.add_masks(wire.words(unhex(inputs["vector"])), add, subtract)).hex()}


def split(inputs):
    draw = script.Draws(unhex(inputs["randomness"]))
    shares = sharing.split(unhex(inputs["secret"]), inputs["threshold"], inputs["points"], draw)
    return {"shares": [share.hex() for share in shares]}


def combine(inputs):
    shares = {int(point): unhex(share) for point, share in inputs["shares"].items()}
    return {"secret": sharing.combine(shares, inputs["threshold"]).hex()}


def escrow(inputs):
    draw = script.Draws(unhex(inputs["randomness"]))
    attempt_keys, box_keys = (_keys(inputs[name]) for name in ("attempt_keys", "box_keys"))
    seed = unhex(inputs["self_seed"])
    made = sharing.deal(inputs["firms"], inputs["threshold"], seed, attempt_keys, box_keys, draw)
    data = messages.write(messages.ESCROW, made)
    return {"escrow": data.hex(), "digest": sharing.escrow_digest(made).hex()}


def delivery(inputs):
    given = messages.decode_fields(messages.DELIVERY, unhex(inputs["delivery"]))
    held = sharing.open_delivery(given, inputs["receiver"], unhex(inputs["attempt_key"]), unhex(inputs["box_key"]))
    return {"held": None if held is None else [share.hex() for share in held]}


def escrow_check(inputs):
    made = messages.decode_fields(messages.ESCROW, unhex(inputs["escrow"]))
    sharing.check_escrow(inputs["firms"], inputs["dealer"], made, unhex(inputs["signed"]))
    return {"accepted": True}


def recovery(inputs):
    made = messages.decode_fields(messages.ESCROW, unhex(inputs["escrow"]))
    given, terms = _keys(inputs["shares"]), (inputs["firms"], inputs["threshold"])
    if inputs["of"] == "self seed":
        return {"self_seed": sharing.recover_self_seed(*terms, made, given).hex()}
    opened = sharing.recover_attempt_keys(*terms, inputs["dealer"], made, given)
    return {"attempt_keys": {peer: key.hex() for peer, key in opened.items()}}


def conflicts(inputs):
    made = {firm: messages.decode_fields(messages.ESCROW, unhex(data)) for firm, data in inputs["escrows"].items()}
    found = sharing.conflicts(inputs["firms"], made)
    return {"conflicts": found, "left_out": sharing.left_out(found)}


def _keys(values):
    return {name: unhex(value) for name, value in values.items()}


def contribution(inputs):
    layout, residual = layout_of(inputs["layout"]), floats(inputs["residual"])
    update = _update(inputs["update"])
    plain = inputs["weight"], inputs["count"], inputs["exact"], inputs["clip"], inputs["rounding"]
    own = unhex(inputs["tag_key"]), inputs["firm"], unhex(inputs["blinding"])
    vector, losses = codec.contribution(layout, update, *plain, *own, residual)
    packed = wire.from_words(vector[: layout.packed])
    return {
        "packed": packed.hex() if len(packed) <= 1024 else None,
        "packed_sha256": wire.sha256(packed).hex(),
        "tail": [codec.signed(word) for word in vector[layout.packed : -codec.TAG_WORDS]],
        "tag": vector[-codec.TAG_WORDS :],
        "vector_sha256": wire.sha256(wire.from_words(vector)).hex(),
        "residual": None if losses is None else losses.tobytes().hex(),
    }


def _update(given):
    """float32 in hex, or a size and the values at some places among zeros."""
    if given is None or isinstance(given, str):
        return floats(given)
    update = np.zeros(given["size"], np.float32)
    for place, value in given["values"].items():
        update[int(place)] = value
    return update


def rounding(inputs):
    return {"hashes": [codec.rounding_hash(inputs["seed"], number) for number in inputs["numbers"]]}


def decoding_of_sum(inputs):
    layout, total = layout_of(inputs["layout"]), wire.words(unhex(inputs["vector"]))
    mean, count, members, exact = codec.decode_sum(layout, total, inputs["clip"], inputs["count_cap"])
    return {"mean": mean.tobytes().hex(), "count": count, "members": members, "exact": exact}


def tag_key(inputs):
    layout = layout_of(inputs["layout"])
    tag = codec.Tag(layout, unhex(inputs["key"]))
    ends = [plane[at] for plane in tag.x for at in (0, codec.ROW - 1)]
    return {"x_first_and_last_of_each_plane": ends, "r": tag.r, "s": tag.s}


def tag(inputs):
    layout, total = layout_of(inputs["layout"]), wire.words(unhex(inputs["vector"]))
    return {"carries_tag": codec.carries_tag(layout, total, unhex(inputs["key"]), inputs["members"])}


def job(inputs):
    return {"digest": model.job_digest(inputs["text"].encode()).hex()}


def server_step(inputs):
    before, mean = floats(inputs["model"]), floats(inputs["mean"])
    return {"model": (mean * np.float32(inputs["learning_rate"]) + before).tobytes().hex()}


def server_steps(inputs):
    """One step after the other, from the first moments on."""
    terms, now = inputs["terms"], floats(inputs["model"])
    moments, after = model.first_moments(terms, now.size), []
    for mean in inputs["means"]:
        now, moments = model.server_step(terms, now, floats(mean), moments)
        after.append({"model": now.tobytes().hex(), "moments": [moment.tobytes().hex() for moment in moments]})
    return {"after": after}


def clip(inputs):
    return {"clip": model.next_clip(inputs["codec"], inputs["clip"], inputs["fills"], inputs["members"])}


def fill(inputs):
    return {"fill": model.fill(floats(inputs["update"]), inputs["weight"], inputs["clip"], floats(inputs["residual"]))}


def course(inputs):
    """A job's global states, from the first model through its sums."""
    state = model.GlobalState(model.json.loads(inputs["job"]), floats(inputs["initial"]))
    states, told = [_standing(state)], []
    for published in inputs["sums"]:
        count, metrics = state.advance(wire.words(unhex(published["vector"])), published["members"])
        told.append({"count": count, "metrics": metrics})
        states.append(_standing(state))
    return {"states": states, "told": told, "final": state.final.tobytes().hex()}


def snapshot(inputs):
    """The state that a snapshot's vector holds; written again, the same bytes."""
    first = model.GlobalState(model.json.loads(inputs["job"]), floats(inputs["initial"]))
    state = first.standing_at(unhex(inputs["vector"]))
    assert state.to_words() == unhex(inputs["vector"])
    return _standing(state)


def _standing(state):
    return {
        "round": state.round,
        "is_over": state.round > state.last_round,
        "clip": state.clip,
        "model": state.model.tobytes().hex(),
        "normalisation": None if state.normalisation is None else list(state.normalisation),
        "best_round": None if state.best is None else state.best[1],
        "hash": state.hash.hex(),
        "key": state.key.hex(),
        "snapshot": state.to_words().hex(),
    }


OPERATIONS = {
    "digest": digest,
    "derive": derive,
    "keystream": keystream,
    "names": names,
    "numbers": numbers,
    "signature": signature,
    "message": message,
    "decoding": decoding,
    "decapsulation": decapsulation,
    "attempt keys": attempt,
    "masks": masks,
    "split": split,
    "combine": combine,
    "escrow": escrow,
    "delivery": delivery,
    "escrow check": escrow_check,
    "recovery": recovery,
    "conflicts": conflicts,
    "contribution": contribution,
    "rounding": rounding,
    "sum": decoding_of_sum,
    "tag key": tag_key,
    "tag": tag,
    "job": job,
    "server step": server_step,
    "server steps": server_steps,
    "clip": clip,
    "fill": fill,
    "course": course,
    "snapshot": snapshot,
    "script": lambda inputs: script.play(side, inputs),
}
