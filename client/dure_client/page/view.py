"""What the firm's page shows, read from the home. A damaged file is told and keeps nothing else from being shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from dure_client.absence import Pause, maintenance_until, pause_in_force
from dure_client.home import AgentHome
from dure_client.jobs.approvals import JOB_FILE, KnownJob, known_job
from dure_client.jobs.results import JobResult, ResultError
from dure_client.jobs.review import Review, installed_models, review
from dure_client.policy import Policy, PolicyError
from dure_client.policy_words import in_words
from dure_client.status import Status, read_status
from dure_protocols.errors import DureError


@dataclass(frozen=True)
class Bar:
    """One model's value of the main metric on the firm's test rows; percent: of the longest bar."""

    value: float | None
    percent: float


@dataclass(frozen=True)
class Gain:
    """What a finished job was worth here. better_percent: by how much the federated model is better than the firm's
    own, of the latter; None where that cannot be said."""

    result: JobResult
    alone: Bar
    federated: Bar
    better_percent: float | None


@dataclass(frozen=True)
class JobCard:
    """A job on the first page. round: the one it stands before, while it runs; pause: of this job alone."""

    known: KnownJob
    round: int
    pause: Pause | None
    gain: Gain | None
    review: Review | None
    """For a job that waits for the firm's word."""


@dataclass(frozen=True)
class PolicyView:
    """The policy in force. words: as `dure-agent policy explain` says it; installed: models, digests by name."""

    policy: Policy
    is_default: bool
    words: tuple[str, ...]
    maintenance_until: datetime | None
    installed: Mapping[str, str]


@dataclass(frozen=True)
class FirmView:
    """The first page, but for the ledger. problems: sentences on files that are damaged."""

    now: datetime
    status: Status
    pause: Pause | None
    jobs: tuple[JobCard, ...]
    policy: PolicyView | None
    problems: tuple[str, ...]

    def in_state(self, *states: str) -> list[JobCard]:
        """The jobs that stand so."""
        return [card for card in self.jobs if card.known.state in states]


def firm_view(home: AgentHome, now: datetime) -> FirmView:
    """Look into the home; nobody is asked. now: local time, with its zone. Raises HomeError."""
    problems, cards = [], []
    for name in home.job_names():
        if (home.job_folder(name) / JOB_FILE).exists():
            try:
                cards.append(job_card(home, known_job(home, name), now))
            except DureError as error:
                problems.append(str(error))
    policy = None
    try:
        policy = policy_view(home, now)
    except PolicyError as error:
        problems.append(str(error))
    status = read_status(home, now, ask=False)
    return FirmView(now, status, pause_in_force(home, None, now), tuple(cards), policy, tuple(problems))


def job_card(home: AgentHome, known: KnownJob, now: datetime) -> JobCard:
    """One job. Raises a DureError for a damaged file."""
    return JobCard(
        known=known,
        round=min(known.next_round or 0, known.job.rounds),
        pause=pause_in_force(home, known.job.id, now),
        gain=gain_of(home, known),
        review=review(home, known) if known.state == "proposed" else None,
    )


def policy_view(home: AgentHome, now: datetime) -> PolicyView:
    """The policy in force. Raises PolicyError."""
    policy = Policy.read(home.policy_file)
    return PolicyView(
        policy=policy,
        is_default=not home.policy_file.exists(),
        words=tuple(in_words(policy)),
        maintenance_until=maintenance_until(policy.maintenance, now),
        installed=installed_models(),
    )


def gain_of(home: AgentHome, known: KnownJob) -> Gain | None:
    """The result of a job, or None before there is one."""
    try:
        result = JobResult.read(home.job_folder(known.job.id) / "result.json")
    except ResultError:
        return None
    alone, federated = (each.test.get(result.primary_metric) for each in (result.alone, result.federated))
    longest = max(abs(value) for value in (alone, federated, 0.0) if value is not None)
    better = None
    if alone and federated is not None:
        difference = federated - alone if result.higher_is_better else alone - federated
        better = 100.0 * difference / abs(alone)
    return Gain(result, _bar(alone, longest), _bar(federated, longest), better)


def _bar(value: float | None, longest: float) -> Bar:
    return Bar(value, round(100.0 * abs(value) / longest, 1) if value is not None and longest else 0.0)
