"""Requests with bits flipped on the way to a firm's whole side: a typed refusal each, and the job runs on."""

import random

import numpy as np
import pytest

from dure_client.jobs.side import Given
from dure_protocols.errors import MessageError
from dure_protocols.messages import EscrowedJoin, JobRequest, Join, MaskedUpdate, Refusal, decode
from dure_protocols.secagg.disclosure import Disclosures
from tests.simulation.consortium import Consortium
from tests.simulation.test_rounds import close

JOB_DIGEST = slice(1, 33)  # the agent finds the job by it; the firm's side is not asked about another


class FlippedBits:
    """Gives firm-b, before each request of its coordinator, `num` versions of it with one bit flipped."""

    def __init__(self, consortium, num, seed):
        self._firm, self._num, self._chance = consortium.firms["firm-b"], num, random.Random(seed)
        self.refused, self.malformed = 0, 0
        self._link = consortium.link
        consortium.link.tampering = self.tamper

    def tamper(self, name, body):
        if name == self._firm.name and self._firm.side is not None and isinstance(decode(body), JobRequest):
            for _ in range(self._num):
                self._give(body)
        return body

    def _give(self, body):
        bit = self._chance.randrange(8 * JOB_DIGEST.stop, 8 * len(body))
        damaged = bytearray(body)
        damaged[bit // 8] ^= 1 << bit % 8
        session, memory = self._firm.side._session, self._firm.released.disclosures
        before, remembered = session.snapshot(), memory.to_bytes()
        try:
            answer, arrays = self._firm.handle(bytes(damaged), self._given(body))
        except MessageError:
            self.malformed += 1
            return
        message = decode(answer)
        if isinstance(message, Refusal):
            assert not arrays
            self.refused += 1
        elif isinstance(message, MaskedUpdate):
            assert message.complaints  # a delivery was damaged
        else:
            join = message.join if isinstance(message, EscrowedJoin) else message
            assert isinstance(join, Join)  # of an attempt of another number, or what was flipped was applied before
            assert join.model_hash == self._firm.side.state.hash
        session.restore(before)
        vars(memory).update(vars(Disclosures.from_bytes(remembered)))

    def _given(self, body):
        ask = next(ask for ask in self._link.asked.values() if ask.body == body)
        return Given({name: self._link.shared[digest] for name, digest in ask.arrays.items()}, dict(ask.arrays))


@pytest.mark.parametrize(("num_firms", "threshold"), [(3, None), (5, 4)], ids=["retry", "threshold"])
def test_requests_with_any_bit_flipped_are_refused_and_the_job_ends_with_the_right_model(
    tmp_path, num_firms, threshold
):
    consortium = Consortium(tmp_path, num_firms=num_firms, rounds=2, threshold=threshold)
    flipped = FlippedBits(consortium, 60, seed=num_firms)
    consortium.run()
    mean = np.mean([2.0**-rank for rank in range(1, num_firms + 1)])
    assert close(consortium.coordinator.state.model, 2 * mean, 2)
    assert {firm.side.state.hash for firm in consortium.firms.values()} == {consortium.coordinator.state.hash}
    assert all(len(members) == num_firms for members in consortium.members_by_round().values())
    assert flipped.refused > 400
    assert flipped.malformed > 20


@pytest.mark.parametrize("cut", [1, 9, -1])
def test_requests_cut_short_or_extended_are_no_messages(tmp_path, cut):
    consortium = Consortium(tmp_path, rounds=1)
    firm, seen = consortium.firms["firm-b"], []

    def cut_short_first(name, body):
        if name == "firm-b" and firm.side is not None:
            with pytest.raises(MessageError):
                firm.handle(body[:-cut] if cut > 0 else body + b"\0", Given())
            seen.append(body[0])
        return body

    consortium.link.tampering = cut_short_first
    consortium.run()
    assert len(set(seen)) >= 5
    assert firm.side.state.hash == consortium.coordinator.state.hash
