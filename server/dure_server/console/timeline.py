"""A job's timeline for the page: events gathered into stretches, one for each attempt at a round and what lies between.

`EventView` is what the REST API gives: the events themselves, in order.
"""

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from dure_server.store import EventKind
from dure_server.store.tables import Event
from dure_server.store.timeline import happening_of

SHOWN_EVENTS = 400
SHOWN_STRETCHES = 40


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class EventView(_View):
    """One event of a job. at: when it was over; seconds: how long it took; firm: of a phase, who answered last."""

    number: int
    at: datetime
    kind: EventKind
    phase: str | None
    round: int | None
    attempt: int | None
    firm: str | None
    seconds: float | None
    code: str | None
    sentence: str


class Part(_View):
    """A phase in a stretch's bar, in percent of the longest stretch that is shown."""

    phase: str
    start: float
    width: float


class Stretch(_View):
    """What belongs together: an attempt at a round (`round` is its number), a wait, or what is about the whole job."""

    at: datetime
    round: int | None
    attempt: int | None
    outcome: str
    """finished, abandoned, waiting, or "" for what is still open or has no outcome."""
    seconds: float
    phases: list[EventView]
    told: list[EventView]
    """Everything that is no phase, in order."""
    bar: list[Part]


def event_views(rows: Sequence[Event]) -> list[EventView]:
    """Events for people and programs."""
    return [
        EventView(
            number=row.number,
            at=row.at,
            kind=row.kind,
            phase=row.phase,
            round=row.round_number,
            attempt=row.attempt,
            firm=row.firm,
            seconds=row.seconds,
            code=row.code,
            sentence=happening_of(row).sentence,
        )
        for row in rows
    ]


def stretches(events: Sequence[EventView]) -> list[Stretch]:
    """The newest stretches, newest first. `events`: in order."""
    groups: list[list[EventView]] = []
    for event in events:
        if groups and _key(groups[-1][-1]) == _key(event):
            groups[-1].append(event)
        else:
            groups.append([event])
    newest = groups[: -SHOWN_STRETCHES - 1 : -1]
    longest = max((_seconds(group) for group in newest if _key(group[0])[0] == "round"), default=0.0)
    return [_stretch(group, longest) for group in newest]


def _key(event: EventView) -> tuple[str, int | None, int | None]:
    if event.kind is EventKind.WAITING:
        return "waiting", event.round, None
    if event.round is None:
        return "job", None, None
    return "round", event.round, event.attempt


def _seconds(group: Sequence[EventView]) -> float:
    return sum(event.seconds or 0.0 for event in group if event.kind in {EventKind.PHASE, EventKind.WAITING})


def _stretch(group: Sequence[EventView], longest: float) -> Stretch:
    kinds = {event.kind for event in group}
    outcomes = [kind.value for kind in (EventKind.FINISHED, EventKind.ABANDONED, EventKind.WAITING) if kind in kinds]
    phases = [event for event in group if event.kind is EventKind.PHASE]
    is_round = _key(group[0])[0] == "round"
    silent = {EventKind.PHASE, EventKind.FINISHED} if is_round else set()
    return Stretch(
        at=group[-1].at,
        round=group[0].round,
        attempt=group[-1].attempt if is_round else None,
        outcome=outcomes[0] if outcomes else "",
        seconds=_seconds(group),
        phases=phases if is_round else [],
        told=[event for event in group if event.kind not in silent],
        bar=_bar(phases, longest) if is_round and longest > 0 else [],
    )


def _bar(phases: Sequence[EventView], longest: float) -> list[Part]:
    parts, start = [], 0.0
    for event in phases:
        width = 100.0 * (event.seconds or 0.0) / longest
        parts.append(Part(phase=event.phase or "", start=round(start, 2), width=round(width, 2)))
        start += width
    return parts
