"""How much this firm trains in a shift: rounds, minutes, processor threads. Windows as for maintenance.

    state/trained.json      what was trained in the last days: when, and for how long

A day's limit is a shift "Mon-Sun 00:00-24:00". The file is written after each training, before its update leaves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dure_client.absence import Window, WindowText
from dure_client.home import write_file

KEPT = timedelta(days=2)  # no window is longer than a day
MAX_KEPT = 20_000


class Shift(BaseModel):
    """What may be trained in each opening of a window, over all jobs. None: no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    window: WindowText
    rounds: int | None = Field(default=None, ge=0)
    training_minutes: float | None = Field(default=None, ge=0)
    threads: int | None = Field(default=None, ge=1, le=1024)

    def __str__(self) -> str:
        limits = [f"{self.rounds} rounds"] if self.rounds is not None else []
        limits += [f"{self.training_minutes:g} minutes of training"] if self.training_minutes is not None else []
        limits += [f"{self.threads} threads"] if self.threads is not None else []
        return f"{self.window}: at most {', '.join(limits) or 'anything'}"


class Training(BaseModel):
    """One training that was: when it ended, with its zone, and its seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    at: AwareDatetime
    seconds: float = Field(ge=0)


_TRAININGS = TypeAdapter(list[Training])


def limit_until(shifts: Sequence[Shift], done: Sequence[Training], now: datetime) -> datetime | None:
    """When the longest of the shifts ends that have trained all that they may; None if none has. Pure.

    now: the firm's local time, with its zone.
    """
    ends = [opening.end for shift, opening in _open(shifts, now) if _is_full(shift, _within(done, opening))]
    return max(ends, default=None)


def threads_now(shifts: Sequence[Shift], otherwise: int, now: datetime) -> int:
    """How many threads a trainer may have: the fewest of the open shifts', and never more than `otherwise`. Pure."""
    return min([otherwise, *(shift.threads for shift, _ in _open(shifts, now) if shift.threads is not None)])


@dataclass(frozen=True)
class _Opening:
    begin: datetime
    end: datetime


def _open(shifts: Sequence[Shift], now: datetime) -> list[tuple[Shift, _Opening]]:
    wall, found = now.replace(tzinfo=None), []
    for shift in shifts:
        window = Window.parse(shift.window)
        end = window.end_at(wall)
        if end is not None:
            begin = end - window.length
            found.append((shift, _Opening(begin.replace(tzinfo=now.tzinfo), end.replace(tzinfo=now.tzinfo))))
    return found


def _within(done: Sequence[Training], opening: _Opening) -> list[Training]:
    return [training for training in done if opening.begin <= training.at < opening.end]


def _is_full(shift: Shift, done: Sequence[Training]) -> bool:
    minutes = sum(training.seconds for training in done) / 60
    is_full_of_rounds = shift.rounds is not None and len(done) >= shift.rounds
    return is_full_of_rounds or (shift.training_minutes is not None and minutes >= shift.training_minutes)


class TrainedFile:
    """What was trained lately, on disk. Used by one thread."""

    def __init__(self, path: Path) -> None:
        """A file that cannot be read counts as empty: it limits, and protects nothing."""
        self._path = path
        try:
            self.done = _TRAININGS.validate_json(path.read_bytes())
        except (OSError, ValidationError):
            self.done = []

    def add(self, now: datetime, seconds: float) -> None:
        """Note one training that ended now."""
        recent = [training for training in self.done if training.at > now - KEPT][-MAX_KEPT:]
        self.done = [*recent, Training(at=now, seconds=seconds)]
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(self._path, _TRAININGS.dump_json(self.done))
