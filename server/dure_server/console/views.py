"""What the pages and the REST API show, read from the store in one transaction."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict
from sqlalchemy import func, select

from dure_protocols.identity import fingerprint
from dure_protocols.job import JobFile
from dure_server.console.timeline import SHOWN_EVENTS, Stretch, event_views, stretches
from dure_server.store import JobState, RoundState, SignoffState, Transaction
from dure_server.store.tables import Departure, Event, Firm, Job, Progress, Round, Signoff

_MOST_WANTED = (JobState.RUNNING, JobState.PAUSED, JobState.PROPOSED)


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class JobSummary(_View):
    """A job in the list."""

    id: str
    title: str
    simulated: bool
    """The data behind it is simulated; every place that names the job says so."""
    state: JobState
    reason: str
    rounds_finished: int
    num_rounds: int
    created_at: datetime


class RoundView(_View):
    """One attempt at a round."""

    number: int
    attempt: int
    state: RoundState
    reason: str
    members: list[str]
    count: float | None
    """Rows behind the sum, over all members."""
    metrics: dict[str, float]
    model_digest: str | None
    sum_digest: str | None
    bytes_up: int
    bytes_down: int
    started_at: datetime
    seconds: float | None


class Seat(_View):
    """A firm of a job, right now. `standing`: answered, waiting, left-out, idle; left: it left the job for good."""

    firm: str
    signoff: SignoffState
    refusal: str | None
    connected: bool
    standing: str


class Live(_View):
    """Where a job is."""

    phase: str
    round_number: int | None
    attempt: int | None
    sentence: str
    updated_at: datetime


class JobView(JobSummary):
    """A job, whole."""

    digest: str
    consortium: str
    model: str
    parameters: int
    minimum_cohort: int
    mode: str
    threshold: int | None
    main_metric: str | None
    live: Live | None
    seats: list[Seat]
    rounds: list[RoundView]

    @property
    def finished_rounds(self) -> list[RoundView]:
        """The rounds that count, in order."""
        return [row for row in self.rounds if row.state is RoundState.FINISHED]

    @property
    def metric_names(self) -> list[str]:
        """The main metric first, then the others that any round has."""
        names = sorted({name for row in self.rounds for name in row.metrics})
        return sorted(names, key=lambda name: (name != self.main_metric, name))

    @property
    def bytes_up(self) -> int:
        """All that firms sent in rounds of this job."""
        return sum(row.bytes_up for row in self.rounds)

    @property
    def bytes_down(self) -> int:
        """All that firms fetched in rounds of this job."""
        return sum(row.bytes_down for row in self.rounds)


class FirmView(_View):
    """A firm of the consortium."""

    name: str
    status: str
    identity_fingerprint: str | None
    agent_version: str | None
    link_refusal: str | None
    """Why the link refused the firm's agent when it came last."""
    connected: bool
    last_seen_at: datetime | None
    ledger_breaks: int
    """How often its ledger did not follow from what the server had countersigned."""


class Overview(_View):
    """The first page."""

    consortium: str
    jobs: list[JobSummary]
    job: JobView | None
    timeline: list[Stretch]
    """Of the job, newest first."""
    firms: list[FirmView]


def overview(tx: Transaction, chosen: str | None = None) -> Overview:
    """The first page with the chosen job, or the one that matters most now. Raises UnknownRowError."""
    rows = tx.jobs.all()
    if chosen is None:
        rank = {state: place for place, state in enumerate(_MOST_WANTED)}
        chosen = min(rows, key=lambda row: rank.get(row.state, len(rank))).id if rows else None
    return Overview(
        consortium=tx.consortium.get().name,
        jobs=[_summary(tx, row) for row in rows],
        job=job_view(tx, chosen) if chosen is not None else None,
        timeline=stretches(event_views(tx.timeline.of(chosen, newest=SHOWN_EVENTS))) if chosen is not None else [],
        firms=firm_views(tx),
    )


def job_summaries(tx: Transaction) -> list[JobSummary]:
    """Every job, newest first."""
    return [_summary(tx, row) for row in tx.jobs.all()]


def job_view(tx: Transaction, job: str) -> JobView:
    """A job, whole. Raises UnknownRowError."""
    row = tx.jobs.get(job)
    body = JobFile.from_bytes(row.body)
    rounds = [_round(each) for each in tx.rounds.of(job)]
    metrics = {name for each in rounds for name in each.metrics}
    return JobView(
        **_summary(tx, row).model_dump(),
        digest=row.digest,
        consortium=body.consortium,
        model=body.model.name,
        parameters=body.model.parameters,
        minimum_cohort=body.minimum_cohort,
        mode=body.mode,
        threshold=body.threshold,
        main_metric=body.selection_metric or next(iter(body.model.round_metrics or sorted(metrics)), None),
        live=_live(tx.progress.get(job)),
        seats=_seats(
            body,
            tx.signoffs.of(job),
            {firm.name: firm for firm in tx.firms.all()},
            tx.progress.get(job),
            tx.departures.from_job(job, {name: fingerprint(key) for name, key in body.identities().items()}),
        ),
        rounds=rounds,
    )


def firm_views(tx: Transaction) -> list[FirmView]:
    """Every firm, by name."""
    breaks = tx.ledger_heads.breaks()
    return [
        FirmView(
            name=row.name,
            status=row.status.value,
            identity_fingerprint=row.identity_fingerprint,
            agent_version=row.agent_version,
            link_refusal=row.link_refusal,
            connected=row.connected_since is not None,
            last_seen_at=row.last_seen_at,
            ledger_breaks=breaks.get(row.name, 0),
        )
        for row in tx.firms.all()
    ]


def change_mark(tx: Transaction) -> tuple[object, ...]:
    """Something that differs whenever a page would: one cheap query, asked once a second by each open stream."""
    newest = [
        func.max(column)
        for column in (Job.changed_at, Progress.updated_at, Signoff.changed_at, Round.started_at, Round.finished_at)
    ]
    firm_times = (Firm.invited_at, Firm.joined_at, Firm.approved_at, Firm.revoked_at, Firm.last_seen_at)
    newest += [func.max(column) for column in (*firm_times, Event.at, Departure.at)]
    counts = [select(func.count()).select_from(table).scalar_subquery() for table in (Firm, Job, Round)]
    marks = tx.session.execute(select(*(select(each).scalar_subquery() for each in newest), *counts)).one()
    return tuple(marks)


def _summary(tx: Transaction, row: Job) -> JobSummary:
    # Round 0 sums statistics and one behind the last measures the model; people count training rounds.
    last = tx.rounds.last_finished(row.id)
    return JobSummary(
        id=row.id,
        title=row.title,
        simulated=JobFile.from_bytes(row.body).simulated,
        state=row.state,
        reason=row.reason,
        rounds_finished=min(last.number, row.num_rounds) if last is not None else 0,
        num_rounds=row.num_rounds,
        created_at=row.created_at,
    )


def _round(row: Round) -> RoundView:
    return RoundView(
        number=row.number,
        attempt=row.attempt,
        state=row.state,
        reason=row.reason,
        members=row.summed,
        count=row.count,
        metrics=row.metrics,
        model_digest=row.model_digest,
        sum_digest=row.sum_digest,
        bytes_up=row.bytes_up,
        bytes_down=row.bytes_down,
        started_at=row.started_at,
        seconds=sum(row.seconds.values()) if row.seconds else None,
    )


def _live(row: Progress | None) -> Live | None:
    if row is None:
        return None
    return Live(
        phase=row.phase,
        round_number=row.round_number,
        attempt=row.attempt,
        sentence=row.sentence,
        updated_at=row.updated_at,
    )


def _seats(
    body: JobFile, signoffs: list[Signoff], firms: dict[str, Firm], progress: Progress | None, left: set[str]
) -> list[Seat]:
    words = {row.firm: row for row in signoffs}
    members = set(progress.members) if progress is not None else set()
    waiting = set(progress.waiting_for) if progress is not None else set()
    seats = []
    for name in sorted(body.firms):
        word, firm = words.get(name), firms.get(name)
        if name in left:
            standing = "left"
        elif name in waiting:
            standing = "waiting"
        elif name in members:
            standing = "answered"
        else:
            standing = "left-out" if members else "idle"
        seats.append(
            Seat(
                firm=name,
                signoff=word.state if word is not None else SignoffState.AWAITING,
                refusal=word.code if word is not None else None,
                connected=firm is not None and firm.connected_since is not None,
                standing=standing,
            )
        )
    return seats
