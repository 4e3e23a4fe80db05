"""Requests changed on the way: in each field, bit by bit, cut short, extended, oversized.

Each changed request goes to a copy of the session first. What the copy refuses must be refused with a typed error and
leave the session as it was; then the real session gets it, too, and must still complete the honest round. What a copy
does not refuse is listed here with the reason.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from hashlib import sha256

import numpy as np
import pytest

from dure_protocols.errors import MessageError, RefusedError
from dure_protocols.messages import MAX_MESSAGE_BYTES, decode, encode
from dure_protocols.secagg.server import establish_for
from tests.protocols.secagg.parties import MODEL, Parties

RETRY, THRESHOLD = ("abcd", None), ("abcde", 4)
MODES = pytest.mark.parametrize("mode", [RETRY, THRESHOLD], ids=["retry", "threshold"])

HARMLESS = {
    "job_digest": "the firm's side looks the job up by it; nothing else depends on it",
    "reversed": "a set of firms has no order",
    "Cohort.joins.shorter": "another cohort, large enough: its masks cancel with nobody who was shown this one",
    "Cohort.deliveries.key_commitment": "named in the receipt's complaints",
    "Cohort.deliveries.shares": "named in the receipt's complaints",
    "VoteRequest.uploads.shorter": "another survivor set, large enough: the firm is free to vote for it, once",
    "PublishedSum.vector_digest": "the firm's side compares it with the array's; the tag says more",
    "ReleaseRequest.votes.shorter": "still as many votes as the threshold",
}


@dataclass(frozen=True)
class Change:
    """A changed message. where: the path of field names."""

    where: str
    message: object

    @property
    def is_harmless(self) -> bool:
        path = f"{type(self.message).__name__}.{self.where}"
        return "job_digest" in path or path.endswith("reversed") or any(path.startswith(known) for known in HARMLESS)


def changes_of(message) -> Iterator[Change]:
    """The message with each of its fields changed in each way that its type knows, fields of fields included."""
    for entry in fields(message):
        for where, value in _values(getattr(message, entry.name)):
            yield Change(f"{entry.name}{where}", replace(message, **{entry.name: value}))


def _values(value) -> Iterator[tuple[str, object]]:
    if isinstance(value, int):
        yield from (("", other) for other in {value + 1, max(value - 1, 0), value ^ (1 << 63)} - {value})
    elif isinstance(value, bytes):
        for at in {0, len(value) // 2, len(value) - 1} if value else ():
            yield "", value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
        yield "", bytes(len(value)) if any(value) else b"\x01" * max(len(value), 1)
    elif isinstance(value, str):
        yield from (("", other) for other in ("a", "b", "stranger", "") if other != value)
    elif is_dataclass(value):
        yield from ((f".{change.where}", change.message) for change in changes_of(value))
    elif isinstance(value, tuple) and value:
        yield from [(".shorter", value[1:]), (".longer", (*value, value[0])), (".empty", ())]
        if len(value) > 1:
            yield ".reversed", value[::-1]
        for at in {0, len(value) - 1}:
            for where, other in _values(value[at]):
                yield where, (*value[:at], other, *value[at + 1 :])


class Trial:
    """Firm `name` among honest parties. Before it takes each request, it is given every changed one."""

    def __init__(self, mode, name, changed: Callable[[object], Iterator[Change]]):
        self.parties = Parties(mode[0], threshold=mode[1])
        self.mode, self.name, self.changed = mode, name, changed
        self.tried = 0

    def give(self, request, answer):
        """Answer an honest request after all the changed ones. answer(session, request)."""
        session = self.parties.sessions[self.name]
        for change in self.changed(request):
            before = session.snapshot()
            copy = self.parties.copy(self.name)
            refusal = _refusal_of(answer, copy, change.message)
            if refusal is None:
                assert change.is_harmless, f"accepted with another {change.where}"
                continue
            assert copy.snapshot() == before, f"a refused request left a trace: {change.where}"
            assert _refusal_of(answer, session, change.message) is not None
            self.tried += 1
        return answer(session, request)

    def run(self):
        """An epoch and a round. Returns the mean."""
        parties, name = self.parties, self.name
        roster = parties.advertise()
        sent = {}
        for firm, session in parties.sessions.items():
            sent[firm] = (
                self.give(roster, lambda s, r: s.encapsulate(r)) if firm == name else session.encapsulate(roster)
            )
        requests = {firm: self._establish(firm, sent.values()) for firm in parties.sessions}
        transcripts = {
            firm: self.give(requests[firm], lambda s, r: s.establish(r))
            if firm == name
            else session.establish(requests[firm])
            for firm, session in parties.sessions.items()
        }
        (parties.transcript,) = set(transcripts.values())
        joins = parties.join()
        uploads = parties.upload(joins, who=[firm for firm in parties.sessions if firm != name])
        keys = self.give(parties.cohort(name, joins), lambda s, r: s.accept_cohort(r))
        vector = parties.contribute(name, keys.mask(parties.layout), keys.tag)
        uploads[name] = (parties.sessions[name].sign_upload(sha256(vector.data).digest()), vector)
        votes = ()
        if self.mode[1]:
            request = parties.vote_request(uploads)
            others = tuple(session.vote(request) for firm, session in parties.sessions.items() if firm != name)
            votes = (*others, self.give(request, lambda s, r: s.vote(r)))
        request = parties.release_request(uploads, votes=votes)
        server = parties.filled(joins, uploads)
        releases = {firm: session.release(request) for firm, session in parties.sessions.items() if firm != name}
        releases[name] = self.give(request, lambda s, r: s.release(r))
        total = server.unmask(releases)
        published = parties.published(server, total)
        self.give(published, lambda s, p: _check(s, p, total, parties.layout))
        return parties.mean(total)

    def _establish(self, firm, sent):
        return establish_for(firm, self.parties.terms.job_digest, 1, sent)


def _refusal_of(answer, session, message):
    """Why a message is refused, None if it is not. Any other exception than a peer's fault goes through."""
    try:
        answer(session, message)
    except (RefusedError, MessageError) as error:
        return error


def _check(session, published, total, layout):
    session.check_sum(published, total, layout, MODEL)


@MODES
@pytest.mark.parametrize("name", ["a", "b", "d"])
def test_a_request_changed_in_any_field_is_refused_and_the_honest_round_still_completes(mode, name):
    trial = Trial(mode, name, changes_of)
    assert np.allclose(trial.run(), trial.parties.mean_of(mode[0]), atol=1e-3)
    assert trial.tried > 150


def flipped(num, seed):
    """The message with single bits of its encoding flipped; what no longer decodes must raise MessageError."""
    chance = random.Random(seed)

    def changes(message):
        data = encode(message) if hasattr(message, "kind") else b""
        for _ in range(num if data else 0):
            bit = chance.randrange(8, 8 * len(data))
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            try:
                other = decode(bytes(damaged))
            except MessageError:
                continue
            yield from _told_apart(message, other)

    return changes


def _told_apart(message, other) -> Iterator[Change]:
    """Under the names of the fields that differ, so that what is harmless is known as such."""
    if type(message) is not type(other):
        return
    differ = [f.name for f in fields(message) if getattr(message, f.name) != getattr(other, f.name)]
    for name in differ:
        yield Change(_part_of_deliveries(message, other) if name == "deliveries" else name, other)


def _part_of_deliveries(message, other):
    """Shares that do not open are complained of and harm nobody; who dealt them is no share."""
    dealers = ([delivery.dealer for delivery in changed.deliveries] for changed in (message, other))
    return "deliveries.shares" if next(dealers) == next(dealers) else "deliveries.dealer"


@MODES
def test_a_request_with_any_bit_flipped_is_refused_and_the_honest_round_still_completes(mode):
    trial = Trial(mode, "b", flipped(250, seed=11))
    assert np.allclose(trial.run(), trial.parties.mean_of(mode[0]), atol=1e-3)
    assert trial.tried > 400


def every_request(mode):
    """One of each request of a round, as bytes."""
    parties = Parties(mode[0], threshold=mode[1])
    roster = parties.advertise()
    requests = parties.encapsulate(roster)
    (parties.transcript,) = {session.establish(requests[name]) for name, session in parties.sessions.items()}
    joins = parties.join()
    uploads = parties.upload(joins)
    votes = parties.votes(uploads) if mode[1] else ()
    messages = [roster, requests["b"], parties.invitation(), parties.cohort("a", joins), joins[0], uploads["a"][0]]
    messages += [parties.vote_request(uploads), parties.release_request(uploads, votes=votes), *votes[:1]]
    return [encode(message) for message in messages]


@MODES
def test_a_message_cut_short_anywhere_or_extended_is_no_message(mode):
    for data in every_request(mode):
        decode(data)
        for length in {*range(min(len(data), 200)), *range(0, len(data), 37), len(data) - 1}:
            with pytest.raises(MessageError):
                decode(data[:length])
        for more in (b"\0", b"\xff" * 9, data):
            with pytest.raises(MessageError):
                decode(data + more)


def test_an_oversized_message_is_refused_unread():
    with pytest.raises(MessageError, match="at most"):
        decode(bytes([5]) + bytes(MAX_MESSAGE_BYTES))


@MODES
def test_a_message_that_announces_more_than_it_holds_is_refused(mode):
    """Counts of items and lengths of texts set to the largest number, wherever four bytes may be one."""
    for data in every_request(mode):
        for at in range(1, min(len(data) - 4, 400)):
            damaged = data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :]
            try:
                message = decode(damaged)
            except MessageError:
                continue
            assert len(encode(message)) == len(damaged)
