"""The job file: everything that the firms of a job agree on before it runs. Its digest enters every key and signature.

The operator drafts it, each firm reads and approves it, and nobody can change it afterwards: another byte is another
digest, and so another job that nobody has approved.
"""

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    JsonValue,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)

from dure_protocols.errors import DureError, IdentityError
from dure_protocols.fields import MAX_FIRMS
from dure_protocols.identity import check_firm_name, is_plain

MAX_RETRY_FIRMS = 16
MAX_JOB_BYTES = 1 << 20
MAX_ROUNDS = 100_000

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
JobId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
MetricName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


_LEFT_OUT_IF_NONE = ("purpose", "agreement")  # so job files from before there were such fields keep their digests


def majority(num_firms: int) -> int:
    """The minimum cohort of a job whose draft names none: more than half, so that no round has two disjoint cohorts.

    At least three, so that a member that takes its own part off the sum is not left with one other firm's.
    """
    return max(3, num_firms // 2 + 1)


def _written(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    canonical_json(value)  # raises ValueError for NaN and infinity, which JSON does not have
    return value


def _shown(name: str) -> str:
    if not is_plain(name):
        raise ValueError("must be one line without control characters")
    return name


Shown = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_shown)]
Json = Annotated[dict[str, JsonValue], AfterValidator(_written)]


def least_threshold(num_firms: int) -> int:
    """The least threshold among n firms, floor(2n/3) + 1.

    Two survivor sets need 2t votes; c dishonest firms give two each, honest ones one: 2t <= n + c. With this threshold
    that takes c >= n/3 dishonest firms.
    """
    return 2 * num_firms // 3 + 1


class JobFileError(DureError):
    """The job file is malformed or contradicts itself."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelTerms(_Frozen):
    """Which model is trained, bound to the digest of its code."""

    name: str = Field(min_length=1, max_length=64)
    digest: Digest = Field(description="SHA-256 of the model package's sources, as the firms have installed it")
    options: Json = {}
    parameters: int = Field(gt=0, le=1 << 31, description="number of float32 parameters, d")
    initial_digest: Digest = Field(description="SHA-256 of the first global model's little-endian float32 bytes")
    statistics: int = Field(default=0, ge=0, le=4096, description="values summed in round 0 to normalise inputs")
    round_metrics: Annotated[tuple[MetricName, ...], FailFast()] = Field(
        default=(), description="summed over firms in every round"
    )


class Agreement(_Frozen):
    """The contract between the firms under which a job is run: its name and version, and its text by digest."""

    name: Shown
    version: Shown
    sha256: Digest = Field(description="SHA-256 of the agreement's file, which each firm has")

    def __str__(self) -> str:
        return f"{self.name}, version {self.version} ({self.sha256[:16]}…)"


class CodecTerms(_Frozen):
    """How an update becomes ring elements. See `dure_protocols.secagg.codec`."""

    bits: int = Field(default=12, ge=2, le=24, description="bits a parameter before headroom for the sum")
    clip: float = Field(ge=1e-20, le=1e20, description="weight times update is clipped to ±this; the first clip")
    clip_rule: Literal["fixed", "rms"] = Field(
        default="fixed", description="whether later clips follow the root mean square of what was summed before"
    )
    clip_factor: float = Field(default=8.0, ge=1, le=64, description="the next clip in units of that root mean square")
    error_feedback: bool = Field(
        default=False, description="whether what clipping and rounding lost is added to the firm's next update"
    )
    count_cap: int = Field(gt=0, le=1 << 40, description="a firm's weight is min(rows, cap) / cap")


class FedAvgTerms(_Frozen):
    """model + learning_rate · mean. The other server steps are in `dure_protocols.server_step` as well."""

    kind: Literal["fedavg"] = "fedavg"
    learning_rate: float = Field(default=1.0, gt=0)


class FedAvgMTerms(_Frozen):
    """FedAvg with momentum."""

    kind: Literal["fedavgm"] = "fedavgm"
    learning_rate: float = Field(default=1.0, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)


class FedAdagradTerms(_Frozen):
    """Each parameter's step is divided by the root of all its squared means."""

    kind: Literal["fedadagrad"] = "fedadagrad"
    learning_rate: float = Field(default=0.1, gt=0)
    adaptivity: float = Field(default=1e-3, ge=1e-9, le=1e9, description="τ: added to the root, τ² its first square")


class FedAdamTerms(_Frozen):
    """Momentum, divided by the root of a moving average of squared means."""

    kind: Literal["fedadam"] = "fedadam"
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="β1")
    decay: float = Field(default=0.99, ge=0, lt=1, description="β2")
    adaptivity: float = Field(default=1e-3, ge=1e-9, le=1e9, description="τ")


class FedYogiTerms(_Frozen):
    """FedAdam whose squares grow and shrink by what is new only."""

    kind: Literal["fedyogi"] = "fedyogi"
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="β1")
    decay: float = Field(default=0.99, ge=0, lt=1, description="β2")
    adaptivity: float = Field(default=1e-3, ge=1e-9, le=1e9, description="τ")


ServerStepTerms = FedAvgTerms | FedAvgMTerms | FedAdagradTerms | FedAdamTerms | FedYogiTerms
"""The pure function from the last model and the published mean to the next model, by its `kind`."""


def _kind_of_step(value: object) -> object:
    """A table without a kind is FedAvg's, as in every job file from before there were others."""
    return value.get("kind", "fedavg") if isinstance(value, dict) else getattr(value, "kind", None)


ServerStepField = Annotated[
    Annotated[FedAvgTerms, Tag("fedavg")]
    | Annotated[FedAvgMTerms, Tag("fedavgm")]
    | Annotated[FedAdagradTerms, Tag("fedadagrad")]
    | Annotated[FedAdamTerms, Tag("fedadam")]
    | Annotated[FedYogiTerms, Tag("fedyogi")],
    Discriminator(_kind_of_step),
]


class JobFile(_Frozen):
    """What the firms agree on. Frozen; validated when built; equal files have equal digests."""

    format: Literal["dure-job-1"] = "dure-job-1"
    id: JobId
    title: Shown
    simulated: bool = Field(default=False, description="the data behind this job is simulated, and every page says so")
    consortium: Shown
    purpose: Shown | None = Field(default=None, description="what the model is for, in the firms' agreed words")
    agreement: Agreement | None = Field(default=None, description="under which the firms run this job")
    mode: Literal["retry", "threshold"] = Field(
        default="retry", description="after a drop-out: a fresh attempt without it, or the survivors open the sum"
    )
    threshold: int | None = Field(
        default=None, description="in threshold mode: firms that must agree on the survivors, at least floor(2n/3) + 1"
    )
    firms: dict[str, PublicKey] = Field(description="firm name to its Ed25519 identity public key, hex")
    minimum_cohort: int = Field(ge=2)
    model: ModelTerms
    contract: Json = Field(description="the data contract, whole")
    codec: CodecTerms
    server_step: ServerStepField = FedAvgTerms()
    training: Json = {}
    rounds: int = Field(gt=0, le=MAX_ROUNDS)
    selection_metric: MetricName | None = Field(
        default=None, description="round metric whose mean over the firms, lower is better, chooses the final model"
    )
    seed: int = Field(ge=0, lt=1 << 63)
    phase_seconds: float = Field(default=120.0, gt=0, description="longest wait for a firm's answer in one phase")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in self.firms:
            try:
                check_firm_name(name)
            except IdentityError as error:
                raise ValueError(str(error)) from error
        if len(set(self.firms.values())) != len(self.firms):
            raise ValueError("two firms have the same identity key")
        self._check_cohort()
        if self.selection_metric is not None and self.selection_metric not in self.model.round_metrics:
            raise ValueError(f"selection_metric {self.selection_metric!r} is not among the model's round metrics")
        return self

    def _check_cohort(self) -> None:
        num_firms = len(self.firms)
        most = MAX_RETRY_FIRMS if self.mode == "retry" else MAX_FIRMS
        if not self.minimum_cohort <= num_firms <= most:
            raise ValueError(
                f"{self.mode} mode takes {self.minimum_cohort} (the minimum cohort) to {most} firms;"
                f" {num_firms} are listed"
            )
        if self.mode == "retry":
            if self.threshold is not None:
                raise ValueError("retry mode has no threshold: every member of a cohort uploads, or none is summed")
            return
        least = least_threshold(num_firms)
        if self.threshold is None or not least <= self.threshold < num_firms:
            raise ValueError(
                f"threshold mode with {num_firms} firms takes a threshold from {least} to {num_firms - 1}"
                f" (and so at least 4 firms); {self.threshold} was given"
            )

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no blanks, UTF-8; without `purpose` and `agreement` where there is none."""
        written = self.model_dump(mode="json")
        for name in _LEFT_OUT_IF_NONE:
            if written[name] is None:
                del written[name]
        return canonical_json(written)

    @classmethod
    def from_bytes(cls, data: bytes) -> "JobFile":
        """Parse and check. Raises JobFileError, also when the bytes are not the canonical form of what they say."""
        if len(data) > MAX_JOB_BYTES:
            raise JobFileError(f"the job file has {len(data)} bytes; at most {MAX_JOB_BYTES} are allowed")
        try:
            job = cls.model_validate_json(data)
        except ValidationError as error:
            listed = error.errors(include_url=False, include_context=False, include_input=False)
            problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'job'}: {e['msg']}" for e in listed[:5])
            raise JobFileError(f"the job file is not valid: {problems[:2000]}") from error
        if job.to_bytes() != data:
            raise JobFileError("the job file is not in canonical form (sorted keys, no blanks); write it with Dure")
        return job

    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes: what a firm approves. 32 bytes."""
        return hashlib.sha256(self.to_bytes()).digest()

    def identities(self) -> dict[str, bytes]:
        """Firm name to raw Ed25519 public key (32 bytes)."""
        return {name: bytes.fromhex(key) for name, key in self.firms.items()}


def canonical_json(value: JsonValue | dict[str, object]) -> bytes:
    """The one JSON text of a value, so that its digest is well defined."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
