"""Cases of numbers: masks, the codec, tags, and the global model."""

import numpy as np

from dure_protocols.global_state import GlobalState, layout_of, model_digest
from dure_protocols.job import Agreement, JobFile
from dure_protocols.secagg.codec import Contribution, VectorLayout, add_contribution
from dure_protocols.secagg.layout import TAG_WORDS
from dure_protocols.secagg.rows import tag_of
from dure_protocols.secagg.tags import BLINDING_BYTES, PRIME, OwnTag, TagKey, constant_of
from dure_protocols.secagg.tags import split as split_tag
from tests.vectors.make_bytes import case, hexed
from tests.vectors.make_scene import FOUR, update


def mask_cases():
    context = {
        "job_digest": hexed("job"),
        "transcript": hexed("transcript"),
        "place": [2, 3, 4],
        "cohort": ["firm-c", "firm-a", "firm-b"],
        "model_hash": hexed("model"),
    }
    keys = {"root": hexed("root"), "dealer": "firm-a", "self_seed": hexed("seed"), "tag_key": hexed("tag key")}
    for name, ratchets, changes in (
        ("the keys of an attempt in round 3", 3, {}),
        ("in round 0 the root is as it was established", 0, {"place": [2, 0, 1]}),
        ("a smaller cohort has other keys", 3, {"cohort": ["firm-a", "firm-b"]}),
    ):
        yield case(name, "attempt keys", keys | {"ratchets": ratchets, "context": context | changes})
    one, two, three = (hexed(f"mask {number}") for number in range(3))
    zeros, ones = bytes(40).hex(), (b"\xff" * 40).hex()
    yield case("masks added and subtracted", "masks", {"vector": zeros, "add": [one, two], "subtract": [three]})
    yield case("words overflow modulo 2^64", "masks", {"vector": ones, "add": [one], "subtract": []})
    both = {"vector": ones, "add": [one], "subtract": [one]}
    yield case("what is added and subtracted cancels", "masks", both, {"vector": ones})


MEMBERS = ["firm-a", "firm-b", "firm-c"]
TAG_KEY = hexed("tag key")
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
        "firm": "firm-a",
        "blinding": hexed("blinding"),
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
        tag = OwnTag(bytes.fromhex(given["tag_key"]), given["firm"], bytes.fromhex(given["blinding"]))
        add_contribution(total, shape, contribution, clip=given["clip"], rounding=given["rounding"], tag=tag)
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
            firm=MEMBERS[number - 1],
            blinding=hexed(f"blinding {number}"),
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
        num = min(3, shape[1])
        total = _words(layout, *_three(layout)[:num])
        inputs = {"layout": layout, "key": TAG_KEY, "members": MEMBERS[:num], "vector": total.tobytes().hex()}
        yield case(f"the sum carries its tag: {name}", "tag", inputs, yes)
    layout = _layout(8, 16, 12, 1)
    total = _words(layout, *_three(layout))
    wrong = {"under another key": (total, hexed("other key"))}
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
        inputs = {"layout": layout, "key": TAG_KEY, "members": MEMBERS, "vector": tagged}
        yield case(f"a tail value that is {name}, under its right tag", "tag", inputs, expects)
    moved = total.copy()  # the same field sums, exchanged between two parameters
    moved[0], moved[1] = total[1], total[0]
    wrong["two words exchanged"] = moved, TAG_KEY
    for name, (words, key) in wrong.items():
        inputs = {"layout": layout, "key": key, "members": MEMBERS, "vector": words.tobytes().hex()}
        yield case(f"refused: {name}", "tag", inputs, no)
    true = {"layout": layout, "key": TAG_KEY, "vector": total.tobytes().hex()}
    for name, members in {
        "one member left out": MEMBERS[:2],
        "one member more": [*MEMBERS, "firm-d"],
        "another member in the place of one": [*MEMBERS[:2], "firm-d"],
        "a member named twice": [*MEMBERS[:2], MEMBERS[0]],
    }.items():
        yield case(f"refused: {name}", "tag", true | {"members": members}, no)
    yield case("members in another order are the same", "tag", true | {"members": MEMBERS[::-1]}, yes)


def _retagged(layout, total, value):
    """A sum with another metric, and the tag that belongs to it, as only who holds the key can make it."""
    shape, words = VectorLayout(**layout), total.copy()
    words[shape.tail][-1:].view(np.int64)[0] = value
    key = TagKey.of(shape, bytes.fromhex(TAG_KEY))
    packed = tag_of(words[: shape.packed_words], shape, key)
    tag = key.tag(packed, words[shape.tail].view(np.int64)) + constant_of(bytes.fromhex(TAG_KEY), MEMBERS)
    words[-TAG_WORDS:] = split_tag(tag % PRIME, bytes(BLINDING_BYTES))
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
    agreement = Agreement(name="Valley agreement", version="2", sha256="cd" * 32)
    agreed = _job(purpose="failure prediction", agreement=agreement)
    yield case("a job with a purpose, under an agreement", "job", {"text": agreed.to_bytes().decode()})
    unset = agreed.to_bytes().decode().replace('"purpose":"failure prediction"', '"purpose":null')
    yield case("refused: a purpose that is written and not there", "job", {"text": unset}, {"refusal": "malformed"})
    means = update("mean", 7, 0.01).tobytes().hex()
    for rate in (1.0, 0.7):
        inputs = {"model": INITIAL.tobytes().hex(), "mean": means, "learning_rate": rate}
        yield case(f"the server step at a learning rate of {rate}", "server step", inputs)
    yield from _step_cases()
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


STEPS = {
    "FedAvgM": {"kind": "fedavgm", "learning_rate": 0.7, "momentum": 0.9},
    "FedAdagrad": {"kind": "fedadagrad", "learning_rate": 0.1, "adaptivity": 0.001},
    "FedAdam": {"kind": "fedadam", "learning_rate": 0.01, "momentum": 0.9, "decay": 0.99, "adaptivity": 0.001},
    "FedYogi": {"kind": "fedyogi", "learning_rate": 0.01, "momentum": 0.9, "decay": 0.99, "adaptivity": 0.001},
}


def _step_cases():
    """Means that grow, shrink, are tiny, and are zero; one whose square is what FedYogi has already."""
    rows = (
        update("step 1", 7, 0.01),
        update("step 2", 7, 2.0),
        np.array([0.0, -0.0, 1e-22, -1e-30, 0.001, -0.001, 3.0], "<f4"),
        np.zeros(7, "<f4"),
    )
    means = [row.astype("<f4").tobytes().hex() for row in rows]
    for name, terms in {"FedAvg": {"kind": "fedavg", "learning_rate": 0.7}, **STEPS}.items():
        inputs = {"terms": terms, "model": INITIAL.tobytes().hex(), "means": means}
        yield case(f"four server steps of {name}", "server steps", inputs)
    still = STEPS["FedAdam"] | {"momentum": 0.0, "decay": 0.0}
    inputs = {"terms": still, "model": INITIAL.tobytes().hex(), "means": means}
    yield case("four server steps of FedAdam that remembers nothing", "server steps", inputs)


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
            tag = OwnTag(bytes(32), str(firm), bytes(32))
            add_contribution(total, layout, contribution, clip=state.clip, rounding=firm, tag=tag)
        state.advance(total.copy(), 3)
        yield {"vector": total.tobytes().hex(), "members": 3}


def _course_cases(job):
    moving, plain = job, _job(codec={"clip": 0.25, "count_cap": 1000}, selection_metric=None)
    initial = {"initial": INITIAL.tobytes().hex()}
    for name, of in (
        ("statistics, two training rounds whose sums move the clip, a closing round", moving),
        *((f"with {name}", _job(server_step=terms)) for name, terms in STEPS.items()),
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
    yield from _snapshots_with_moments()
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
    filled = state.to_words()
    filled[-1] |= np.uint64(1 << 63)
    given |= {"vector": filled.tobytes().hex()}
    yield case("refused: a snapshot that is not filled up with zeros", "snapshot", given, {"refusal": "malformed"})
    wrong = inputs | {"sums": [inputs["sums"][0] | {"members": 2}]}
    yield case("refused: a sum that counts more vectors than members", "course", wrong, {"refusal": "malformed"})
    other = inputs | {"initial": (INITIAL + 1).astype("<f4").tobytes().hex()}
    yield case("refused: another first model than the job's", "course", other, {"refusal": "global-model"})


def _snapshots_with_moments():
    for name, terms in STEPS.items():
        job = _job(server_step=terms)
        state = GlobalState(job, INITIAL)
        for published in list(_sums(job))[:3]:
            state.advance(np.frombuffer(bytes.fromhex(published["vector"]), "<u8").copy(), 3)
        given = {"job": job.to_bytes().decode(), "initial": INITIAL.tobytes().hex()}
        words = state.to_words()
        yield case(f"snapshot with the moments of {name}", "snapshot", given | {"vector": words.tobytes().hex()})
    short = words[:-4].tobytes().hex()
    yield case("refused: a snapshot without a moment", "snapshot", given | {"vector": short}, {"refusal": "malformed"})
