"""Firms and a server in the middle of a protocol run, with fixed randomness: the stage on which attacks are tried."""

import random
from dataclasses import replace
from hashlib import sha256

import numpy as np

from dure_protocols.identity import Identity
from dure_protocols.messages import (
    Cohort,
    EscrowedJoin,
    Invitation,
    Join,
    MaskedUpdate,
    PublishedSum,
    Release,
    ReleaseRequest,
    Roster,
    VoteRequest,
)
from dure_protocols.secagg.codec import Contribution, VectorLayout, add_contribution
from dure_protocols.secagg.disclosure import Disclosures
from dure_protocols.secagg.firm import FirmSession
from dure_protocols.secagg.server import Attempt, establish_for
from dure_protocols.secagg.terms import Terms

LAYOUT = VectorLayout(parameters=8, bits=12, max_members=4)
MODEL = sha256(b"model").digest()
JOB = sha256(b"job").digest()


class Parties:
    """`names` are firms with sessions; firm number i has the update 2^-i everywhere and one row."""

    def __init__(self, names="abcd", *, minimum_cohort=2, minimum_difference=1, job=JOB, threshold=None):
        chance = random.Random("parties")
        self.randomness = chance.randbytes
        self.identities = {name: Identity.from_seed(sha256(name.encode()).digest()) for name in names}
        keys = {name: identity.public_bytes for name, identity in self.identities.items()}
        self.terms = Terms(job, keys, minimum_cohort, minimum_difference, threshold=threshold)
        self.disclosures = {name: Disclosures() for name in names}
        self.sessions = {name: self.fresh(name) for name in names}
        self.transcript = b""

    def fresh(self, name):
        return FirmSession(name, self.identities[name], self.terms, self.randomness, self.disclosures[name])

    def advertise(self, epoch=1):
        return Roster(JOB, epoch, tuple(s.advertise(epoch) for s in self.sessions.values()))

    def encapsulate(self, roster):
        """Every firm's request to establish."""
        sent = [s.encapsulate(roster) for s in self.sessions.values()]
        return {name: establish_for(name, JOB, roster.epoch, sent) for name in self.sessions}

    def establish(self, epoch=1):
        requests = self.encapsulate(self.advertise(epoch))
        (self.transcript,) = {s.establish(requests[name]) for name, s in self.sessions.items()}
        return self

    def join(self, round_=1, attempt=1, *, who=None, model=MODEL, epoch=1):
        place = (epoch, round_, attempt)
        return tuple(self.sessions[n].join(Invitation(JOB, *place, ()), model, model) for n in who or self.sessions)

    def vector(self, name, cohort):
        keys = self.sessions[name].accept_cohort(cohort)
        vector = keys.mask(LAYOUT)
        update = np.full(LAYOUT.parameters, 2.0 ** -list(self.sessions).index(name), np.float32)
        contribution = Contribution(update, 1.0, 1, np.zeros(0))
        add_contribution(vector, LAYOUT, contribution, clip=1.0, rounding=0, tag_key=keys.tag)
        return vector

    def upload(self, joins, round_=1, attempt=1, *, who=None, epoch=1):
        """Each member's receipt and vector."""
        cohort = Cohort(JOB, epoch, round_, attempt, joins)
        uploads = {}
        for name in who or [join.firm for join in joins]:
            vector = self.vector(name, cohort)
            uploads[name] = (self.sessions[name].sign_upload(sha256(vector.data).digest()), vector)
        return uploads

    def request(self, uploads, round_=1, attempt=1, epoch=1):
        return ReleaseRequest(JOB, epoch, round_, attempt, tuple(receipt for receipt, _ in uploads.values()))

    def attempt(self, joins, uploads, round_=1, attempt=1, epoch=1):
        server = Attempt(self.terms, self.transcript, (epoch, round_, attempt), joins, MODEL)
        for receipt, vector in uploads.values():
            server.add(receipt, vector, LAYOUT)
        return server

    def released(self, round_=1):
        """Run a whole round over everyone."""
        joins = self.join(round_, model=sha256(str(round_).encode()).digest())
        uploads = self.upload(joins, round_)
        return {name: self.sessions[name].release(self.request(uploads, round_)) for name in uploads}


def changed(message: Join | MaskedUpdate | Release, **fields):
    """A message with other fields and the old signature."""
    return replace(message, **fields)
