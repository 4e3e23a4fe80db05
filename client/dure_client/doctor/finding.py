"""One line of the doctor's."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Fine; worth a look; or in the way of taking part safely."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it stands, what was found, and what to do; `advice` is empty where nothing is."""

    name: str
    state: State
    text: str
    advice: str = ""
