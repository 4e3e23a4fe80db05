"""What a firm's people look at before they say yes to a job, and their yes or no. Below the commands and the page.

dure_client.policy.PolicyError            a digest is not that of the job file, or of its model package, as it is now
dure_protocols.errors.RefusedError        the policy does not admit the job
"""

from dataclasses import dataclass
from datetime import datetime

from dure_client.consent import novelties
from dure_client.home import AgentHome
from dure_client.jobs.approvals import KnownJob, Verdict, approved_by_people, decide, known_job
from dure_client.jobs.refusals import KeptRefusal, forget_refusal, last_refusal
from dure_client.packages.admission import JobModel, job_model
from dure_client.packages.shelf import PackageShelf
from dure_client.policy import Policy, PolicyError
from dure_client.policy_checks import PackageStanding, check_job
from dure_client.vouches import read_vouches
from dure_models import registry
from dure_models.contract import DataContract
from dure_models.digest import model_digest
from dure_models.errors import UnknownModelError
from dure_protocols.errors import RefusedError
from dure_protocols.identity import fingerprint, grouped, same_fingerprint
from dure_protocols.vouching import vouchers

PRIVACY = (
    "The server learns sums over the firms of a round: of updates, row counts and metrics. Sums are public to all "
    "members and may reveal something about rows that only one firm has; this job adds no differential privacy. When a "
    "firm drops out of a round, the difference of two sums shows how many rows it has, unless minimum_difference in "
    "policy.toml is 2. Every firm checks each sum by a tag that the server cannot make; a server and a firm together "
    "can, and steer the model. Members of the roster can poison it."
)


@dataclass(frozen=True)
class Member:
    """A firm of a job's roster. is_accepted: pinned here with exactly this key; vouched_by: firms whose word counts."""

    firm: str
    fingerprint: str
    is_this_firm: bool
    is_accepted: bool
    vouched_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Review:
    """A job as a person reads it.

    refusal: why the policy does not admit it, None if it does; novelties: what no job that a person approved here had,
    and that an earlier decision cannot be read; last_refused: what the agent refused of it last, if anything.
    """

    known: KnownJob
    contract: DataContract
    members: tuple[Member, ...]
    model: JobModel
    refusal: RefusedError | None
    novelties: tuple[str, ...]
    last_refused: KeptRefusal | None


def installed_models() -> dict[str, str]:
    """Name to digest of every model that is installed here whole. Imports none of them."""
    found = {}
    for name in registry.names():
        try:
            found[name] = model_digest(name)
        except UnknownModelError:  # announced twice, or not as a folder: as good as not there
            continue
    return found


def review(home: AgentHome, known: KnownJob, package: str = "") -> Review:
    """Look at a job. package: which model package, by digest, where several fit.

    Raises HomeError, PolicyError for a policy that cannot be read, ContractError, RefusedError(MODEL_DIGEST) if the
    package is not here whole.
    """
    policy, own, job, given = Policy.read(home.policy_file), home.config().firm, known.job, read_vouches(home)
    members = tuple(
        Member(
            firm,
            fingerprint(key),
            firm == own,
            policy.firms.get(firm) == fingerprint(key),
            () if firm in policy.firms else tuple(sorted(vouchers(given, job.consortium, firm, key, policy.firms))),
        )
        for firm, key in job.identities().items()
    )
    model, refusal = model_of(home, known, package), None
    try:
        check(home, known, model)
    except RefusedError as error:
        refusal = error
    new = list(novelties(job, approved_by_people(home, but=job.id), own).values())
    if known.decision is not None and known.decision.verdict is Verdict.DAMAGED:
        new.insert(0, "what was decided on it here cannot be read any more, and counts for nothing: decide again")
    return Review(known, DataContract.of(job.contract), members, model, refusal, tuple(new), last_refusal(home, job.id))


def model_of(home: AgentHome, known: KnownJob, package: str = "") -> JobModel:
    """The job's model as a person would approve it: of what package, if it is not installed with Dure.

    A package that was changed here is approved anew from what was fetched, so its installed files do not count.
    """
    return job_model(home, known.job, package or None, for_approval=True)


def check(home: AgentHome, known: KnownJob, model: JobModel | None = None) -> None:
    """Whether the policy admits a job, a person's yes aside. Raises RefusedError, HomeError, PolicyError."""
    model = model or model_of(home, known)
    check_job(
        Policy.read(home.policy_file),
        known.job,
        firm=home.config().firm,
        public_key=home.identity().public_bytes,
        installed=model.installed,
        vouches=read_vouches(home),
        package=PackageStanding.APPROVED if model.package is not None else None,
    )


def reviewed(home: AgentHome, job: str, digest: str, package: str = "") -> Review:
    """The review of a job that people have read before, of which they name what they read.

    digest: the job file's SHA-256, hex, in any grouping; package: the package's, "" for a model that comes with Dure.
    Raises PolicyError if the job file or its model package is not the one named, ApprovalError, and as `review`.
    """
    known = known_job(home, job)
    _check_digest(known, digest)
    found = review(home, known, package)
    _check_package(job, found.model, package)
    return found


def approve(home: AgentHome, found: Review, now: datetime) -> None:
    """Say yes to a job file and its model package, exactly those of a review that people read; install the package.

    Raises RefusedError if the policy did not admit the job, PolicyError if its file was changed since, ApprovalError,
    PackageError, WheelError.
    """
    job, package = found.known.job, found.model.package
    if found.refusal is not None:
        raise found.refusal
    _check_digest(known_job(home, job.id), job.digest().hex())
    if package is not None:
        native = Policy.read(home.policy_file).allow_native_code
        PackageShelf(home.models).install(package, now, allow_native_code=native)
    decide(home, job, Verdict.APPROVED, now, package=package)
    forget_refusal(home, job.id)  # it was about what is decided now


def reject(home: AgentHome, job: str, now: datetime) -> None:
    """Say no to a job; `approve` takes that back. Raises ApprovalError."""
    decide(home, known_job(home, job).job, Verdict.REJECTED, now)


def _check_digest(known: KnownJob, digest: str) -> None:
    job, own = known.job.id, known.job.digest().hex()
    if not same_fingerprint(digest, own):
        raise PolicyError(
            f"job {job!r} has the digest {grouped(own)}, not {digest}: it is not the job file you reviewed. "
            f"Run `dure-agent review {job}` again"
        )


def _check_package(job: str, model: JobModel, package: str) -> None:
    if model.package is not None and package != model.package:
        raise PolicyError(
            f"job {job!r} runs a model package, and a yes is for exactly one that was reviewed: run `dure-agent review "
            f"{job} --source`, then approve it with --package {model.package}"
        )
    if model.package is None and package:
        raise PolicyError(
            f"job {job!r} runs no model package here: its model is installed with Dure. Run `dure-agent review {job}` "
            "again"
        )
