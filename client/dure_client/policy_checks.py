"""Holds a job against the policy: firms, model, cohort, purpose, agreement, sandbox, and who said yes. Pure.

Raises dure_protocols.errors.RefusedError: its code may leave, its text may not.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from dure_client.consent import why_person
from dure_client.jobs.approvals import By, Decision, Verdict
from dure_client.policy import ApproveJobs, Policy
from dure_client.trainer.sandbox import Sandbox
from dure_protocols.errors import RefusalCode, RefusedError
from dure_protocols.identity import fingerprint, grouped
from dure_protocols.job import JobFile
from dure_protocols.vouching import Vouch, vouchers


class PackageStanding(StrEnum):
    """How a model package stands for a job. It is installed once people said yes to it, for whatever job."""

    FETCHED = "fetched"
    INSTALLED = "installed"
    APPROVED = "approved"
    """It is installed, and people approved this job with it."""


def check_job(
    policy: Policy,
    job: JobFile,
    *,
    firm: str,
    public_key: bytes,
    installed: Mapping[str, str],
    vouches: Sequence[Vouch] = (),
    package: PackageStanding | None = None,
) -> None:
    """Whether this firm may take part in a job at all, approval aside. Pure.

    `firm` and `public_key` are our own; `installed` maps the models that are here to their digests; `package` is how
    the job's model package stands here, None if the model comes with Dure.
    (1) We are in the roster, with our own key. (2) Every other firm is one we pinned, with the key we pinned, or enough
    firms that we pinned vouch for its key. (3) There are firms enough for the smallest sum that we want. (4) The model
    is installed here, is the one the job means, and is one that we allow; a package only once people said yes to it,
    and then without being listed, too, for the job with which they did.
    (5) Its purpose and (6) the agreement are among those that we listed, where we listed any.
    The caller MUST also: hold each round's cohort against `minimum_cohort` and `minimum_difference` (the secure
    aggregation does), check the contract against the data (the trainer does), and ask `check_decision`.
    Raises RefusedError.
    """
    keys = job.identities()
    if keys.get(firm) != public_key:  # (1)
        raise RefusedError(
            RefusalCode.ROSTER,
            f"job {job.id!r} does not name {firm!r} with this agent's own key; ask the operator to draft it again",
        )
    for name, key in keys.items():  # (2)
        if name != firm:
            _check_pin(policy, job, name, key, vouches)
    if len(keys) < policy.minimum_cohort:  # (3)
        raise RefusedError(
            RefusalCode.COHORT_TOO_SMALL,
            f"job {job.id!r} has {len(keys)} firms, policy.toml asks for sums of at least {policy.minimum_cohort}",
        )
    _check_model(policy, job, installed, package)  # (4)
    if policy.purposes and job.purpose not in policy.purposes:  # (5)
        raise RefusedError(
            RefusalCode.PURPOSE,
            f"the job is for {job.purpose or 'no purpose that it names'!r}; policy.toml takes: "
            f"{', '.join(map(repr, policy.purposes))}. Reject it, or add the purpose to `purposes`",
        )
    if policy.agreements and not any(agreed.covers(job.agreement) for agreed in policy.agreements):  # (6)
        raise RefusedError(
            RefusalCode.AGREEMENT,
            f"the job runs under {job.agreement or 'no agreement'}; policy.toml takes: "
            f"{'; '.join(map(str, policy.agreements))}. Read the agreement, then add it, or reject the job",
        )


def _check_pin(policy: Policy, job: JobFile, name: str, key: bytes, vouches: Sequence[Vouch]) -> None:
    pinned, came = policy.firms.get(name), fingerprint(key)
    if pinned is None:
        found = vouchers(vouches, job.consortium, name, key, policy.firms)
        if 0 < policy.vouchers_needed <= len(found):
            return
        counted = (
            f"; {len(found)} of the {policy.vouchers_needed} accepted firms that policy.toml asks for vouch for it"
        )
        raise RefusedError(
            RefusalCode.ROSTER,
            f"the firm {name!r} is not accepted here. Ask its people, over a way of your own, for the fingerprint that "
            f"their `dure-agent status` shows, and run `dure-agent accept {name} FINGERPRINT` with what they say; the "
            f"server claims that it begins with {grouped(came)[:9]}{counted if policy.vouchers_needed else ''}",
        )
    if pinned != came:
        raise RefusedError(
            RefusalCode.ROSTER,
            f"the job gives {name!r} the key {grouped(came)}, but {grouped(pinned)} was accepted for it: it has a new "
            f"key, or somebody poses as {name}. Ask {name} by phone before you accept another key",
        )


def _check_model(policy: Policy, job: JobFile, installed: Mapping[str, str], package: PackageStanding | None) -> None:
    name, digest = job.model.name, job.model.digest
    if name not in installed:
        raise RefusedError(
            RefusalCode.UNKNOWN_MODEL,
            f"the model {name!r} with digest {digest[:16]}… is not here: run `dure-agent model fetch {name}` if the "
            f"consortium's registry offers it, then `dure-agent review {job.id}`; or reject the job",
        )
    if installed[name] != digest:
        raise RefusedError(
            RefusalCode.MODEL_DIGEST,
            f"the job means {name!r} with digest {digest[:16]}…, here {installed[name][:16]}… is installed; "
            "install the version that the consortium agreed on",
        )
    is_listed = any(model.name == name and model.digest == digest for model in policy.allowed_models)
    if package is not None:
        _check_package(policy, job, package, is_listed=is_listed)
    elif not (is_listed or policy.allow_any_installed_model):
        raise RefusedError(
            RefusalCode.UNKNOWN_MODEL,
            f"the model {name!r} with digest {digest[:16]}… is not on the allow-list in policy.toml; "
            f"review its code, then run `dure-agent policy allow {name}`",
        )


def _check_package(policy: Policy, job: JobFile, package: PackageStanding, *, is_listed: bool) -> None:
    is_allowed = is_listed or policy.allow_any_installed_model
    if package is PackageStanding.APPROVED or (package is PackageStanding.INSTALLED and is_allowed):
        return
    raise RefusedError(
        RefusalCode.NOT_APPROVED,
        f"the package of the model {job.model.name!r} is {package.value} here, and nobody approved it for job "
        f"{job.id!r}: run `dure-agent review {job.id} --source`, then `dure-agent approve {job.id}`",
    )


def check_sandbox(policy: Policy, sandbox: Sandbox) -> None:
    """Whether a trainer may start in this host's sandbox. Called with `check_job`. Raises RefusedError."""
    wanted, level = policy.require_sandbox, sandbox.level
    if not level.reaches(wanted):
        raise RefusedError(
            RefusalCode.SANDBOX,
            f'policy.toml asks for require_sandbox = "{wanted}", and this host has "{level}": {sandbox.why_not_more}. '
            "Then start the agent again; `dure-agent doctor` shows what is enforced. To take part without, lower "
            "require_sandbox in policy.toml",
        )


def check_not_refused(job: JobFile, decision: Decision | None) -> None:
    """Whether the firm neither left nor rejected exactly this job file: that goes before every other reason.

    Raises RefusedError, also where what it said cannot be read: it may have been a no.
    """
    if decision is None or decision.digest != job.digest().hex():
        return
    if decision.verdict is Verdict.LEFT:
        raise RefusedError(RefusalCode.LEFT, f"this firm left job {job.id!r} on {decision.time}")
    if decision.verdict is Verdict.REJECTED:
        raise RefusedError(RefusalCode.REJECTED_BY_FIRM, f"job {job.id!r} was rejected here on {decision.time}")
    if decision.verdict is Verdict.DAMAGED:
        raise RefusedError(
            RefusalCode.NOT_APPROVED,
            f"this firm's decision on job {job.id!r} cannot be read, approval.json is damaged: decide again with "
            f"`dure-agent approve {job.id}` or `dure-agent reject {job.id}`",
        )


def check_decision(
    policy: Policy, job: JobFile, decision: Decision | None, approved_before: Sequence[JobFile] = ()
) -> None:
    """Whether the firm said yes to exactly this job file. Called after `check_job`. Raises RefusedError.

    approved_before: the jobs that a person approved here. A yes that the policy gave by itself stands only as long as
    it would give it again.
    """
    check_not_refused(job, decision)
    if decision is not None and decision.digest == job.digest().hex() and decision.by is By.PERSON:
        return
    if reasons := why_a_person(policy, job, approved_before):
        raise RefusedError(
            RefusalCode.NOT_APPROVED,
            f"job {job.id!r} waits for this firm ({'; '.join(reasons)}): run `dure-agent review {job.id}`, then "
            f"`dure-agent approve {job.id}`",
        )


def why_a_person(policy: Policy, job: JobFile, approved_before: Sequence[JobFile]) -> list[str]:
    """Why a person has to say yes to this job, in words; empty if the policy may. Pure."""
    if policy.approve_jobs is not ApproveJobs.ALLOWED_MODELS:
        return ["policy.toml asks a person about every job"]
    reasons = [] if policy.purposes else ["policy.toml lists no purposes"]
    reasons += [] if policy.agreements else ["policy.toml lists no agreements"]
    return reasons + why_person(policy.ask_person, job, approved_before)
