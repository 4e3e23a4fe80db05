"""What passes between the agent and its trainer: small JSON over a Unix socket, arrays as files beside it.

A trainer answers with counts, metrics, the names of files the agent chose, or a `TrainerCode` — never with text of its
own making, because an exception can quote a row of data. The agent checks every answer as if a stranger had sent it.
"""

import math
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from dure_protocols.errors import DureError, RefusalCode
from dure_protocols.job import JobFile

SERVICE = "dure.Trainer"
MAX_MESSAGE_BYTES = 2 << 20  # a job's contract and options; arrays pass as files
MAX_ANSWER_BYTES = 64 << 10  # counts and metrics


class Method(StrEnum):
    """The trainer's calls."""

    OPEN = "Open"
    INITIAL = "Initial"
    STATISTICS = "Statistics"
    TRAIN = "Train"
    ASSESS = "Assess"
    EVALUATE = "Evaluate"
    TRAIN_ALONE = "TrainAlone"


class TrainerCode(StrEnum):
    """Why the trainer could not: all that the agent learns. The second block is found out by the client."""

    DATA_SOURCE = "data-source"
    DATA_MAPPING = "data-mapping"
    CONTRACT = "data-contract"
    TOO_FEW_ROWS = "too-few-rows"
    MODEL_UNKNOWN = "model-unknown"
    MODEL_DIGEST = "model-digest"
    MODEL_OPTIONS = "model-options"
    ARRAY = "array"
    TRAINING = "training"
    MEMORY = "memory"
    NOT_OPEN = "not-open"
    BAD_REQUEST = "bad-request"
    INTERNAL = "internal"

    DID_NOT_START = "did-not-start"
    DIED = "died"
    DEADLINE = "deadline"
    BAD_ANSWER = "bad-answer"


_SAYS: dict[TrainerCode, str] = {
    TrainerCode.DATA_SOURCE: "a data file is missing or cannot be read; run `dure-agent data check`",
    TrainerCode.DATA_MAPPING: "data.toml is not valid; run `dure-agent data check`",
    TrainerCode.CONTRACT: "the data do not fit the job's data contract; run `dure-agent data check`",
    TrainerCode.TOO_FEW_ROWS: "too few rows to train and to validate on; add data files to data.toml",
    TrainerCode.MODEL_UNKNOWN: "the job's model is not installed; install the package that offers it",
    TrainerCode.MODEL_DIGEST: "the installed model is of another version than the job names; install that version",
    TrainerCode.MODEL_OPTIONS: "the model cannot work with the job's options or contract; tell the operator",
    TrainerCode.ARRAY: "an array file has the wrong size or values that are not finite",
    TrainerCode.TRAINING: "training failed or diverged",
    TrainerCode.MEMORY: "not enough memory; give the machine more, or list fewer data files in data.toml",
    TrainerCode.NOT_OPEN: "no job is open in the trainer",
    TrainerCode.BAD_REQUEST: "the agent's request was not understood; are agent and trainer of one version?",
    TrainerCode.INTERNAL: "an unexpected error",
    TrainerCode.DID_NOT_START: "the trainer process did not start",
    TrainerCode.DIED: "the trainer process ended in the middle of its work; the next call starts it again",
    TrainerCode.DEADLINE: "the trainer took longer than allowed and was ended; the next call starts it again",
    TrainerCode.BAD_ANSWER: "the trainer's answer was not understood; are agent and trainer of one version?",
}

_REFUSALS: dict[TrainerCode, RefusalCode] = {
    TrainerCode.DATA_SOURCE: RefusalCode.DATA,
    TrainerCode.DATA_MAPPING: RefusalCode.DATA,
    TrainerCode.TOO_FEW_ROWS: RefusalCode.DATA,
    TrainerCode.CONTRACT: RefusalCode.CONTRACT,
    TrainerCode.MODEL_UNKNOWN: RefusalCode.UNKNOWN_MODEL,
    TrainerCode.MODEL_DIGEST: RefusalCode.MODEL_DIGEST,
    TrainerCode.MODEL_OPTIONS: RefusalCode.UNKNOWN_MODEL,
}


class TrainerError(DureError):
    """The trainer could not do what was asked. The reason in full is in the firm's own trainer log."""

    def __init__(self, code: TrainerCode, log: str = "", *, reason: str = "") -> None:
        """`log` is where the firm reads more; `reason` is given where the agent itself knows it."""
        more = f"; {log} says more" if log else ""
        super().__init__(f"the trainer stopped ({code}): {reason or _SAYS[code]}{more}")
        self.code = code

    @property
    def refusal(self) -> RefusalCode:
        """The code that may leave the firm for it."""
        return _REFUSALS.get(self.code, RefusalCode.TRAINING)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be finite")
    return value


FileName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}\.(f32|f64)$")]
MetricName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Finite = Annotated[float, AfterValidator(_finite)]
MAX_COUNT = 1 << 53
"""Counts are summed as doubles, which hold integers up to here exactly."""
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
MetricSums = Annotated[dict[MetricName, tuple[Finite, Finite]], Field(max_length=64)]
"""Additive metric name to (sum, weight)."""
Scores = Annotated[dict[MetricName, Finite | None], Field(max_length=64)]
"""Metric name to value; None where the rows do not define it (no failure among them, no rows)."""


class TrainingSpec(_Frozen):
    """What a trainer needs of a job file."""

    job: str
    model: str
    model_digest: str
    options: dict[str, JsonValue]
    num_parameters: Count
    num_statistics: Count
    contract: dict[str, JsonValue]
    settings: dict[str, JsonValue]
    seed: int

    @classmethod
    def of(cls, job: JobFile) -> Self:
        """The spec of a job file."""
        return cls(
            job=job.id,
            model=job.model.name,
            model_digest=job.model.digest,
            options=job.model.options,
            num_parameters=job.model.parameters,
            num_statistics=job.model.statistics,
            contract=job.contract,
            settings=job.training,
            seed=job.seed,
        )


class OpenRequest(_Frozen):
    """Load the data for a job and build its model."""

    spec: TrainingSpec


class Opened(_Frozen):
    """Rows that conform to the contract, by part, and the model's own metric for choosing."""

    num_train: Count
    num_validation: Count
    num_test: Count
    primary_metric: MetricName
    higher_is_better: bool


class ArrayRequest(_Frozen):
    """Write an array to this file: the initial model (d,) float32, or the statistics (S,) float64."""

    target: FileName


class Written(_Frozen):
    """It is written; for statistics, over how many rows."""

    count: Count = 0


class TrainRequest(_Frozen):
    """Train one round from `model`, inputs normalised by the consortium's statistics; write new - old to `target`."""

    model: FileName
    statistics: FileName
    statistics_count: Count
    target: FileName
    round: int = Field(ge=1, le=MAX_COUNT)
    seed: Count


class TrainedReply(_Frozen):
    """The update is written: training examples, and additive round metrics."""

    count: Count
    metrics: MetricSums


class Assessed(_Frozen):
    """The round metrics of a model as it is."""

    metrics: MetricSums


class EvaluateRequest(_Frozen):
    """Assess (additive, for the round) or evaluate (for the firm) a model, by the consortium's statistics."""

    model: FileName
    statistics: FileName
    statistics_count: Count


class Evaluated(_Frozen):
    """The model's report on the firm's validation and test rows. For the firm's own eyes."""

    validation: Scores
    test: Scores


class TrainAloneRequest(_Frozen):
    """Train the firm's own model, normalised by its own statistics, and write it to `target`."""

    target: FileName
    seed: Count


class TrainedAloneReply(_Frozen):
    """The own model is written: the best round on validation (0 is the untrained model) and its report."""

    best_round: Count
    validation: Scores
    test: Scores


class Answer(_Frozen):
    """Either a failure's code or a result, as JSON of the type that belongs to the method."""

    failure: TrainerCode | None = None
    result: dict[str, JsonValue] | None = None
