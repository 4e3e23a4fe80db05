"""The policy in force, in sentences that a security officer can read aloud. Pure."""

from collections.abc import Iterator

from dure_client.consent import Asks
from dure_client.policy import ApproveJobs, Policy
from dure_client.trainer.sandbox import SandboxLevel

_ASKED = {
    Asks.NEW_MODEL: "a new model or version",
    Asks.NEW_FIRM: "a new firm or key",
    Asks.NEW_AGREEMENT: "a new agreement or version",
    Asks.WEAKER_COHORT: "sums over fewer firms than before",
}

_CONFINED = {
    SandboxLevel.FULL: "A model's code gets no network, no files but the data's and no processes of its own; where "
    "this machine cannot enforce that, no job is taken.",
    SandboxLevel.LIMITS: "A model's code runs at least within limits on memory and files; network and other files may "
    "be open to it.",
    SandboxLevel.OFF: "A model's code may run without a sandbox.",
}


def in_words(policy: Policy) -> list[str]:
    """What this firm consents to, one sentence a rule."""
    return [*_who_decides(policy), *_with_whom(policy), *_what_runs(policy), *_what_sums_show(policy), *_when(policy)]


def _who_decides(policy: Policy) -> Iterator[str]:
    listed = bool(policy.purposes and policy.agreements)
    if policy.approve_jobs is ApproveJobs.ASK or not listed:
        yield "A person here approves every job before anything is computed."
        if policy.approve_jobs is not ApproveJobs.ASK:
            yield "That is so whatever approve_jobs says, because purposes or agreements are not listed."
        return
    asked = [_ASKED[kind] for kind in policy.ask_person]
    yield "The agent takes part by itself in jobs within this policy."
    yield f"A person here is asked all the same about {', '.join(asked)}." if asked else "No novelty is asked about."


def _with_whom(policy: Policy) -> Iterator[str]:
    yield f"Only with firms that were accepted here by fingerprint: {', '.join(sorted(policy.firms)) or 'none yet'}."
    if policy.vouchers_needed:
        yield f"Also with a firm whose key {policy.vouchers_needed} of these vouch for, signed."
    yield f"Never in sums of fewer than {policy.minimum_cohort} firms."


def _what_runs(policy: Policy) -> Iterator[str]:
    models = ", ".join(f"{model.name} ({model.digest[:8]}…)" for model in policy.allowed_models) or "none yet"
    if policy.allow_any_installed_model:
        yield "Any model that is installed here and that the job names by its digest."
    else:
        yield (
            f"Only these models, by digest: {models}; and model packages that a person here approved with their job."
        )
    yield "Code that a server sends is never run."
    yield (
        "Packages with compiled parts, which nobody can read, may be fetched."
        if policy.allow_native_code
        else "No package with compiled parts is fetched."
    )
    yield _CONFINED[policy.require_sandbox]
    yield from _what_it_may_use(policy)
    yield f"For {', '.join(policy.purposes)} only." if policy.purposes else "For any purpose that a person approves."
    agreed = "; ".join(map(str, policy.agreements))
    yield f"Under these agreements only: {agreed}." if agreed else "Under any agreement that a person approves."


def _what_it_may_use(policy: Policy) -> Iterator[str]:
    if policy.trainer_memory_gib:
        yield f"Training takes at most {policy.trainer_memory_gib:g} GiB of memory."
    if policy.trainer_processors:
        yield f"Training uses at most {policy.trainer_processors} of this machine's processors."
    if policy.gpu_devices:
        yield f"A model's code may use these devices: {', '.join(map(str, policy.gpu_devices))}."


def _what_sums_show(policy: Policy) -> Iterator[str]:
    yield f"Never from fewer than {policy.minimum_rows} rows of ours."
    if policy.minimum_difference > 1:
        yield f"Sums of updates differ by at least {policy.minimum_difference} firms from each other, or not at all."
    else:
        yield "Sums of updates may differ by one firm, and then show that firm's row count and roughly its update."
    yield f"Sums of statistics differ by at least {policy.minimum_statistics_difference} firms, or not at all."


def _when(policy: Policy) -> Iterator[str]:
    if policy.maintenance:
        yield f"Not in {', '.join(policy.maintenance)}, local time."
    yield from (f"In {shift}." for shift in policy.shifts)
    if not policy.maintenance and not policy.shifts:
        yield "At any time."
