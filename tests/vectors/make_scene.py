"""Records scripts: what firms are asked, with fixed randomness, and the requests that follow from their answers."""

from hashlib import shake_256

import numpy as np

from dure_protocols import messages
from dure_protocols.identity import Identity
from dure_protocols.wire import Writer
from tests.vectors import project_side as side
from tests.vectors.reader.script import Stage

SHORTEST_PIECE = 40


def pattern(label, length=32):
    """Bytes that follow from a label."""
    return shake_256(label.encode()).digest(length)


def update(label, size, span=0.25):
    """float32 values between about -span and span."""
    integers = np.frombuffer(pattern(label, 2 * size), "<i2")
    return (integers.astype(np.float64) * (span / 32768)).astype("<f4")


class Recording:
    """Randomness that follows from a label, and remembers what was drawn."""

    def __init__(self, label):
        self._label, self.drawn = label, b""

    def __call__(self, length):
        start = len(self.drawn)
        self.drawn = pattern(self._label, start + length)
        return self.drawn[start:]


class Firms:
    """The firms of one job: names, terms and identities."""

    def __init__(self, title, letters, minimum_cohort=2, threshold=None):
        self.title = title
        self.names = [f"firm-{letter}" for letter in letters]
        self.identities = {name: Identity.from_seed(pattern(f"identity of {name}")) for name in self.names}
        self.job = pattern(f"job of {title}")
        keys = {name: identity.public_bytes.hex() for name, identity in reversed(self.identities.items())}
        limits = {"minimum_cohort": minimum_cohort, "minimum_difference": 1, "minimum_statistics_difference": 2}
        self.terms = {"job_digest": self.job.hex(), "firms": keys, "threshold": threshold} | limits
        self.seeds = {name: pattern(f"identity of {name}").hex() for name in self.names}

    def sign(self, name, label, *parts):
        return self.identities[name].sign(label, self.job, *parts)


THREE = Firms("three firms", "abc")
FOUR = Firms("four firms", "abcd", threshold=3)


class Scene:
    """A script in the making. Every method plays its step on the project's own sessions and keeps it.

    only: keep the steps of these firms; the others' messages then stand in the requests alone.
    """

    def __init__(self, firms, begins_with=None, policy=None, seed=None, only=None, bytes_of=None):
        self.firms, self._seed, self._only = firms, seed or firms.title, only
        self.inputs = {"begins_with": begins_with} if begins_with else {}
        if bytes_of:
            self.inputs["bytes_of"] = bytes_of
        if not begins_with:
            self.inputs |= {"terms": firms.terms, "identity_seeds": firms.seeds}
        if policy:
            self.inputs["policy"] = policy
        self.inputs["steps"] = []
        self._stage = Stage(side, self.inputs)
        self._sources = _Sources(self._stage.known)

    def ask(self, name, firm, request, **given):
        """One request. Returns the reply's message, or the answer as it stands in the vectors if it is none."""
        data = request if isinstance(request, bytes) else messages.encode(request)
        answer = self._take({"name": name, "firm": firm, "request": self._sources.pieces(data), **given})
        return messages.decode(bytes.fromhex(answer["reply"])) if "reply" in answer else answer

    def refused(self, name, firm, request, code, **given):
        """A request that must be refused with this code."""
        answer = self.ask(name, firm, request, **given)
        assert answer == {"refusal": code}, (name, answer)

    def check_sum(self, name, firm, published, vector, layout, model, code=None):
        """A published sum for a firm to check; code: None if it is to accept it."""
        writer = Writer()
        published.write(writer)
        given = {"published": bytes(writer).hex(), "vector": vector, "layout": layout}
        answer = self._take({"name": name, "firm": firm, "sum": given | model})
        assert answer == ({"refusal": code} if code else {"accepted": True}), (name, answer)

    def check_witnesses(self, name, firm, invitation, model_hash, code=None):
        given = {"witnesses": self._sources.pieces(messages.encode(invitation)), "model_hash": model_hash}
        answer = self._take({"name": name, "firm": firm, **given})
        assert answer == ({"refusal": code} if code else {"accepted": True}), (name, answer)

    def retire(self, name, firm):
        self._take({"name": name, "firm": firm, "retire": True})

    def open(self, name, **wanted):
        """The server's sum, as in the vectors."""
        wanted = {"name": name} | wanted
        if self._only:
            return self._stage.opened(wanted)
        self.inputs.setdefault("sums", []).append(wanted)
        return self._stage.opened(wanted)

    def reply(self, name):
        """The reply to an earlier step, of a script that this one goes on from perhaps."""
        return messages.decode(bytes.fromhex(self._stage.replies[name]["reply"]))

    def case(self, name, shows):
        return {"name": name, "operation": "script", "shows": shows, "inputs": self.inputs}

    def _take(self, step):
        draw = Recording(f"{self._seed}: {step['name']}")
        answer = self._stage.take(step, draw)
        if draw.drawn:
            step["randomness"] = draw.drawn.hex()
        if not self._only or step["firm"] in self._only:
            self.inputs["steps"].append(step)
            self._sources.add(self._stage.known, step["name"])
        return answer


class _Sources:
    """Known bytes, of which a request may repeat pieces; found by their first bytes."""

    def __init__(self, known):
        self._known, self._starts = {}, {}
        for name, data in known.items():
            self._index(name, data)

    def add(self, known, step):
        for name in (f"{step}: request", f"{step}: reply"):
            if name in known:
                self._index(name, known[name])

    def pieces(self, data):
        """Hex, or a list of hex and of the longest known pieces, from left to right."""
        made, literal, at = [], b"", 0
        while at < len(data):
            name, start, length = self._longest(data, at)
            if not length:
                literal, at = literal + data[at : at + 1], at + 1
                continue
            made += [literal.hex()] if literal else []
            made.append([name, start, start + length])
            literal, at = b"", at + length
        made += [literal.hex()] if literal else []
        return made if any(isinstance(piece, list) for piece in made) else data.hex()

    def _index(self, name, data):
        self._known[name] = data
        for start in range(len(data) - SHORTEST_PIECE):
            self._starts.setdefault(data[start : start + SHORTEST_PIECE], (name, start))

    def _longest(self, data, at):
        name, start = self._starts.get(data[at : at + SHORTEST_PIECE], (None, 0))
        if name is None:
            return None, 0, 0
        source, length = self._known[name], 0
        while at + length < len(data) and start + length < len(source) and data[at + length] == source[start + length]:
            length += 1
        return name, start, length
