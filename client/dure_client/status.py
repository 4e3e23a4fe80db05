"""How this agent stands: who it is, whether the consortium has approved it, its certificate, clock and health.

Below `dure-agent status` and the firm's page.
"""

import os
from dataclasses import dataclass
from datetime import datetime, timedelta

from dure_client.enrolment.api import EnrolmentError
from dure_client.enrolment.join import ask_state
from dure_client.health import Health, read_health
from dure_client.home import AgentHome
from dure_client.leaving import check_is_member, what_leaving_lacks
from dure_client.link.clock import clock_sentence
from dure_client.link.standing import LinkStanding
from dure_protocols.ledger import LedgerError

_MEANING = {
    "joined": "waiting for the operator's approval",
    "approved": "approved",
    "left": "left by this firm's own word",
    "revoked": "revoked: talk to the consortium's operator",
    "invited": "invited anew: run `dure-agent join` with the new invitation",
}


@dataclass(frozen=True)
class Status:
    """What `dure-agent status` and the firm's page tell."""

    firm: str
    consortium: str
    server: str
    identity_fingerprint: str
    certificate_not_after: str
    certificate_is_valid: bool
    approval: str
    """joined, approved, left, revoked, invited; or unknown where the server was not asked or did not answer."""
    approval_note: str
    health: Health
    """How the agent on this home is; `--probe` makes an exit status of it."""
    proxy: str | None
    """host:port of the proxy that the link goes through."""
    server_version: str | None
    protocol: int | None
    """What the agent last spoke with the server; None if it has not been connected yet."""
    clock_ahead_seconds: float | None
    """By how much this machine's clock was ahead of the server's when the server last told its time."""
    clock_note: str
    jobs: list[str]


def read_status(home: AgentHome, now: datetime, *, ask: bool = True) -> Status:
    """Look into the home and, with `ask`, ask the server, which is recorded as everything that leaves.

    Raises HomeError if the firm has not joined.
    """
    config = home.config()
    check_is_member(home)
    certificate = home.certificate()
    standing = LinkStanding.read(home.standing_file)
    ahead = standing.clock_ahead_seconds if standing else None
    approval, note = "unknown", "not asked"
    if lacks := what_leaving_lacks(home):
        approval, note = "left", f"{_MEANING['left']}; {lacks}"
    elif ask:
        approval, note, ahead = _asked(home, standing, now)
    return Status(
        firm=config.firm,
        consortium=config.consortium,
        server=config.link_address,
        identity_fingerprint=home.identity().fingerprint,
        certificate_not_after=certificate.not_after.isoformat(),
        certificate_is_valid=certificate.is_valid_at(now - timedelta(seconds=ahead or 0.0)),
        approval=approval,
        approval_note=note,
        health=read_health(home, now),
        proxy=str(proxy) if (proxy := config.route(os.environ).proxy) else None,
        server_version=standing.server_version if standing else None,
        protocol=standing.protocol if standing else None,
        clock_ahead_seconds=ahead,
        clock_note="not compared yet" if ahead is None else clock_sentence(ahead) or "in step with the server's",
        jobs=home.job_names(),
    )


def _asked(home: AgentHome, standing: LinkStanding | None, now: datetime) -> tuple[str, str, float | None]:
    """Approval, what it means, and the clock: of the server if it answers, else as known. What it told is kept."""
    ahead_seconds = standing.clock_ahead_seconds if standing else None
    try:
        state = ask_state(home)
    except LedgerError:
        # Only one process writes the ledger, and nothing may leave that is not in it.
        note = "not asked: the agent runs here and is the one that speaks to the server"
        return "unknown", note, ahead_seconds
    except EnrolmentError as error:
        return "unknown", f"not known: {error}", ahead_seconds
    if state.clock_ahead_seconds is not None:
        LinkStanding(
            heard_at=now,
            server_version=standing.server_version if standing else None,
            protocol=standing.protocol if standing else None,
            clock_ahead_seconds=state.clock_ahead_seconds,
        ).write(home.standing_file)
    approval = state.answer.status
    return approval, _MEANING.get(approval, approval), state.clock_ahead_seconds
