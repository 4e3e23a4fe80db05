"""One job at one firm: answers each request of the job's coordinator.

The order in every answer is: check, change the state, store the state, answer. Nothing is sent from here; the agent
sends what is returned, after this module has stored what a crash must not lose.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dure_client.jobs.folder import JobFolder, Place
from dure_client.jobs.released import ReleasedFile
from dure_client.trainer.client import StatisticsSums, Trained
from dure_protocols.clip import fill
from dure_protocols.errors import MisuseError, RefusalCode, RefusedError
from dure_protocols.global_state import STATISTICS_ROUND, GlobalState, is_training, layout_of, moves_clip
from dure_protocols.identity import Identity
from dure_protocols.job import JobFile
from dure_protocols.messages import (
    ARRAY_MASKED,
    ARRAY_SNAPSHOT,
    AskKeys,
    Cohort,
    Establish,
    Established,
    Finish,
    Finished,
    Invitation,
    JobRequest,
    PublishedSum,
    Refusal,
    ReleaseRequest,
    Reply,
    Roster,
    VoteRequest,
)
from dure_protocols.secagg.codec import Contribution, OutOfRangeError, add_contribution
from dure_protocols.secagg.firm import FirmSession
from dure_protocols.secagg.tags import BLINDING_BYTES, OwnTag
from dure_protocols.secagg.terms import Randomness, Terms, numbers

T = TypeVar("T")


class Trains(Protocol):
    """What a job needs of the trainer; `dure_client.trainer.TrainerClient` in production."""

    def initial(self) -> NDArray[np.float32]:
        """The job's first model, (d,) float32."""

    def statistics(self) -> StatisticsSums:
        """The firm's statistics over its training rows."""

    def train(
        self, model: NDArray[np.float32], statistics: StatisticsSums | None, *, round_number: int, seed: int
    ) -> Trained:
        """One round of local training from a global model."""

    def assess(
        self, model: NDArray[np.float32], statistics: StatisticsSums | None
    ) -> Mapping[str, tuple[float, float]]:
        """The additive round metrics of a model as it is, without training."""


@dataclass(frozen=True)
class FirmLimits:
    """What the firm's policy adds to a job's own terms."""

    minimum_cohort: int = 2
    minimum_difference: int = 1
    minimum_statistics_difference: int = 2
    minimum_rows: int = 1


@dataclass(frozen=True)
class Given:
    """Arrays beside a request and the SHA-256 of each one's bytes, as the link has verified them."""

    arrays: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    digests: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Reaction:
    """A reply and the arrays that travel beside it. digests: SHA-256 of their raw bytes, of those that have one yet."""

    message: Reply
    arrays: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    digests: Mapping[str, bytes] = field(default_factory=dict)


class JobSide:
    """The firm's side of one approved job. Calls are serialised; state survives in the job's folder."""

    def __init__(
        self,
        job: JobFile,
        firm: str,
        identity: Identity,
        folder: JobFolder,
        trainer: Trains,
        released: ReleasedFile,
        limits: FirmLimits,
        randomness: Randomness,
    ) -> None:
        self._job, self._firm, self._folder, self._trainer = job, firm, folder, trainer
        self._identity, self._released = identity, released
        self._limits, self._randomness = limits, randomness
        self._session = FirmSession(firm, identity, _terms(job, limits), randomness, released.disclosures)
        if snapshot := folder.load_session():
            self._session.restore(snapshot)
        self._loaded: GlobalState | None = None
        self._residual: Place | None = None  # of this attempt; set when the state is loaded
        self._made: tuple[object, Contribution] | None = None  # a further attempt on the same model trains nothing
        self._lock = threading.Lock()
        self._answers: dict[type[JobRequest], Callable[..., Reaction]] = {
            AskKeys: self._advertise,
            Roster: self._encapsulate,
            Establish: self._establish,
            Invitation: self._join,
            Cohort: self._update,
            VoteRequest: self._vote,
            ReleaseRequest: self._release,
            Finish: self._finish,
        }

    def use_limits(self, limits: FirmLimits) -> None:
        """Take up what the firm's policy says now."""
        if limits != self._limits:
            self._limits = limits
            self._session.use_terms(_terms(self._job, limits))

    def answer(self, request: JobRequest, given: Given) -> Reaction:
        """Answer one request. Raises RefusedError, TrainerError or another DureError; nothing must be sent then."""
        with self._lock:
            return self._answers[type(request)](request, given)

    @property
    def state(self) -> GlobalState:
        """The global model as this firm computed it. A job's first look asks the trainer for its first model."""
        if self._loaded is None:
            initial = self._folder.first_model(self._job.model.initial_digest, self._trainer.initial)
            self._loaded = GlobalState(self._job, initial)
            self._residual = self._folder.restore_state(self._loaded)
        return self._loaded

    @property
    def training_seed(self) -> int:
        """Seed of the order of batches: follows from the job and the firm's own key, so that nobody else knows it."""
        signature = self._identity.sign("dure training seed", self._job.digest())
        return int.from_bytes(hashlib.sha256(signature).digest()[:6], "big")

    def _rounding(self, round_: int) -> int:
        """Seed of the rounding noise, 64 bits. It follows from the job, the round and the firm's own key, and not from
        the attempt: whatever crashes on the way, the round's update is quantised in one way, under masks of its own."""
        signature = self._identity.sign("dure rounding", self._job.digest(), numbers(round_))
        return int.from_bytes(hashlib.sha256(signature).digest()[:8], "big")

    def conclude(self, work: Callable[[], T]) -> T:
        """Run something that uses the job's trainer while no request does."""
        with self._lock:
            return work()

    def while_idle(self, work: Callable[[], None]) -> bool:
        """Run something that ends the job's trainer, unless a request or a result is using it. Whether it ran."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            work()
        finally:
            self._lock.release()
        return True

    def _advertise(self, request: AskKeys, _: Given) -> Reaction:
        reply = self._session.advertise(request.epoch)
        self._store_session()
        return Reaction(reply)

    def _encapsulate(self, request: Roster, _: Given) -> Reaction:
        reply = self._session.encapsulate(request)
        self._store_session()
        return Reaction(reply)

    def _establish(self, request: Establish, _: Given) -> Reaction:
        transcript = self._session.establish(request)
        self._store_session()
        return Reaction(Established(self._firm, request.epoch, transcript))

    def _join(self, request: Invitation, given: Given) -> Reaction:
        if request.snapshot:
            self._take_snapshot(request, given)
        self._apply(request.sums, given)
        if self.state.is_over or request.round != self.state.round:
            return Reaction(Refusal(self._firm, RefusalCode.GLOBAL_MODEL, self.state.round))
        reply = self._session.join(request, self.state.hash, self.state.key)
        self._store_session()
        return Reaction(reply)

    def _update(self, request: Cohort, _: Given) -> Reaction:
        """Train (or sum), mask, sign. The masks are made while the trainer works."""
        if self.state.is_over or request.round != self.state.round:
            raise RefusedError(RefusalCode.OUT_OF_ORDER, f"round {request.round} is not this firm's next")
        self._check_statistics(request.round, len(request.joins))
        keys = self._session.accept_cohort(request)
        self._store_session()
        layout = layout_of(self._job, request.round)
        residual = self._kept_residual(request.round)
        with ThreadPoolExecutor(1, "masks") as aside:
            masks = aside.submit(keys.mask, layout)
            contribution = self._contribution_of(request.round, residual)
            vector = masks.result()
        rounding, clip = self._rounding(request.round), self.state.clip
        tag = OwnTag(keys.tag, self._firm, self._randomness(BLINDING_BYTES))
        try:
            add_contribution(vector, layout, contribution, clip=clip, rounding=rounding, tag=tag, residual=residual)
        except OutOfRangeError:
            self._residual = None  # it may be what is too large, and must not stand in the way of every later round
            raise
        if residual is not None:
            self._folder.save_residual((request.epoch, request.round, request.attempt), residual)
        digest = hashlib.sha256(vector.data).digest()
        receipt = self._session.sign_upload(digest)
        self._store_session()  # first: it says that the model was contributed to in this round, not in another
        self._released.save()
        return Reaction(receipt, {ARRAY_MASKED: vector}, {ARRAY_MASKED: digest})

    def _kept_residual(self, round_: int) -> NDArray[np.float32] | None:
        """What the last sum that this firm entered lost of its update, (d,); None where the job keeps no residuals."""
        if not self._job.codec.error_feedback or not is_training(self._job, round_):
            return None
        return self._folder.load_residual(self._residual, self._job.model.parameters)

    def _vote(self, request: VoteRequest, _: Given) -> Reaction:
        self._check_statistics(request.round, len(request.uploads))
        reply = self._session.vote(request)
        self._store_session()
        return Reaction(reply)

    def _release(self, request: ReleaseRequest, _: Given) -> Reaction:
        reply = self._session.release(request)
        self._store_session()  # first: a session that stands before a release that is noted would refuse to repeat it
        self._released.save()
        return Reaction(reply)

    def _finish(self, request: Finish, given: Given) -> Reaction:
        """Keep the final model. Only at the job's end: a server cannot retire a firm early, or with an older model."""
        self._apply(request.sums, given)
        if not self.state.is_over:
            return Reaction(Refusal(self._firm, RefusalCode.GLOBAL_MODEL, self.state.round))
        self._folder.save_array(self._folder.final_file.name, self.state.final)
        self._session.retire()
        self._store_session()
        return Reaction(Finished(self._firm, self.state.hash))

    def _apply(self, sums: tuple[PublishedSum, ...], given: Given) -> None:
        """Advance the global model by the sums that this firm has not applied yet."""
        state, before = self.state, self.state.round
        for entry in sums:
            if state.is_over or entry.round != state.round:
                continue
            words = given.arrays.get(entry.array_name)
            if words is None or words.dtype != np.uint64 or given.digests[entry.array_name] != entry.vector_digest:
                raise RefusedError(RefusalCode.MALFORMED, f"the sum of round {entry.round} is not what was announced")
            vector = words.view(np.uint64)
            self._session.check_sum(entry, vector, layout_of(self._job, entry.round), state.hash)
            self._session.note_sum(entry, state.key)
            state.advance(vector, len(entry.members))
            if self._firm in entry.members and is_training(self._job, entry.round):
                self._residual = (entry.epoch, entry.round, entry.attempt)
        if state.round != before:
            self._made = None
            self._released.save()
            self._folder.save_state(state, self._residual)

    def _take_snapshot(self, request: Invitation, given: Given) -> None:
        """Stand on the global state that enough other firms signed, where this firm cannot compute it any more."""
        (snapshot,) = request.snapshot
        words = given.arrays.get(ARRAY_SNAPSHOT)
        if words is None or words.dtype != np.uint64 or given.digests[ARRAY_SNAPSHOT] != snapshot.vector_digest:
            raise RefusedError(RefusalCode.MALFORMED, "the snapshot is not what was announced")
        if request.round <= self.state.round:
            return
        if self._session.awaits_sum(self.state.round):
            raise RefusedError(
                RefusalCode.GLOBAL_MODEL,
                f"this firm uploaded in round {self.state.round} and must learn over whom it was summed: it takes the"
                " sum itself, no snapshot",
            )
        offered = self.state.standing_at(words.view(np.uint64))
        self._session.check_witnesses(request, offered.hash)
        self._residual = None  # whether it entered the sums that it missed, it cannot know
        self._folder.save_state(offered, self._residual)
        self._loaded = offered

    def _check_statistics(self, round_: int, members: int) -> None:
        if round_ == STATISTICS_ROUND and members < len(self._job.firms):
            # Exact sums: the difference of two member sets would be one firm's statistics.
            raise RefusedError(RefusalCode.COHORT_TOO_SMALL, "statistics are summed over every firm of the job, or not")

    def _contribution_of(self, round_: int, residual: NDArray[np.float32] | None) -> Contribution:
        """The contribution to a round: made once, and kept until the firm stands on another model."""
        place = (self.state.hash, self._limits.minimum_rows)
        if self._made is None or self._made[0] != place:
            self._made = None
            self._made = (place, self._contribution(round_, residual))
        return self._made[1]

    def _contribution(self, round_: int, residual: NDArray[np.float32] | None) -> Contribution:
        """What goes under the masks: the trainer's work, rows under the cap, exact words in the layout's order."""
        if round_ == STATISTICS_ROUND:
            sums = self._trainer.statistics()
            return self._counted(None, sums.count, np.append(sums.sums, float(sums.count)))
        if not is_training(self._job, round_):
            metrics = self._trainer.assess(self.state.model, self.statistics)
            return Contribution(None, 0.0, 1, self._metrics(metrics))
        trained = self._trainer.train(self.state.model, self.statistics, round_number=round_, seed=self.training_seed)
        contribution = self._counted(trained.update, trained.count, self._metrics(trained.metrics))
        if not moves_clip(self._job, round_):
            return contribution
        filled = fill(trained.update, contribution.weight, self.state.clip, residual)
        return replace(contribution, exact=np.append(contribution.exact, filled))

    def _counted(self, update: NDArray[np.float32] | None, count: int, exact: NDArray[np.float64]) -> Contribution:
        if count < self._limits.minimum_rows:
            raise RefusedError(
                RefusalCode.DATA,
                f"{count} training rows are fewer than the policy's minimum of {self._limits.minimum_rows}",
            )
        cap = self._job.codec.count_cap
        return Contribution(update, min(count, cap) / cap, min(count, cap), exact)

    @property
    def statistics(self) -> StatisticsSums | None:
        """The consortium's statistics, by which inputs are normalised; None where the model asks for none."""
        normalisation = self.state.normalisation
        return None if normalisation is None else StatisticsSums(normalisation[:-1], round(normalisation[-1]))

    def _metrics(self, metrics: Mapping[str, tuple[float, float]]) -> NDArray[np.float64]:
        """The job's round metrics as exact words, in its order."""
        missing = [name for name in self._job.model.round_metrics if name not in metrics]
        if missing:
            raise MisuseError(f"the trainer did not report the job's round metrics {missing}")
        return np.array([part for name in self._job.model.round_metrics for part in metrics[name]], np.float64)

    def _store_session(self) -> None:
        self._folder.save_session(self._session.snapshot())


def _terms(job: JobFile, limits: FirmLimits) -> Terms:
    return Terms.of(
        job,
        minimum_cohort=limits.minimum_cohort,
        minimum_difference=limits.minimum_difference,
        minimum_statistics_difference=limits.minimum_statistics_difference,
    )
