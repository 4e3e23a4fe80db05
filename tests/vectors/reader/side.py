"""This implementation as a side of `script.play`."""

import numpy as np

from . import codec, keys, messages, sharing, wire
from .firm import Firm
from .wire import Refused

__all__ = ["Refused", "firm", "unmask"]


def layout_of(values):
    return codec.Layout(values["parameters"], values["bits"], values["max_members"], values["exact"])


def floats(text):
    return None if text is None else np.frombuffer(bytes.fromhex(text), "<f4")


def firm(name, seed, terms):
    return _Side(Firm(name, seed, terms))


class _Side:
    def __init__(self, inner):
        self.firm = inner

    def answer(self, data, step, draw, encapsulations):
        request = messages.decode(data)
        inner, kind = self.firm, request["kind"]
        if kind == "Cohort":
            return self._update(request, step, draw)
        if kind == "AskKeys":
            reply = inner.advertise(request, draw)
        elif kind == "Roster":
            reply = inner.encapsulate(request, draw, encapsulations)
        elif kind == "Establish":
            reply = inner.establish(request)
        elif kind == "Invitation":
            model = bytes.fromhex(step["model_hash"]), bytes.fromhex(step["model_key"])
            reply = inner.join(request, *model, draw)
        elif kind == "VoteRequest":
            reply = inner.vote(request)
        else:
            reply = inner.release(request)
        answer = {"reply": messages.encode(reply).hex()}
        return answer | self._roots() if kind == "Establish" else answer

    def _roots(self):
        inner = self.firm
        roots = {peer: root.hex() for peer, root in sorted(inner.roots.items())}
        return {"tag_key": inner.epochs[inner.epoch][1].hex(), "roots": roots}

    def _update(self, request, step, draw):
        add, subtract, tag_key = self.firm.accept_cohort(request)
        given = step["contribution"]
        layout, update = layout_of(given["layout"]), floats(given["update"])
        rounding = int.from_bytes(draw(8), "big")
        plain = (update, given["weight"], given["count"], given["exact"], given["clip"])
        vector, _ = codec.contribution(layout, *plain, rounding, tag_key, self.firm.name, draw(32))
        data = wire.from_words(codec.add_masks(vector, add, subtract))
        return {
            "added": [key.hex() for key in add],
            "subtracted": [key.hex() for key in subtract],
            "tag_key": tag_key.hex(),
            "vector": data.hex(),
            "reply": messages.encode(self.firm.sign_upload(data)).hex(),
        }

    def check_sum(self, given):
        published = messages.decode_fields(messages.PUBLISHED_SUM, bytes.fromhex(given["published"]))
        total, layout = wire.words(bytes.fromhex(given["vector"])), layout_of(given["layout"])
        hashes = bytes.fromhex(given["model_hash"]), bytes.fromhex(given["model_key"])
        self.firm.check_sum(published, total, layout, *hashes)

    def check_witnesses(self, data, model_hash):
        self.firm.check_witnesses(messages.decode(data), model_hash)

    def retire(self):
        self.firm.retire()


def unmask(terms, wanted, replies):
    """The server's part (section 6.6): the sum of masked vectors without masks."""

    def messages_of(steps):
        return [messages.decode(bytes.fromhex(replies[step]["reply"])) for step in steps]

    joined = messages_of(wanted["joins"])
    escrows = {reply["join"]["firm"]: reply["escrow"] for reply in joined if reply["kind"] == "EscrowedJoin"}
    members = sorted(reply.get("join", reply)["firm"] for reply in joined)
    (established,) = messages_of([wanted["established"]])
    place = wanted["place"]
    job, model = bytes.fromhex(terms["job_digest"]), bytes.fromhex(wanted["model_hash"])
    context = keys.mask_context(job, established["transcript"], place, members, model)
    uploads = {
        reply["firm"]: step for reply, step in zip(messages_of(wanted["uploads"]), wanted["uploads"], strict=True)
    }
    releases = {reply["firm"]: reply for reply in messages_of(wanted["releases"])}
    vectors = [wire.words(bytes.fromhex(replies[step]["vector"])) for step in uploads.values()]
    total = [sum(column) % 2**64 for column in zip(*vectors, strict=True)]
    survivors, firms, threshold = sorted(uploads), list(terms["firms"]), terms["threshold"]
    add, subtract = [], []
    for survivor in survivors:
        if survivor in releases:
            seed = releases[survivor]["seed"]
        else:
            given = _given(releases, "self_shares", survivor)
            seed = sharing.recover_self_seed(firms, threshold, escrows[survivor], given)
        subtract.append(keys.self_mask_key(seed, context))
    for gone in (member for member in members if member not in survivors):
        given = _given(releases, "escrow_shares", gone)
        opened = sharing.recover_attempt_keys(firms, threshold, gone, escrows[gone], given)
        for survivor in survivors:
            key = keys.pair_mask_key(opened[survivor], context)
            (subtract if survivor < gone else add).append(key)
    opened = codec.add_masks(total, add, subtract)
    return {
        "members": members,
        "survivors": survivors,
        "context": context.hex(),
        "vector": wire.from_words(opened).hex(),
    }


def _given(releases, which, dealer):
    """The shares of a dealer that firms released, by firm."""
    return {firm: share for firm, release in releases.items() for name, share in release[which] if name == dealer}
