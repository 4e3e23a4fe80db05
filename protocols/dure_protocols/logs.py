"""How every process of Dure writes a line of its log: for people, or as JSON for programs. Server and agent share it.

A line says when, how loud, which process and what; and, where that is known, job, round, attempt, phase and firm. Those
come from the context (`about`, `from_now_on`), so that code deep down need not be told. Nothing is opened or written
here: each process hands a formatter to its own handler.

No secret is ever given to a logger. Should an error's text quote one all the same, `redacted` is the net below:
private keys in PEM, passwords in URLs, invitations.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TypedDict, Unpack

_SECRETS = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), "[key]"),
    (re.compile(r"(\w://[^\s:/@]*):[^\s/@]+@"), r"\1:[password]@"),
    (re.compile(r"dure1_[A-Za-z0-9_\-]+\.?"), "[invitation]"),
)


class Place(TypedDict, total=False):
    """What a line is about."""

    job: str
    round: int | None
    attempt: int | None
    phase: str
    firm: str


_PLACE: ContextVar[Mapping[str, object]] = ContextVar("dure_log_place", default={})  # noqa: B039  # never changed


@contextmanager
def about(**place: Unpack[Place]) -> Iterator[None]:
    """Lines of this thread or task are about this, while the block runs."""
    token = _PLACE.set({**_PLACE.get(), **place})
    try:
        yield
    finally:
        _PLACE.reset(token)


def from_now_on(**place: Unpack[Place]) -> None:
    """Lines of this thread or task are about this, until it is said otherwise."""
    _PLACE.set({**_PLACE.get(), **place})


def formatter(process: str, *, as_json: bool, **place: Unpack[Place]) -> logging.Formatter:
    """The formatter of a process. place: what all its lines are about, whatever the thread."""
    return JsonLines(process, place) if as_json else TextLines(process, place)


def redacted(text: str) -> str:
    """A text without what looks like a secret."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class _Lines(logging.Formatter):
    """What both forms have in common."""

    def __init__(self, process: str, place: Mapping[str, object]) -> None:
        super().__init__()
        self._process, self._place = process, place

    def _about(self) -> dict[str, object]:
        place = {**self._place, **_PLACE.get()}
        return {name: place[name] for name in Place.__annotations__ if place.get(name) not in {None, ""}}

    def _trouble(self, record: logging.LogRecord) -> str:
        parts = [self.formatException(record.exc_info)] if record.exc_info else []
        parts += [self.formatStack(record.stack_info)] if record.stack_info else []
        return "\n".join(parts)


class TextLines(_Lines):
    """2026-03-01 09:30:00,000 INFO dure_server.link: what happened [job=wear round=3]; a traceback follows."""

    def format(self, record: logging.LogRecord) -> str:
        """One event."""
        place = " ".join(f"{name}={value}" for name, value in self._about().items())
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {record.getMessage()}"
        line += f" [{place}]" if place else ""
        trouble = self._trouble(record)
        return redacted(f"{line}\n{trouble}" if trouble else line)


class JsonLines(_Lines):
    """{"at": "2026-03-01T00:30:00.000Z", "level": "info", "process": "link", "logger": …, "message": …, "job": …}."""

    def format(self, record: logging.LogRecord) -> str:
        """One event, in one line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields: dict[str, object] = {
            "at": at,
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": redacted(record.getMessage()),
            **self._about(),
        }
        if trouble := self._trouble(record):
            fields["error"] = redacted(trouble)
        return json.dumps(fields, ensure_ascii=False, default=str)
