"""The project's own firms and server as a side of `reader.script.play`."""

from hashlib import sha256

import numpy as np

from dure_protocols import messages
from dure_protocols.errors import MessageError, RefusalCode, RefusedError
from dure_protocols.identity import Identity
from dure_protocols.messages import EscrowedJoin, Established, PublishedSum
from dure_protocols.secagg.codec import Contribution, VectorLayout, add_contribution
from dure_protocols.secagg.disclosure import Disclosures
from dure_protocols.secagg.firm import FirmSession
from dure_protocols.secagg.server import Attempt
from dure_protocols.secagg.session_state import SessionState
from dure_protocols.secagg.tags import BLINDING_BYTES, OwnTag
from dure_protocols.secagg.terms import Terms
from dure_protocols.wire import Reader

unhex = bytes.fromhex
Refused = RefusedError


def floats(text):
    return None if text is None else np.frombuffer(unhex(text), "<f4").copy()


def words_of(text):
    return np.frombuffer(unhex(text), "<u8").copy()


def decoded(data):
    """A message; that bytes are none is a refusal as any other here, as it is at a firm."""
    try:
        return messages.decode(data)
    except MessageError as error:
        raise RefusedError(RefusalCode.MALFORMED, str(error)) from error


def fields_of(cls, data):
    reader = Reader(data)
    value = cls.read(reader)
    reader.end()
    return value


def terms_of(values):
    firms = {firm: unhex(key) for firm, key in values["firms"].items()}
    names = "minimum_cohort", "minimum_difference", "minimum_statistics_difference", "threshold"
    return Terms(unhex(values["job_digest"]), firms, **{name: values[name] for name in names})


def firm(name, seed, terms):
    return _Side(name, Identity.from_seed(seed), terms_of(terms))


class _Side:
    """A session, and what a step lends it: randomness and encapsulations."""

    def __init__(self, name, identity, terms):
        self.draw = self.encapsulations = None
        self.name = name
        lent = self._drawn, Disclosures(), self._encapsulated
        self.session = FirmSession(name, identity, terms, *lent)

    def _drawn(self, length):
        return self.draw(length)

    def _encapsulated(self, public_key):
        return next(self.encapsulations)

    def answer(self, data, step, draw, encapsulations):
        self.draw, self.encapsulations = draw, encapsulations
        request, session = decoded(data), self.session
        match request:
            case messages.AskKeys():
                reply = session.advertise(request.epoch)
            case messages.Roster():
                reply = session.encapsulate(request)
            case messages.Establish():
                reply = Established(self.name, request.epoch, session.establish(request))
                return {"reply": messages.encode(reply).hex()} | self._roots()
            case messages.Invitation():
                reply = session.join(request, unhex(step["model_hash"]), unhex(step["model_key"]))
            case messages.Cohort():
                return self._update(request, step)
            case messages.VoteRequest():
                reply = session.vote(request)
            case messages.ReleaseRequest():
                reply = session.release(request)
        return {"reply": messages.encode(reply).hex()}

    def _roots(self):
        reader = Reader(self.session.snapshot()[33:])
        state = SessionState.read(reader)
        return {"tag_key": state.epochs[-1].tag_key.hex(), "roots": {peer: root.hex() for peer, root in state.roots}}

    def _update(self, request, step):
        keys = self.session.accept_cohort(request)
        given = step["contribution"]
        layout = VectorLayout(**given["layout"])
        vector = keys.mask(layout)
        exact = np.array(given["exact"], np.float64)
        contribution = Contribution(floats(given["update"]), given["weight"], given["count"], exact)
        rounding = int.from_bytes(self.draw(8), "big")
        tag = OwnTag(keys.tag, self.name, self.draw(BLINDING_BYTES))
        add_contribution(vector, layout, contribution, clip=given["clip"], rounding=rounding, tag=tag)
        receipt = self.session.sign_upload(sha256(vector.data).digest())
        return {
            "added": [key.hex() for key in keys.add],
            "subtracted": [key.hex() for key in keys.subtract],
            "tag_key": keys.tag.hex(),
            "vector": vector.tobytes().hex(),
            "reply": messages.encode(receipt).hex(),
        }

    def check_sum(self, given):
        published = fields_of(PublishedSum, unhex(given["published"]))
        layout, vector = VectorLayout(**given["layout"]), words_of(given["vector"])
        self.session.check_sum(published, vector, layout, unhex(given["model_hash"]))
        self.session.note_sum(published, unhex(given["model_key"]))

    def check_witnesses(self, data, model_hash):
        self.session.check_witnesses(decoded(data), model_hash)

    def retire(self):
        self.session.retire()


def unmask(terms, wanted, replies):
    """The server's part: masked vectors added and opened."""

    def messages_of(steps):
        return [messages.decode(unhex(replies[step]["reply"])) for step in steps]

    replied = messages_of(wanted["joins"])
    escrows = [reply for reply in replied if isinstance(reply, EscrowedJoin)]
    joins = [reply.join if isinstance(reply, EscrowedJoin) else reply for reply in replied]
    (established,) = messages_of([wanted["established"]])
    place, model = tuple(wanted["place"]), unhex(wanted["model_hash"])
    attempt = Attempt(terms_of(terms), established.transcript, place, joins, model, escrows)
    for step, receipt in zip(wanted["uploads"], messages_of(wanted["uploads"]), strict=True):
        attempt.add(receipt, words_of(replies[step]["vector"]), VectorLayout(**wanted["layout"]))
    survivors = list(attempt.survivors)
    total = attempt.unmask({release.firm: release for release in messages_of(wanted["releases"])})
    return {
        "members": list(attempt.members),
        "survivors": survivors,
        "context": attempt.context.hex(),
        "vector": total.tobytes().hex(),
    }
