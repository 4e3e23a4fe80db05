"""When this firm takes part in no new attempt: its maintenance windows, and the pauses of its people.

Windows stand in policy.toml, in this machine's local time: "Mon-Fri 06:00-14:00", "Sat,Sun 00:00-24:00",
"Fri 22:00-06:00" (until Saturday morning). A pause is a file: state/paused.json for all jobs, jobs/<job>/paused.json
for one. What has begun is brought to its end either way, so that nobody's round is lost for it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, ValidationError

from dure_client.home import AgentHome, write_file
from dure_protocols.messages import Absence, AbsenceReason

PAUSE_FILE = "paused.json"
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MINUTES_A_DAY = 24 * 60
_FARTHEST = timedelta(days=8)
_WINDOW = re.compile(r"(?P<days>\S+)\s+(?P<from>\d\d:\d\d)-(?P<to>\d\d:\d\d)")
_EXPECTED = 'days and times are expected, as in "Mon-Fri 06:00-14:00" or "Sat,Sun 00:00-24:00"'


def local_now() -> datetime:
    """The operating system's clock, in the machine's own zone."""
    return datetime.now().astimezone()


@dataclass(frozen=True)
class Window:
    """Hours of certain weekdays (0 is Monday), in local time. Minutes since midnight; one that ends before it begins
    ends on the next day."""

    days: frozenset[int]
    start_minutes: int
    end_minutes: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From its text. Raises ValueError with what was expected."""
        found = _WINDOW.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"{text!r} is no maintenance window: {_EXPECTED}")
        days = frozenset(day for part in found["days"].split(",") for day in _days(part))
        return cls(days, _minutes(found["from"]), _minutes(found["to"]))

    @property
    def length(self) -> timedelta:
        """From its beginning to its end."""
        return timedelta(minutes=(self.end_minutes - self.start_minutes - 1) % MINUTES_A_DAY + 1)

    def end_at(self, now: datetime) -> datetime | None:
        """When the window that is open at `now` ends; None if it is not open. Wall-clock times without a zone."""
        for days_ago in (0, 1):
            midnight = datetime.combine(now.date() - timedelta(days=days_ago), time.min)
            begin = midnight + timedelta(minutes=self.start_minutes)
            end = begin + self.length
            if midnight.weekday() in self.days and begin <= now < end:
                return end
        return None


def _days(part: str) -> Sequence[int]:
    first, _, last = part.partition("-")
    try:
        start, end = DAYS.index(first.title()), DAYS.index((last or first).title())
    except ValueError:
        raise ValueError(f"{part!r} is no weekday of {', '.join(DAYS)}: {_EXPECTED}") from None
    return [day % 7 for day in range(start, start + (end - start) % 7 + 1)]


def _minutes(text: str) -> int:
    hours, minutes = map(int, text.split(":"))
    if minutes > 59 or 60 * hours + minutes > MINUTES_A_DAY:
        raise ValueError(f"{text!r} is no time of a day: {_EXPECTED}")
    return 60 * hours + minutes


def _checked(text: str) -> str:
    Window.parse(text)
    return text


WindowText = Annotated[str, AfterValidator(_checked)]
"""A window as policy.toml writes it."""


def maintenance_until(windows: Sequence[str], now: datetime) -> datetime | None:
    """When maintenance ends, over windows that follow on each other; None if none is open. Pure.

    now: the firm's local time, with its zone. Windows that never end are told eight days ahead.
    """
    parsed = [Window.parse(text) for text in windows]
    wall = now.replace(tzinfo=None)
    until = wall
    while ends := [end for window in parsed if (end := window.end_at(until))]:
        until = max(ends)
        if until > wall + _FARTHEST:
            break
    return None if until == wall else until.replace(tzinfo=now.tzinfo)


class Pause(BaseModel):
    """What `dure-agent pause` wrote. until: None where it holds until `dure-agent resume`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    until: AwareDatetime | None = None


def pause(home: AgentHome, job: str | None, until: datetime | None) -> None:
    """Pause one job, or all of them. The agent looks at every invitation."""
    file = _file(home, job)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(file, Pause(until=until).model_dump_json().encode() + b"\n")


def resume(home: AgentHome, job: str | None) -> bool:
    """Take a pause back. Returns whether there was one."""
    file = _file(home, job)
    is_there = file.exists()
    file.unlink(missing_ok=True)
    return is_there


def pause_in_force(home: AgentHome, job: str | None, now: datetime) -> Pause | None:
    """The pause of a job (or of all, for None), if it is not over. One that cannot be read holds until it is taken
    back: somebody wanted it."""
    try:
        kept = Pause.model_validate_json(_file(home, job).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        kept = Pause()
    return None if kept.until is not None and kept.until <= now else kept


def absence(home: AgentHome, windows: Sequence[str], firm: str, job: str, now: datetime) -> Absence | None:
    """What this firm answers an invitation to a job with, if it sits out. now: local time, with its zone."""
    for pause_ in (pause_in_force(home, None, now), pause_in_force(home, job, now)):
        if pause_ is not None:
            return Absence(firm, AbsenceReason.PAUSED, _unix(pause_.until))
    until = maintenance_until(windows, now)
    return None if until is None else Absence(firm, AbsenceReason.MAINTENANCE, _unix(until))


def at_limit(firm: str, until: datetime) -> Absence:
    """What this firm answers an invitation with when its shift has trained all that it may."""
    return Absence(firm, AbsenceReason.LIMIT, _unix(until))


def _unix(moment: datetime | None) -> int:
    return 0 if moment is None else max(0, int(moment.astimezone(UTC).timestamp()))


def _file(home: AgentHome, job: str | None) -> Path:
    return (home.state if job is None else home.job_folder(job)) / PAUSE_FILE
