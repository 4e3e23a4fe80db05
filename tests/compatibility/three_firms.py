"""One tiny job for every runtime: three firms with fixed keys and rows, statistics and two rounds."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dure_client.home import AgentHome, write_file
from dure_client.jobs.approvals import Verdict, decide
from dure_client.jobs.folder import JobFolder
from dure_client.trainer.messages import TrainingSpec
from dure_lab.homes import introduce, make_home
from dure_protocols.global_state import STATISTICS_ROUND, GlobalState, layout_of
from dure_protocols.identity import Identity
from dure_protocols.job import CodecTerms, JobFile
from dure_protocols.secagg.codec import Contribution, add_contribution
from dure_protocols.secagg.tags import OwnTag
from dure_server.coordinator.record import JobRecord
from dure_server.jobs import JobDraft, keep, make_job
from dure_server.operation import Operation
from dure_server.settings import ServerHome, ServerSettings
from dure_server.setup import make_home as make_server_home
from dure_server.store import Store
from tests.models.samples import PRESS, press_rows

CONSORTIUM = "valley"
FIRMS = ("firm-a", "firm-b", "firm-c")
MODEL = "tabular"
ROUNDS = 2
CLIP = 0.05
ROUNDING_STEP = CLIP / 2**11  # of a coordinate of weight times update, with 12 bits


def write_data(folder: Path) -> None:
    """Each firm's rows."""
    folder.mkdir(parents=True)
    for number, firm in enumerate(FIRMS):
        press_rows(160 + 20 * number, seed=number).write_csv(folder / f"{firm}-train.csv")
        press_rows(60, seed=100 + number).write_csv(folder / f"{firm}-test.csv")


def connect_data(home: AgentHome, data: Path) -> None:
    """Point a firm's data.toml to its rows."""
    firm = home.config().firm
    tables = [f'[{part}]\npaths = ["{(data / f"{firm}-{part}.csv").resolve()}"]\n' for part in ("train", "test")]
    write_file(home.data_file, "\n".join(tables).encode())


def seed_of(firm: str) -> bytes:
    """A firm's identity is the same on every runtime, and so the job file is."""
    return hashlib.sha256(firm.encode()).digest()


def make_homes(folder: Path, data: Path) -> dict[str, AgentHome]:
    """Homes without a link, with data and pins."""
    homes = {firm: make_home(folder / firm, CONSORTIUM, firm, seed_of(firm)) for firm in FIRMS}
    for home in homes.values():
        connect_data(home, data)
    introduce(homes, MODEL)
    return homes


def make_the_job() -> tuple[JobFile, NDArray[np.float32]]:
    """The job file, equal to the byte on every runtime, and the first model. No model is selected: one round less."""
    draft = JobDraft(
        id="press",
        title="A tiny job",
        simulated=True,
        model=MODEL,
        contract="",
        rounds=ROUNDS,
        seed=7,
        codec=CodecTerms(clip=CLIP, count_cap=160),
        training={"learning_rate": 0.01, "local_epochs": 1},
        options={"hidden": 4, "dropout": 0.0},
    )
    job, initial = make_job(draft, PRESS, CONSORTIUM, {firm: public_key(firm).hex() for firm in FIRMS})
    return JobFile.model_validate(job.model_dump() | {"selection_metric": None}), initial


def make_server(folder: Path) -> tuple[ServerHome, JobFile]:
    """A server's home whose firms are approved without a link, and the job proposed in it."""
    home = ServerHome(folder)
    settings = ServerSettings(consortium=CONSORTIUM, public_host="127.0.0.1")
    make_server_home(home, settings, "test", datetime.now(UTC))
    store = Store.open(home.store_url(settings))
    try:
        with store.transaction() as at:
            for firm in FIRMS:
                at.firms.invite(firm)
                at.firms.join(firm, public_key(firm), "test")
                at.firms.approve(firm)
        job, initial = make_the_job()
        keep(home, store, job, initial, "test", Operation(keep_sums=True))
        return home, job
    finally:
        store.close()


def public_key(firm: str) -> bytes:
    """A firm's public identity key."""
    return Identity.from_seed(seed_of(firm)).public_bytes


def approve(homes: dict[str, AgentHome], job: JobFile) -> None:
    """Every firm says yes."""
    for home in homes.values():
        decide(home, job, Verdict.APPROVED, datetime.now(UTC))


@dataclass(frozen=True)
class Outcome:
    """What a job on one runtime came to. state: as it follows from the published sums; server: the final model."""

    job: JobFile
    homes: dict[str, AgentHome]
    server: NDArray[np.float32]
    sums: dict[int, NDArray[np.uint64]]
    state: GlobalState

    @property
    def statistics(self) -> NDArray[np.uint64]:
        """The sum of round 0 without the tag words, which differ from run to run."""
        return untagged(self.job, self.sums[STATISTICS_ROUND])

    def folder(self, firm: str) -> JobFolder:
        """A firm's folder of the job."""
        return JobFolder(self.homes[firm].job_folder(self.job.id))

    def firm_state(self, firm: str) -> GlobalState:
        """The state as the firm stored it."""
        state = GlobalState(self.job, make_the_job()[1])
        self.folder(firm).restore_state(state)
        return state


def outcome_of(
    job: JobFile, homes: dict[str, AgentHome], server: NDArray[np.float32], store: Store, sums: Path
) -> Outcome:
    """Read what a job left behind."""
    state, words = GlobalState(job, make_the_job()[1]), {}
    for done in JobRecord(store, job.id).finished_rounds():
        words[done.number] = np.fromfile(sums / done.sum_digest.hex(), np.uint64)
        state.advance(words[done.number], len(done.members))
    return Outcome(job, homes, server, words, state)


def untagged(job: JobFile, vector: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A vector of round 0 without its tag words."""
    return vector[: layout_of(job, STATISTICS_ROUND).tail.stop]


def plaintext_statistics(job: JobFile, home: AgentHome) -> NDArray[np.uint64]:
    """What a firm gives in round 0 before it is masked and tagged. Exact: no rounding is in it."""
    from dure_client.trainer.session import TrainingSession

    own = TrainingSession(TrainingSpec.of(job), home.data_file).statistics()
    layout = layout_of(job, STATISTICS_ROUND)
    vector = np.zeros(layout.words, np.uint64)
    count = min(own.count, job.codec.count_cap)
    contribution = Contribution(None, 1.0, count, np.append(own.sums, float(own.count)))
    add_contribution(vector, layout, contribution, clip=1.0, rounding=0, tag=OwnTag(bytes(32), "", bytes(32)))
    return untagged(job, vector)
