"""What a firm's people look at before they say yes to a job, and their yes or no. Below the commands and the page.

dure_client.policy.PolicyError            the digest is not that of the job file as it is now
dure_protocols.errors.RefusedError        the policy does not admit the job
"""

from dataclasses import dataclass
from datetime import datetime

from dure_client.home import AgentHome
from dure_client.jobs.approvals import KnownJob, Verdict, decide, known_job
from dure_client.policy import Policy, PolicyError, check_job
from dure_models import registry
from dure_models.contract import DataContract
from dure_models.digest import model_digest
from dure_models.errors import UnknownModelError
from dure_protocols.errors import RefusedError
from dure_protocols.identity import fingerprint, grouped, same_fingerprint

PRIVACY = (
    "The server learns sums over the firms of a round: of updates, row counts and metrics. Sums are public to all "
    "members and may reveal something about rows that only one firm has; this job adds no differential privacy. When a "
    "firm drops out of a round, the difference of two sums shows how many rows it has, unless minimum_difference in "
    "policy.toml is 2. Every firm checks each sum by a tag that the server cannot make; a server and a firm together "
    "can, and steer the model. Members of the roster can poison it."
)


@dataclass(frozen=True)
class Member:
    """A firm of a job's roster. is_accepted: pinned here with exactly this key."""

    firm: str
    fingerprint: str
    is_this_firm: bool
    is_accepted: bool


@dataclass(frozen=True)
class Review:
    """A job as a person reads it. refusal: why the policy does not admit it; None if it does."""

    known: KnownJob
    contract: DataContract
    members: tuple[Member, ...]
    refusal: RefusedError | None


def installed_models() -> dict[str, str]:
    """Name to digest of every model that is installed here whole. Imports none of them."""
    found = {}
    for name in registry.names():
        try:
            found[name] = model_digest(name)
        except UnknownModelError:  # announced twice, or not as a folder: as good as not there
            continue
    return found


def review(home: AgentHome, known: KnownJob) -> Review:
    """Look at a job. Raises HomeError, PolicyError for a policy that cannot be read, ContractError."""
    policy, own = Policy.read(home.policy_file), home.config().firm
    members = tuple(
        Member(firm, fingerprint(key), firm == own, policy.firms.get(firm) == fingerprint(key))
        for firm, key in known.job.identities().items()
    )
    refusal = None
    try:
        check(home, known)
    except RefusedError as error:
        refusal = error
    return Review(known, DataContract.of(known.job.contract), members, refusal)


def check(home: AgentHome, known: KnownJob) -> None:
    """Whether the policy admits a job. Raises RefusedError, HomeError, PolicyError."""
    check_job(
        Policy.read(home.policy_file),
        known.job,
        firm=home.config().firm,
        public_key=home.identity().public_bytes,
        installed=installed_models(),
    )


def check_digest(known: KnownJob, digest: str) -> None:
    """Whether the job file is the one that was reviewed. Raises PolicyError."""
    job, own = known.job.id, known.job.digest().hex()
    if not same_fingerprint(digest, own):
        raise PolicyError(
            f"job {job!r} has the digest {grouped(own)}, not {digest}: it is not the job file you reviewed. "
            f"Run `dure-agent review {job}` again"
        )


def approve(home: AgentHome, job: str, digest: str, now: datetime) -> None:
    """Say yes to a job file, exactly as it was reviewed. `digest`: its SHA-256, hex, in any grouping.

    Raises ApprovalError, PolicyError, RefusedError, HomeError.
    """
    known = known_job(home, job)
    check_digest(known, digest)
    check(home, known)
    decide(home, known.job, Verdict.APPROVED, now)


def reject(home: AgentHome, job: str, now: datetime) -> None:
    """Say no to a job; `approve` takes that back. Raises ApprovalError."""
    decide(home, known_job(home, job).job, Verdict.REJECTED, now)
