"""What each case of the vector files expects, by this project's code: one function an operation, as in the reader."""

import json
import sys
from dataclasses import replace
from hashlib import sha256
from typing import Annotated, get_args, get_origin, get_type_hints

import numpy as np
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from pydantic import TypeAdapter

from dure_protocols import clip as clips
from dure_protocols import messages
from dure_protocols import server_step as steps
from dure_protocols.errors import MessageError, RefusalCode, RefusedError
from dure_protocols.fields import Fields
from dure_protocols.global_state import GlobalState
from dure_protocols.identity import Identity
from dure_protocols.job import CodecTerms, FedAvgTerms, JobFile, JobFileError, ServerStepField
from dure_protocols.secagg import escrow as escrows
from dure_protocols.secagg import rows, shamir, tags
from dure_protocols.secagg.codec import (
    Contribution,
    OutOfRangeError,
    VectorLayout,
    add_contribution,
    carries_tag,
    decode_sum,
)
from dure_protocols.secagg.keystream import apply_keystreams
from dure_protocols.secagg.keystream import derive as derived
from dure_protocols.secagg.layout import TAG_WORDS
from dure_protocols.secagg.masks import mask_key, self_mask_key
from dure_protocols.secagg.masks import tag_key as attempt_tag_key
from dure_protocols.secagg.server import in_conflict
from dure_protocols.secagg.terms import mask_context, names_digest
from dure_protocols.secagg.terms import names as names_bytes
from dure_protocols.secagg.terms import numbers as numbers_bytes
from dure_protocols.wire import Writer
from dure_protocols.wire import digest as digested
from tests.vectors import project_side as side
from tests.vectors.project_side import fields_of, floats, unhex, words_of
from tests.vectors.reader.script import Draws, play


def compute(operation, inputs):
    """What is expected of a case. A refusal is a result as any other."""
    try:
        return OPERATIONS[operation](inputs)
    except RefusedError as refused:
        return {"refusal": str(refused.code)}
    except (MessageError, JobFileError):
        return {"refusal": "malformed"}
    except OutOfRangeError:
        return {"refusal": "out-of-range"}


def digest(inputs):
    return {"digest": digested(inputs["label"], *map(unhex, inputs["parts"])).hex()}


def derive(inputs):
    return {"key": derived(unhex(inputs["key"]), inputs["label"], *map(unhex, inputs["parts"])).hex()}


def keystream(inputs):
    words = np.zeros(inputs["length"] // 8, np.uint64)
    apply_keystreams(words, add=[unhex(inputs["key"])])
    return {"bytes": words.tobytes().hex()}


def names(inputs):
    return {"bytes": names_bytes(inputs["members"]).hex(), "digest": names_digest(inputs["members"]).hex()}


def numbers(inputs):
    return {"bytes": numbers_bytes(*inputs["values"]).hex()}


def signature(inputs):
    identity = Identity.from_seed(unhex(inputs["seed"]))
    made = identity.sign(inputs["label"], *map(unhex, inputs["parts"]))
    return {
        "public_key": identity.public_bytes.hex(),
        "fingerprint": identity.fingerprint,
        "signature": made.hex(),
    }


def message(inputs):
    value = from_json(getattr(messages, inputs["kind"]), inputs["fields"])
    data = messages.encode(value)
    assert messages.decode(data) == value
    return {"bytes": data.hex()}


def from_json(hint, value):
    """A field's value from JSON, by its type."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) is tuple:
        of = get_args(hint)
        kinds = [of[0]] * len(value) if of[-1] is Ellipsis else of
        return tuple(from_json(kind, item) for kind, item in zip(kinds, value, strict=True))
    if hint is bytes:
        return unhex(value)
    if hint in {RefusalCode, messages.AbsenceReason}:
        return hint(value)
    if isinstance(hint, type) and issubclass(hint, Fields):
        hints = get_type_hints(hint, vars(sys.modules[hint.__module__]))
        return hint(**{name: from_json(hints[name], item) for name, item in value.items()})
    return value


def decoding(inputs):
    data = b"".join(unhex(part) * times for part, times in inputs["bytes"])
    return {"kind": type(messages.decode(data)).__name__}


def decapsulation(inputs):
    private = MLKEM768PrivateKey.from_seed_bytes(unhex(inputs["seed"]))
    public = private.public_key().public_bytes_raw()
    secret = private.decapsulate(unhex(inputs["ciphertext"]))
    return {"public_key_sha256": sha256(public).hexdigest(), "secret": secret.hex()}


def attempt(inputs):
    root, bound = unhex(inputs["root"]), inputs["context"]
    for _ in range(inputs["ratchets"]):
        root = derived(root, "dure ratchet")
    terms = side.terms_of(
        {
            "job_digest": bound["job_digest"],
            "firms": dict.fromkeys(bound["cohort"], ""),
            "minimum_cohort": 2,
            "minimum_difference": 1,
            "minimum_statistics_difference": 2,
            "threshold": None,
        }
    )
    place, model = bound["place"], unhex(bound["model_hash"])
    context = mask_context(terms, unhex(bound["transcript"]), *place, bound["cohort"], model)
    number = numbers_bytes(place[2])
    key = derived(root, "dure attempt", number)
    made = {
        "root": root,
        "attempt_key": key,
        "box_key": derived(root, "dure share box", number, inputs["dealer"].encode()),
        "context": context,
        "pair_mask_key": mask_key(key, context),
        "self_mask_key": self_mask_key(unhex(inputs["self_seed"]), context),
        "tag_key": attempt_tag_key(unhex(inputs["tag_key"]), context),
    }
    return {name: value.hex() for name, value in made.items()}


def masks(inputs):
    vector = words_of(inputs["vector"])
    apply_keystreams(vector, add=map(unhex, inputs["add"]), subtract=map(unhex, inputs["subtract"]))
    return {"vector": vector.tobytes().hex()}


def split(inputs):
    draw = Draws(unhex(inputs["randomness"]))
    shares = shamir.split(unhex(inputs["secret"]), inputs["threshold"], inputs["points"], draw)
    return {"shares": [share.hex() for share in shares]}


def combine(inputs):
    shares = {int(point): unhex(share) for point, share in inputs["shares"].items()}
    return {"secret": shamir.combine(shares, inputs["threshold"]).hex()}


def escrow(inputs):
    draw = Draws(unhex(inputs["randomness"]))
    keys = [{name: unhex(key) for name, key in inputs[which].items()} for which in ("attempt_keys", "box_keys")]
    made = escrows.deal(_terms(inputs), inputs["threshold"], unhex(inputs["self_seed"]), *keys, draw)
    writer = Writer()
    made.write(writer)
    return {"escrow": bytes(writer).hex(), "digest": escrows.escrow_digest(made).hex()}


def delivery(inputs):
    given = fields_of(messages.Delivery, unhex(inputs["delivery"]))
    keys = unhex(inputs["attempt_key"]), unhex(inputs["box_key"])
    held = escrows.open_delivery(given, inputs["receiver"], *keys)
    return {"held": None if held is None else [held.self_share.hex(), held.escrow_share.hex()]}


def escrow_check(inputs):
    escrowed = _escrowed(inputs["dealer"], inputs["escrow"])
    signed = replace(escrowed, join=replace(escrowed.join, escrow=unhex(inputs["signed"])))
    escrows.check_escrow(_terms(inputs), signed)
    return {"accepted": True}


def recovery(inputs):
    terms, threshold = _terms(inputs), inputs["threshold"]
    dealer = _escrowed(inputs["dealer"], inputs["escrow"])
    is_seed, none = inputs["of"] == "self seed", bytes(64)
    releases = []
    for firm, share in inputs["shares"].items():
        shares = ((inputs["dealer"], unhex(share)),)
        lists = (shares, ()) if is_seed else ((), shares)
        releases.append(messages.Release(firm, none[:32], none[:32], *lists, none))
    if is_seed:
        return {"self_seed": escrows.recover_self_seed(terms, threshold, dealer, releases).hex()}
    opened = escrows.recover_attempt_keys(terms, threshold, dealer, releases)
    return {"attempt_keys": {peer: key.hex() for peer, key in opened.items()}}


def conflicts(inputs):
    joins = [_escrowed(firm, data) for firm, data in inputs["escrows"].items()]
    found = escrows.conflicts(_terms(inputs), joins)
    pairs = sorted([one, other] for one in found for other in found[one] if one < other)
    return {"conflicts": pairs, "left_out": sorted(in_conflict(_terms(inputs), joins))}


def _terms(inputs):
    values = {"job_digest": "00" * 32, "firms": dict.fromkeys(inputs["firms"], ""), "threshold": None}
    return side.terms_of(values | {"minimum_cohort": 2, "minimum_difference": 1, "minimum_statistics_difference": 2})


def _escrowed(firm, data):
    join = messages.Join(firm, 1, 1, 1, bytes(32), bytes(32), bytes(64))
    return messages.EscrowedJoin(join, fields_of(messages.Escrow, unhex(data)))


def contribution(inputs):
    layout, residual = VectorLayout(**inputs["layout"]), floats(inputs["residual"])
    words = np.zeros(layout.words, np.uint64)
    given = Contribution(
        _update(inputs["update"]), inputs["weight"], inputs["count"], np.array(inputs["exact"], np.float64)
    )
    tag = tags.OwnTag(unhex(inputs["tag_key"]), inputs["firm"], unhex(inputs["blinding"]))
    options = {"clip": inputs["clip"], "rounding": inputs["rounding"], "tag": tag}
    add_contribution(words, layout, given, residual=residual, **options)
    packed = words[: layout.packed_words].tobytes()
    return {
        "packed": packed.hex() if len(packed) <= 1024 else None,
        "packed_sha256": sha256(packed).hexdigest(),
        "tail": words[layout.tail].view(np.int64).tolist(),
        "tag": words[-TAG_WORDS:].tolist(),
        "vector_sha256": sha256(words.data).hexdigest(),
        "residual": None if residual is None else residual.tobytes().hex(),
    }


def _update(given):
    if given is None or isinstance(given, str):
        return floats(given)
    update = np.zeros(given["size"], np.float32)
    for place, value in given["values"].items():
        update[int(place)] = value
    return update


def rounding(inputs):
    return {"hashes": rows.rounding_hash(inputs["seed"], np.array(inputs["numbers"], np.uint32)).tolist()}


def decoding_of_sum(inputs):
    layout, words = VectorLayout(**inputs["layout"]), words_of(inputs["vector"])
    decoded = decode_sum(words, layout, inputs["clip"], inputs["count_cap"])
    plain = {"count": decoded.count, "members": decoded.members, "exact": decoded.exact.tolist()}
    return {"mean": decoded.mean.tobytes().hex()} | plain


def tag_key(inputs):
    key = tags.TagKey.of(VectorLayout(**inputs["layout"]), unhex(inputs["key"]))
    ends = key.units[:, [0, -1]].ravel().tolist()
    return {"x_first_and_last_of_each_plane": ends, "r": key.tail.tolist(), "s": key.rows.tolist()}


def tag(inputs):
    layout, words = VectorLayout(**inputs["layout"]), words_of(inputs["vector"])
    return {"carries_tag": carries_tag(words, layout, unhex(inputs["key"]), inputs["members"])}


def job(inputs):
    return {"digest": JobFile.from_bytes(inputs["text"].encode()).digest().hex()}


def server_step(inputs):
    terms = FedAvgTerms(learning_rate=inputs["learning_rate"])
    model, _ = steps.server_step(terms, floats(inputs["model"]), floats(inputs["mean"]), steps.Moments())
    return {"model": model.tobytes().hex()}


def server_steps(inputs):
    terms = TypeAdapter(ServerStepField).validate_python(inputs["terms"])
    model = floats(inputs["model"])
    moments, after = steps.first_moments(terms, model.size), []
    for mean in inputs["means"]:
        model, moments = steps.server_step(terms, model, floats(mean), moments)
        after.append({"model": model.tobytes().hex(), "moments": [v.tobytes().hex() for v in moments.vectors]})
    return {"after": after}


def clip(inputs):
    terms = CodecTerms(**inputs["codec"])
    return {"clip": clips.next_clip(terms, inputs["clip"], inputs["fills"], inputs["members"])}


def fill(inputs):
    return {"fill": clips.fill(floats(inputs["update"]), inputs["weight"], inputs["clip"], floats(inputs["residual"]))}


def course(inputs):
    state = _first(inputs)
    states, told = [_standing(state)], []
    for published in inputs["sums"]:
        outcome = state.advance(words_of(published["vector"]), published["members"])
        told.append({"count": outcome.count, "metrics": outcome.metrics})
        states.append(_standing(state))
    return {"states": states, "told": told, "final": state.final.tobytes().hex()}


def snapshot(inputs):
    words = words_of(inputs["vector"])
    state = _first(inputs).standing_at(words)
    assert np.array_equal(state.to_words(), words)
    return _standing(state)


def _first(inputs):
    return GlobalState(JobFile.model_validate(json.loads(inputs["job"])), floats(inputs["initial"]))


def _standing(state):
    return {
        "round": state.round,
        "is_over": state.is_over,
        "clip": state.clip,
        "model": state.model.tobytes().hex(),
        "normalisation": None if state.normalisation is None else state.normalisation.tolist(),
        "best_round": None if state.best is None else state.best.round,
        "hash": state.hash.hex(),
        "key": state.key.hex(),
        "snapshot": state.to_words().tobytes().hex(),
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
    "script": lambda inputs: play(side, inputs),
}
