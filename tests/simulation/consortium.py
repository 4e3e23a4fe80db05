"""A whole consortium in one process: the real coordinator, store, firm sides and cryptography; only link and trainer
are simulated, and both can be told to misbehave. Faults are data.
"""

import hashlib
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dure_client.jobs.folder import JobFolder
from dure_client.jobs.released import ReleasedFile
from dure_client.jobs.side import FirmLimits, Given, JobSide, Trains
from dure_client.trainer.client import StatisticsSums, Trained
from dure_protocols.errors import RefusedError
from dure_protocols.global_state import model_digest
from dure_protocols.identity import Identity
from dure_protocols.job import CodecTerms, FedAvgTerms, JobFile, ModelTerms, ServerStepTerms
from dure_protocols.messages import Approval, Proposal, Refusal, Request, decode, encode
from dure_server.coordinator.checkpoints import Checkpoints
from dure_server.coordinator.firms import Answer, Ask
from dure_server.coordinator.record import JobRecord
from dure_server.coordinator.rounds import Coordinator
from dure_server.store import JobState, Store

PARAMETERS = 50


def randomness_of(seed: str) -> Callable[[int], bytes]:
    """Bytes that follow from a seed."""
    return random.Random(seed).randbytes


@dataclass
class PowersTrainer:
    """Trains nothing: firm i's update is 2^-i everywhere, so that a sum shows at once who is in it, and how often."""

    rank: int
    initial_model: NDArray[np.float32]
    rows: int = 100
    trained_rounds: list[int] = field(default_factory=list)

    def initial(self) -> NDArray[np.float32]:
        return self.initial_model

    def statistics(self) -> StatisticsSums:
        return StatisticsSums(np.array([0.5, -0.25]) * self.rows, self.rows)

    def train(
        self, model: NDArray[np.float32], statistics: StatisticsSums | None, *, round_number: int, seed: int
    ) -> Trained:
        self.trained_rounds.append(round_number)
        update = np.full(PARAMETERS, 2.0**-self.rank, np.float32)
        return Trained(update, self.rows, self.assess(model, statistics))

    def assess(self, model: NDArray[np.float32], statistics: StatisticsSums | None) -> dict[str, tuple[float, float]]:
        return {"validation_loss": (float(self.rows * (1 + model[0])), float(self.rows))}


@dataclass(frozen=True)
class Fault:
    """`firm` misbehaves when it is asked for `phase` of `round`: "silent" (never answers), "crash" (loses its memory
    and answers after it read its files again), "lost" (its answer is lost, and then its memory, as when it is killed
    between storing its state and storing its answer), "wipe" (its disk is gone before it answers: the job's folder and
    what it remembers over all jobs), "refuse", "corrupt" (one byte of its vector is changed)."""

    firm: str
    phase: str
    round: int
    kind: str


class Firm:
    """One firm's agent: a JobSide that can be rebuilt from its folder at any moment."""

    def __init__(self, name: str, identity: Identity, home: Path, trainer: Trains, limits: FirmLimits) -> None:
        self.name, self.identity, self.home, self.trainer, self.limits = name, identity, home, trainer, limits
        self.side: JobSide | None = None
        self.released = ReleasedFile(home / name / "released.bin")
        self.job: JobFile | None = None

    def crash(self) -> None:
        """Forget everything that is not on disk."""
        self.side = None
        self.released = ReleasedFile(self.home / self.name / "released.bin")

    def wipe(self) -> None:
        """Lose everything but the identity key and the job file, which its people install again."""
        shutil.rmtree(self.home / self.name, ignore_errors=True)
        self.crash()

    def handle(self, body: bytes, given: Given) -> tuple[bytes, dict[str, NDArray[np.generic]]]:
        request = decode(body)
        assert isinstance(request, Request)
        if isinstance(request, Proposal):
            self.job = JobFile.from_bytes(request.job)
            digest = self.job.digest()
            signature = self.identity.sign("dure approval", digest, self.name.encode())
            return encode(Approval(self.name, digest, signature)), {}
        if self.side is None:
            assert self.job is not None
            folder = JobFolder(self.home / self.name / self.job.id)
            random_bytes = randomness_of(f"{self.name}/{random.random()}")
            self.side = JobSide(
                self.job, self.name, self.identity, folder, self.trainer, self.released, self.limits, random_bytes
            )
        try:
            reaction = self.side.answer(request, given)
        except RefusedError as error:
            return encode(Refusal(self.name, error.code)), {}
        return encode(reaction.message), dict(reaction.arrays)


class SimulatedLink:
    """`dure_server.coordinator.firms.Firms` without a network: answers are recorded under ids, as on the real link."""

    def __init__(self, firms: dict[str, Firm], faults: Sequence[Fault] = ()) -> None:
        self.firms, self.faults = firms, list(faults)
        self.away: set[str] = set()
        self.asked: dict[str, Ask] = {}
        self.answers: dict[str, Answer] = {}
        self.shared: dict[bytes, NDArray[np.uint64]] = {}
        self.log: list[tuple[str, str]] = []
        self.tampering: Callable[[str, bytes], bytes] = lambda _firm, body: body
        self.busy_seconds = 0.0
        self._names = sorted(firms)

    def connected(self) -> set[str]:
        return set(self.firms) - self.away

    def node_of(self, firm: str) -> int | None:
        return self._names.index(firm)

    def push(self, asks: Sequence[Ask]) -> list[str]:
        ids = []
        for ask in asks:
            ask_id = f"{ask.place.group}/{ask.node}"
            self.asked.setdefault(ask_id, ask)
            ids.append(ask_id)
        return ids

    def receive(self, ids: Sequence[str], timeout: float) -> Iterator[Answer]:
        for ask_id in ids:
            if ask_id not in self.answers:
                started = time.monotonic()
                self._deliver(ask_id)
                self.busy_seconds += time.monotonic() - started
            if ask_id in self.answers:
                yield self.answers[ask_id]

    def forget(self, ids: Sequence[str]) -> None:
        for ask_id in ids:
            self.asked.pop(ask_id, None)
            self.answers.pop(ask_id, None)

    def share(self, vector: NDArray[np.uint64]) -> bytes:
        digest = hashlib.sha256(vector.data).digest()
        self.shared[digest] = vector.copy()
        return digest

    def load(self, digest: bytes, num_words: int) -> NDArray[np.uint64]:
        assert self.shared[digest].size == num_words
        return self.shared[digest]

    def retract(self, digests: Sequence[bytes]) -> None:
        brought = {digest for ask in self.asked.values() for digest in ask.arrays.values()}
        for digest in set(digests) - brought:
            self.shared.pop(digest, None)

    def _deliver(self, ask_id: str) -> None:
        ask = self.asked[ask_id]
        firm = self.firms[self._names[ask.node]]
        phase = ask.place.phase.split(".")[0]
        fault = next(
            (f for f in self.faults if (f.firm, f.phase, f.round) == (firm.name, phase, ask.place.round)), None
        )
        if firm.name in self.away or (fault is not None and fault.kind == "silent"):
            return
        if fault is not None:
            self.faults.remove(fault)
        if fault is not None and fault.kind == "crash":
            firm.crash()
        if fault is not None and fault.kind == "wipe":
            firm.wipe()
        self.log.append((phase, firm.name))
        given = Given({n: self.shared[d] for n, d in ask.arrays.items()}, dict(ask.arrays))
        body, arrays = firm.handle(self.tampering(firm.name, ask.body), given)
        if fault is not None and fault.kind == "lost":
            firm.crash()
            return
        if fault is not None and fault.kind == "corrupt":
            arrays = {name: _changed(array) for name, array in arrays.items()}
        digests = {name: hashlib.sha256(array.tobytes()).digest() for name, array in arrays.items()}
        error = "app-error" if fault is not None and fault.kind == "refuse" else None
        self.answers[ask_id] = Answer(ask_id, ask.node, body, arrays, digests, error)


def _changed(array: NDArray[np.generic]) -> NDArray[np.generic]:
    changed = array.copy()
    changed.view(np.uint8)[0] ^= 1
    return changed


class Consortium:
    """Firms, store and link; `run` starts a coordinator, and starting it again is a restart after a crash."""

    def __init__(
        self,
        folder: Path,
        *,
        num_firms: int = 3,
        rounds: int = 3,
        minimum_cohort: int = 2,
        statistics: int = 2,
        faults: Sequence[Fault] = (),
        limits: FirmLimits | None = None,
        phase_seconds: float = 0.01,
        job_id: str = "job-1",
        first_value: float = 0.0,
        threshold: int | None = None,
        initial: NDArray[np.float32] | None = None,
        codec: CodecTerms | None = None,
        server_step: ServerStepTerms | None = None,
        make_trainer: Callable[[int, NDArray[np.float32]], Trains] = PowersTrainer,
    ) -> None:
        """make_trainer: from a firm's rank, from 1 on, and the first model to its trainer."""
        names = [f"firm-{letter}" for letter in "abcdefghijklmnop"[:num_firms]]
        identities = {name: Identity.from_seed(hashlib.sha256(name.encode()).digest()) for name in names}
        initial = np.full(PARAMETERS, first_value, np.float32) if initial is None else initial
        self.job = JobFile(
            id=job_id,
            title="Simulated job",
            simulated=True,
            consortium="valley",
            firms={name: identity.public_bytes.hex() for name, identity in identities.items()},
            minimum_cohort=minimum_cohort,
            mode="retry" if threshold is None else "threshold",
            threshold=threshold,
            model=ModelTerms(
                name="powers",
                digest="0" * 64,
                parameters=initial.size,
                initial_digest=model_digest(initial).hex(),
                statistics=statistics,
                round_metrics=("validation_loss",),
            ),
            contract={},
            codec=codec or CodecTerms(clip=1.0, count_cap=100),
            server_step=server_step or FedAvgTerms(),
            rounds=rounds,
            selection_metric="validation_loss",
            seed=1,
            phase_seconds=phase_seconds,
        )
        self.initial, self.folder = initial, folder
        self.firms = {
            name: Firm(name, identities[name], folder, make_trainer(rank + 1, initial), limits or FirmLimits())
            for rank, name in enumerate(names)
        }
        self.link = SimulatedLink(self.firms, faults)
        self.store = Store.create(f"sqlite:///{folder / job_id}.sqlite")
        with self.store.transaction() as at:
            for name in names:
                at.firms.invite(name)
            at.jobs.propose(self.job)
            at.jobs.set_state(self.job.id, JobState.RUNNING)
        self.coordinator: Coordinator | None = None

    def start(self, kind: type[Coordinator] = Coordinator) -> Coordinator:
        """A fresh coordinator, as after a crash of the one before."""
        record = JobRecord(self.store, self.job.id)
        self.coordinator = kind(
            self.job, self.initial, self.link, record, Checkpoints(self.folder / "server" / self.job.id)
        )
        # Patience is not spent on what the firms compute: else a busy machine would make drop-outs.
        self.coordinator._talk._clock = lambda: time.monotonic() - self.link.busy_seconds
        return self.coordinator

    def run_until_keys(self) -> None:
        """Approvals and pair keys, and no round yet."""
        coordinator = self.start()
        coordinator._agreement.gather_approvals()
        coordinator._agreement.agree_keys()

    def run(self) -> NDArray[np.float32]:
        """Run the job to its end."""
        return self.start().run()

    def members_by_round(self) -> dict[int, tuple[str, ...]]:
        """Who is in each published sum."""
        record = JobRecord(self.store, self.job.id)
        return {done.number: done.members for done in record.finished_rounds()}
