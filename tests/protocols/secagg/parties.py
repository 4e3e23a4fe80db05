"""Firms and a server in the middle of a protocol run, with fixed randomness: the stage on which attacks are tried."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import pytest

from dure_protocols.errors import RefusedError
from dure_protocols.identity import Identity
from dure_protocols.messages import (
    Cohort,
    EscrowedJoin,
    Invitation,
    Join,
    PublishedSum,
    ReleaseRequest,
    Roster,
    VoteRequest,
)
from dure_protocols.secagg.codec import Contribution, VectorLayout, add_contribution, decode_sum
from dure_protocols.secagg.disclosure import Disclosures
from dure_protocols.secagg.firm import FirmSession
from dure_protocols.secagg.server import Attempt, establish_for
from dure_protocols.secagg.tags import BLINDING_BYTES, OwnTag
from dure_protocols.secagg.terms import Terms

MODEL = sha256(b"model").digest()
OTHER_MODEL = sha256(b"another model").digest()
JOB = sha256(b"job").digest()
FIRST = (1, 1, 1)
"""Epoch, round and attempt, where a test does not say another."""


@dataclass
class Opened:
    """A round that was opened. total: the sum's words; published: what goes with them; vectors: what each firm gave,
    without masks."""

    total: np.ndarray
    published: PublishedSum
    releases: dict


class Parties:
    """`names` are firms with sessions; firm number i has the update 2^-i everywhere, one row, and the exact value i.

    Everything takes place at `at`, (epoch, round, attempt), among `who`, everybody unless told otherwise.
    """

    def __init__(
        self,
        names="abcd",
        *,
        threshold=None,
        parameters=8,
        minimum_cohort=2,
        minimum_difference=1,
        job=JOB,
        seed="parties",
    ):
        self.randomness = random.Random(seed).randbytes
        self.identities = {name: Identity.from_seed(sha256(name.encode()).digest()) for name in names}
        keys = {name: identity.public_bytes for name, identity in self.identities.items()}
        self.terms = Terms(job, keys, minimum_cohort, minimum_difference, threshold=threshold)
        self.layout = VectorLayout(parameters, 12, len(names), exact=1)
        self.disclosures = {name: Disclosures() for name in names}
        self.sessions = {name: self.fresh(name) for name in names}
        self.updates = {name: np.full(parameters, 2.0**-place, np.float32) for place, name in enumerate(self.sessions)}
        self.transcript = b""

    def fresh(self, name):
        """A session that knows nothing yet."""
        return FirmSession(name, self.identities[name], self.terms, self.randomness, self.disclosures[name])

    def copy(self, name):
        """Another session in the state of this one: what a colluding firm runs to say two things, or a restart."""
        made = FirmSession(name, self.identities[name], self.terms, self.randomness, Disclosures())
        made.restore(self.sessions[name].snapshot())
        return made

    def advertise(self, epoch=1):
        return Roster(self.terms.job_digest, epoch, tuple(s.advertise(epoch) for s in self.sessions.values()))

    def encapsulate(self, roster):
        """Every firm's request to establish."""
        sent = [session.encapsulate(roster) for session in self.sessions.values()]
        return {name: establish_for(name, self.terms.job_digest, roster.epoch, sent) for name in self.sessions}

    def establish(self, epoch=1):
        requests = self.encapsulate(self.advertise(epoch))
        (self.transcript,) = {session.establish(requests[name]) for name, session in self.sessions.items()}
        return self

    def invitation(self, at=FIRST):
        return Invitation(self.terms.job_digest, *at, ())

    def join(self, at=FIRST, *, who=None, model=MODEL):
        invitation = self.invitation(at)
        return tuple(self.sessions[name].join(invitation, model, model) for name in who or self.sessions)

    def attempt(self, joins, at=FIRST, *, model=MODEL):
        """The server's side of an attempt."""
        escrows = [join for join in joins if isinstance(join, EscrowedJoin)]
        return Attempt(self.terms, self.transcript, at, plain(joins), model, escrows)

    def cohort(self, name, joins, at=FIRST):
        """What the server sends to one member."""
        return Cohort(self.terms.job_digest, *at, plain(joins), self.attempt(joins, at).deliveries_for(name))

    def contribute(self, name, words, tag_key):
        """Add what a firm gives to words, which hold masks or zeros."""
        place = list(self.sessions).index(name)
        given = Contribution(self.updates[name], 1.0, 1, np.array([float(place)]))
        tag = OwnTag(tag_key, name, self.randomness(BLINDING_BYTES))
        add_contribution(words, self.layout, given, clip=1.0, rounding=place, tag=tag)
        return words

    def masked(self, session, name, cohort):
        """A member's masked vector."""
        keys = session.accept_cohort(cohort)
        return self.contribute(name, keys.mask(self.layout), keys.tag)

    def upload(self, joins, at=FIRST, *, who=None):
        """Each member's receipt and masked vector."""
        uploads = {}
        for name in who or [join.firm for join in joins]:
            vector = self.masked(self.sessions[name], name, self.cohort(name, joins, at))
            uploads[name] = (self.sessions[name].sign_upload(sha256(vector.data).digest()), vector)
        return uploads

    def filled(self, joins, uploads, at=FIRST, *, model=MODEL):
        """The server's side of an attempt with these vectors in."""
        server = self.attempt(joins, at, model=model)
        for receipt, vector in uploads.values():
            server.add(receipt, vector, self.layout)
        return server

    def vote_request(self, uploads, at=FIRST):
        return VoteRequest(self.terms.job_digest, *at, receipts_of(uploads))

    def votes(self, uploads, at=FIRST, *, who=None):
        request = self.vote_request(uploads, at)
        return tuple(self.sessions[name].vote(request) for name in who or uploads)

    def release_request(self, uploads, at=FIRST, *, votes=()):
        """In threshold mode by votes, in retry mode by receipts."""
        return ReleaseRequest(self.terms.job_digest, *at, () if votes else receipts_of(uploads), votes)

    def run(self, at=FIRST, *, who=None, survivors=None, releasing=None, model=MODEL):
        """A whole attempt. survivors: who uploads; releasing: who opens; everybody left unless told otherwise."""
        joins = self.join(at, who=who, model=model)
        uploads = self.upload(joins, at, who=survivors)
        server = self.filled(joins, uploads, at, model=model)
        votes = self.votes(uploads, at) if self.terms.threshold else ()
        request = self.release_request(uploads, at, votes=votes)
        releases = {name: self.sessions[name].release(request) for name in releasing or uploads}
        total = server.unmask(releases)
        return Opened(total, self.published(server, total), releases)

    def published(self, server, total):
        digest = sha256(total.data).digest()
        return PublishedSum(*server.place, server.members, server.survivors, digest)

    def mean(self, words):
        return decode_sum(words, self.layout, 1.0, 1).mean

    def mean_of(self, names: Iterable[str]):
        """What the mean over these firms is, but for rounding."""
        return np.mean([self.updates[name] for name in names], axis=0)


def plain(joins) -> tuple[Join, ...]:
    """Joins without their escrows."""
    return tuple(join.join if isinstance(join, EscrowedJoin) else join for join in joins)


def receipts_of(uploads):
    return tuple(receipt for receipt, _ in uploads.values())


def changed(message, **fields):
    """A message with other fields and the old signature."""
    return replace(message, **fields)


class refused:  # noqa: N801  reads as `with refused(code):`
    """The block ends in a refusal with this code."""

    def __init__(self, code, match=None):
        self._code, self._raises = code, pytest.raises(RefusedError, match=match)

    def __enter__(self):
        self._info = self._raises.__enter__()
        return self._info

    def __exit__(self, *exc):
        assert self._raises.__exit__(*exc), "something else was raised"
        assert self._info.value.code is self._code
        return True
