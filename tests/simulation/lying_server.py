"""A server of retry mode that shows each firm whatever it likes, over the firms' whole sides; and firms that let it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dure_client.jobs.side import Given
from dure_protocols.global_state import layout_of
from dure_protocols.messages import (
    ARRAY_MASKED,
    Cohort,
    Invitation,
    Join,
    MaskedUpdate,
    PublishedSum,
    Refusal,
    Release,
    ReleaseRequest,
    decode,
    encode,
)
from dure_protocols.secagg import rows
from dure_protocols.secagg.codec import Words, decode_sum
from dure_protocols.secagg.firm import FirmSession
from dure_protocols.secagg.server import Attempt
from dure_protocols.secagg.terms import Terms
from dure_protocols.server_step import Moments, server_step
from tests.simulation.consortium import Consortium

SERVERS_WORD = b"a model as the server says, 32 b"


class WithoutTags(FirmSession):
    """A firm that believes any sum: the control without the first defence."""

    def check_sum(self, *_: object) -> None:
        pass


class WithoutTagsAndHashes(WithoutTags):
    """A firm that also takes the server's word for what model all stand on: the control without any defence."""

    def join(self, invitation, model_hash, model_key):
        return super().join(invitation, SERVERS_WORD, model_key)


@dataclass(frozen=True)
class Sum:
    """A sum and its vector, true or forged."""

    entry: PublishedSum
    words: Words

    def with_words(self, words: Words) -> "Sum":
        return Sum(replace(self.entry, vector_digest=hashlib.sha256(words.tobytes()).digest()), words)


class LyingServer:
    """Drives the firms of a consortium by hand. `attempt` gives the sum, or the firms' refusals by name."""

    def __init__(self, consortium: Consortium, firms_run: type[FirmSession] = FirmSession) -> None:
        self.consortium, self.job = consortium, consortium.job
        coordinator = consortium.start()
        coordinator._agreement.gather_approvals()
        self._keys = coordinator._agreement.agree_keys()
        self._attempts = 0
        for firm in consortium.firms.values():
            firm.side._session.__class__ = firms_run

    def ask(self, firm: str, request, given: Given | None = None):
        body, arrays = self.consortium.firms[firm].handle(encode(request), given or Given())
        return decode(body), arrays

    def attempt(self, round_: int, sums: Mapping[str, Sum] | None = None) -> Sum | dict[str, str]:
        """One attempt at a round; sums: what each firm is shown of the round before."""
        self._attempts += 1
        place = (self._keys.epoch, round_, self._attempts)
        joins = {name: self._join(name, place, sums or {}) for name in self.consortium.firms}
        if refused := _refusals(joins):
            return refused
        cohort = Cohort(self.job.digest(), *place, tuple(joins.values()))
        uploads = {name: self.ask(name, cohort) for name in joins}
        if refused := _refusals({name: message for name, (message, _) in uploads.items()}):
            return refused
        stands_on = next(iter(joins.values())).model_hash
        attempt = Attempt(Terms.of(self.job), self._keys.transcript, place, tuple(joins.values()), stands_on)
        receipts = []
        for receipt, arrays in uploads.values():
            assert isinstance(receipt, MaskedUpdate)
            receipts.append(receipt)
            attempt.add(receipt, arrays[ARRAY_MASKED].view(np.uint64), layout_of(self.job, round_))
        request = ReleaseRequest(self.job.digest(), *place, tuple(receipts))
        releases = {name: self.ask(name, request)[0] for name in joins}
        assert all(isinstance(release, Release) for release in releases.values())
        total = attempt.unmask(releases)
        digest = hashlib.sha256(total.tobytes()).digest()
        return Sum(PublishedSum(*place, attempt.members, attempt.members, digest), total)

    def _join(self, name: str, place: tuple[int, int, int], sums: Mapping[str, Sum]) -> Join | Refusal:
        shown = [sums[name]] if name in sums else []
        arrays = {one.entry.array_name: one.words for one in shown}
        digests = {
            name: hashlib.sha256(words.tobytes()).digest() for name, words in arrays.items()
        }  # as a link verifies
        invitation = Invitation(self.job.digest(), *place, tuple(one.entry for one in shown))
        return self.ask(name, invitation, Given(arrays, digests))[0]

    def leading_to(self, true: Sum, wanted: NDArray[np.float32], *, before: NDArray[np.float32]) -> Sum:
        """The forged sum by which a firm that believes it computes the model `wanted` from the model `before`."""
        layout = layout_of(self.job, true.entry.round)
        mean = (wanted - before) / self.job.server_step.learning_rate
        count = int(true.words[layout.tail][0])
        members = len(true.entry.members)
        middle = rows.middle_of(layout)
        factor = self.job.codec.clip / middle / (count / self.job.codec.count_cap)
        fields = np.round(mean / factor).astype(np.int64) + members * middle
        assert layout.rows == 1
        assert fields.min() >= 0
        assert fields.max() < 2**layout.field_bits, "no sum of this layout leads there"
        placed = np.full(layout.packed_words * layout.fields, members * middle, np.uint64)
        placed[: fields.size] = fields
        words = true.words.copy()
        words[: layout.packed_words] = 0
        for place, column in enumerate(placed.reshape(layout.fields, layout.packed_words)):
            words[: layout.packed_words] |= column << np.uint64(place * layout.field_bits)
        return true.with_words(words)

    def model_after(self, true: Sum, before: NDArray[np.float32]) -> NDArray[np.float32]:
        return server_step(self.job.server_step, before, self.mean(true), Moments())[0]

    def mean(self, of: Sum) -> NDArray[np.float32]:
        """The weighted mean update that a sum shows to whoever reads it."""
        layout = layout_of(self.job, of.entry.round)
        return decode_sum(of.words, layout, self.job.codec.clip, self.job.codec.count_cap).mean


def _refusals(answers: Mapping[str, object]) -> dict[str, str]:
    return {name: answer.code.value for name, answer in answers.items() if isinstance(answer, Refusal)}
