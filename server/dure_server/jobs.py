"""Making a job: from the operator's draft and the installed model to the job file that firms approve.

The draft says what a person decides; digests, sizes and the first model follow from the installed code. This is the one
place of the server that loads torch, and only while a job is made.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from dure_models import registry
from dure_models.contract import DataContract
from dure_models.digest import model_digest as code_digest
from dure_protocols.errors import DureError
from dure_protocols.global_state import model_digest
from dure_protocols.job import (
    MAX_RETRY_FIRMS,
    Agreement,
    CodecTerms,
    FedAvgTerms,
    JobFile,
    ModelTerms,
    ServerStepField,
    least_threshold,
    majority,
)
from dure_protocols.toml import parse_toml
from dure_server.models import ModelRegistry
from dure_server.operation import Operation
from dure_server.settings import ServerHome
from dure_server.store import FirmStatus, Store

INITIAL_MODEL_FILE = "initial.f32"
FINAL_MODEL_FILE = "final.f32"


class JobDraftError(DureError):
    """The operator's draft of a job cannot become a job file."""


class JobDraft(BaseModel):
    """What the operator writes (TOML): everything a person decides about a job.

    mode, threshold: how drop-outs are met; retry mode up to 16 firms and threshold mode above unless given.
    contract: path of the contract's TOML file, relative to the draft; firms: those that take part, all approved firms
    unless listed; package: digest of the published package that offers the model, needed only where several do;
    selection_metric: the model's own unless given; operation: not part of the job file, see `operation`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    title: str
    simulated: bool = False
    purpose: str | None = None
    agreement: Agreement | None = None
    model: str
    package: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    options: dict[str, JsonValue] = {}
    contract: str
    firms: tuple[str, ...] = ()
    minimum_cohort: int | None = Field(default=None, ge=2)
    mode: Literal["retry", "threshold"] | None = None
    threshold: int | None = None
    codec: CodecTerms
    server_step: ServerStepField = FedAvgTerms()
    training: dict[str, JsonValue] = {}
    rounds: int = Field(gt=0)
    selection_metric: str | None = None
    seed: int = 0
    phase_seconds: float = 120.0
    operation: Operation = Operation()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a draft. Raises JobDraftError naming every problem."""
        try:
            return cls.model_validate(parse_toml(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise JobDraftError(f"there is no job draft at {path}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise JobDraftError(f"{path} is not valid TOML: {error}; correct that line") from error
        except ValidationError as error:
            problems = "".join(f"\n  - {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise JobDraftError(f"{path} is no valid job draft:{problems}") from error


def make_job(
    draft: JobDraft, contract: DataContract, consortium: str, identities: dict[str, str]
) -> tuple[JobFile, NDArray[np.float32]]:
    """The job file of a draft and the first global model, (d,) float32. Loads torch.

    identities: the participating firms' Ed25519 public keys, hex. Raises JobDraftError or an error of the model.
    """
    from dure_models.parameters import initial_parameters  # noqa: PLC0415  # torch

    model = registry.create(draft.model, contract, draft.options)
    initial = initial_parameters(model.build(), draft.seed)
    mode, threshold = _mode(draft, len(identities))
    try:
        job = JobFile(
            id=draft.id,
            title=draft.title,
            simulated=draft.simulated or contract.simulated,
            purpose=draft.purpose,
            agreement=draft.agreement,
            consortium=consortium,
            firms=identities,
            minimum_cohort=draft.minimum_cohort or majority(len(identities)),
            mode=mode,
            threshold=threshold,
            model=ModelTerms(
                name=draft.model,
                digest=code_digest(draft.model),
                options=draft.options,
                parameters=initial.size,
                initial_digest=model_digest(initial).hex(),
                statistics=model.num_statistics,
                round_metrics=tuple(metric.name for metric in model.round_metrics),
            ),
            contract=contract.model_dump(mode="json"),
            codec=draft.codec,
            server_step=draft.server_step,
            training=_training(draft),
            rounds=draft.rounds,
            selection_metric=draft.selection_metric or model.selection_metric,
            seed=draft.seed,
            phase_seconds=draft.phase_seconds,
        )
    except ValidationError as error:
        problems = "".join(f"\n  - {'.'.join(map(str, e['loc'])) or 'job'}: {e['msg']}" for e in error.errors())
        raise JobDraftError(f"the draft {draft.id!r} does not make a job:{problems}") from error
    return job, initial


def _mode(draft: JobDraft, num_firms: int) -> tuple[Literal["retry", "threshold"], int | None]:
    """The draft's mode and threshold, or what suits so many firms."""
    mode = draft.mode or ("retry" if num_firms <= MAX_RETRY_FIRMS else "threshold")
    return mode, (draft.threshold or least_threshold(num_firms)) if mode == "threshold" else draft.threshold


def _training(draft: JobDraft) -> dict[str, JsonValue]:
    """The settings that firms train with: the draft's, and what follows from its rounds and codec."""
    derived: dict[str, JsonValue] = {
        "num_rounds": draft.rounds,
        "update_clip": draft.codec.clip,
        "count_cap": draft.codec.count_cap,
    }
    twice = sorted(set(derived) & set(draft.training))
    if twice:
        raise JobDraftError(f"training.{twice[0]} follows from `rounds` or `codec`: leave it out of [training]")
    return draft.training | derived


def propose(home: ServerHome, store: Store, draft_file: Path, actor: str) -> JobFile:
    """Make a job from a draft file, keep its first model, and put it in the store as proposed.

    Raises JobDraftError, ContractError, RegistryError, StoreConflictError.
    """
    draft = JobDraft.read(draft_file)
    contract_file = draft_file.parent / draft.contract
    if not contract_file.exists():
        raise JobDraftError(f"the draft names the contract {contract_file}, which is not there")
    contract = DataContract.from_toml(contract_file.read_text())
    identities = participating(store, draft.firms)
    with ModelRegistry(home.models).offering(draft.model, draft.package):
        job, initial = make_job(draft, contract, home.settings().consortium, identities)
    keep(home, store, job, initial, actor, draft.operation)
    return job


def keep(
    home: ServerHome,
    store: Store,
    job: JobFile,
    initial: NDArray[np.float32],
    actor: str,
    operation: Operation | None = None,
) -> None:
    """Put a job into the store as proposed, and its first model, (d,) float32, beside it.

    Raises StoreConflictError, OperationError.
    """
    operation = operation or Operation()
    operation.check(job)
    with store.transaction() as at:
        twin = next((row for row in at.jobs.all() if row.id != job.id and _same_start(row.body, job)), None)
        if twin is not None:
            raise JobDraftError(
                f"job {twin.id} begins with the same first model, on which no firm contributes twice: take another seed"
            )
        at.jobs.propose(job)
        at.jobs.set_operation(job.id, operation.model_dump(exclude_defaults=True))
        at.audit.append(actor, "job.proposed", job.id, {"digest": job.digest().hex()})
    folder = home.job_folder(job.id)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "job.json").write_bytes(job.to_bytes())
    initial.tofile(folder / INITIAL_MODEL_FILE)


def _same_start(body: bytes, job: JobFile) -> bool:
    return JobFile.from_bytes(body).model.initial_digest == job.model.initial_digest


def participating(store: Store, wanted: Sequence[str]) -> dict[str, str]:
    """Identity keys (hex) of the firms of a job. Raises JobDraftError for one that is not approved."""
    with store.reading() as at:
        approved = {
            firm.name: firm.identity_key.hex()
            for firm in at.firms.all()
            if firm.status is FirmStatus.APPROVED and firm.identity_key is not None
        }
    missing = sorted(set(wanted) - set(approved))
    if missing:
        raise JobDraftError(
            f"{', '.join(missing)} cannot take part: not approved; see `dure-server firms`, then `dure-server approve`"
        )
    return {name: approved[name] for name in (wanted or sorted(approved))}
