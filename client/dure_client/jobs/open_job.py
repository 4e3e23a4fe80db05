"""A job that the agent's process works on, and the comparison that it ends with."""

from concurrent.futures import Future
from pathlib import Path

from dure_client.jobs.folder import JobFolder
from dure_client.jobs.results import JobResult, ModelReport
from dure_client.jobs.side import JobSide
from dure_client.policy import Policy
from dure_client.trainer.client import TrainerClient
from dure_protocols.job import JobFile

Stamp = tuple[int, int, int] | None
"""Of a file; see `stamp`."""


class OpenJob:
    """What `Firm` holds of a job. granted: what its trainer was given; used_at: seconds of `Firm`'s monotonic clock."""

    def __init__(
        self,
        job: JobFile,
        side: JobSide,
        folder: JobFolder,
        trainer: TrainerClient,
        granted: tuple[object, ...],
        used_at: float,
    ) -> None:
        self.job, self.side, self.folder, self.trainer = job, side, folder, trainer
        self.granted, self.used_at = granted, used_at
        self.result: Future[None] | None = None
        self.checked: tuple[tuple[Stamp, ...], Policy] | None = None
        """The policy that the job was last found to be within, and the stamps of the files that said so."""


def stamp(file: Path) -> Stamp:
    """Differs when a file was written or replaced; None where there is none."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def granted(policy: Policy) -> tuple[object, ...]:
    """What a running trainer was started with, and would need a new start to have otherwise."""
    return policy.gpu_devices, policy.trainer_memory_gib, policy.trainer_processors


def compare(opened: OpenJob) -> JobResult:
    """Train the firm's own model and report both on the firm's rows. Raises TrainerError."""
    trainer, side = opened.trainer, opened.side
    federated = trainer.evaluate(side.state.final, side.statistics)
    own = trainer.train_alone(seed=side.training_seed)
    opened.folder.save_array("own.f32", own.parameters)
    rows = trainer.open()
    return JobResult(
        job=opened.job.id,
        num_train=rows.num_train,
        num_validation=rows.num_validation,
        num_test=rows.num_test,
        primary_metric=rows.primary_metric,
        higher_is_better=rows.higher_is_better,
        alone=ModelReport(validation=own.validation, test=own.test),
        federated=ModelReport(validation=federated.validation, test=federated.test),
    )
