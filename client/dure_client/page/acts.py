"""What a button does: exactly what its command does. Each act returns what to tell, or raises a DureError."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from dure_client import absence
from dure_client.home import AgentHome
from dure_client.jobs import review
from dure_client.jobs.approvals import known_job
from dure_client.ledger import verify_file
from dure_client.page.access import Notice
from dure_client.status import read_status
from dure_protocols.errors import DureError

LeaveJob = Callable[[AgentHome, str], str]
"""Leave a job for good; what to tell the firm's people of it."""
PAUSE_HOURS: Final = (1, 8, 24, 168)


class ActError(DureError):
    """A form asks for something that the page does not offer."""


@dataclass(frozen=True)
class Request:
    """A form that was sent by the page. now: local time, with its zone; leave: None where leaving is a command only."""

    home: AgentHome
    form: Mapping[str, str]
    now: datetime
    leave: LeaveJob | None

    @property
    def job(self) -> str:
        """The job that is meant, one that is known here; "" for all. Raises ApprovalError."""
        name = self.form.get("job", "")
        if name:
            known_job(self.home, name)
        return name


def approve(request: Request) -> Notice:
    """`dure-agent approve JOB --digest DIGEST --package PACKAGE`, the last for a job with a model package."""
    digest, package = request.form.get("digest", ""), request.form.get("package", "")
    found = review.reviewed(request.home, request.form.get("job", ""), digest, package)
    review.approve(request.home, found, request.now)
    return Notice("approved", request.job)


def reject(request: Request) -> Notice:
    """`dure-agent reject JOB`."""
    review.reject(request.home, request.form.get("job", ""), request.now)
    return Notice("rejected", request.job)


def pause(request: Request) -> Notice:
    """`dure-agent pause [JOB] [--hours HOURS]`."""
    text = request.form.get("hours", "")
    if text not in {"", *map(str, PAUSE_HOURS)}:
        raise ActError(f"one of {PAUSE_HOURS} hours was expected, {text!r} came; nothing was paused")
    absence.pause(request.home, request.job or None, request.now + timedelta(hours=int(text)) if text else None)
    return Notice("paused", request.job)


def resume(request: Request) -> Notice:
    """`dure-agent resume [JOB]`."""
    absence.resume(request.home, request.job or None)
    return Notice("resumed", request.job)


def leave(request: Request) -> Notice:
    """`dure-agent leave JOB`, once its name was typed again."""
    if request.leave is None:
        raise ActError(f"leave by typing the command: dure-agent leave {request.job}")
    if not request.job or request.form.get("typed", "").strip() != request.job:
        raise ActError("type the job's name to leave it; nothing was done")
    return Notice("left", request.job, request.leave(request.home, request.job))


def ask(request: Request) -> Notice:
    """`dure-agent status`, the part of it that asks the server."""
    found = read_status(request.home, request.now)
    return Notice("asked", found.approval, found.approval_note)


def verify(request: Request) -> Notice:
    """`dure-agent ledger verify`."""
    verified = verify_file(request.home.ledger_file, request.home.identity().public_bytes)
    return Notice("verified", f"{verified.head.number:,}", verified.head.hash.hex())


ACTS: Final[Mapping[str, Callable[[Request], Notice]]] = {
    "approve": approve,
    "reject": reject,
    "pause": pause,
    "resume": resume,
    "leave": leave,
    "ask": ask,
    "verify": verify,
}
