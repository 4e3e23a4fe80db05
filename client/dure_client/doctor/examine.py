"""All findings, in the order in which a person mends them."""

import shutil
import stat
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dure_client.doctor.finding import Finding, State
from dure_client.doctor.network import network_findings
from dure_client.doctor.sandbox import sandbox_findings
from dure_client.health import FLOOR_BYTES
from dure_client.home import AgentHome, HomeError
from dure_client.leaving import LeftConsortiumError, check_is_member, what_leaving_lacks
from dure_client.link.clock import clock_sentence
from dure_client.link.standing import LinkStanding
from dure_client.policy import Policy, PolicyError
from dure_client.trainer.sandbox import Sandbox, SandboxLevel
from dure_protocols.errors import DureError


def examine(home: AgentHome, sandbox: Sandbox, now: datetime, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Everything about this host that taking part depends on. Works before the firm has joined, too.

    `now`: this machine's time, with its zone; `environment`: where a proxy may be named.
    """
    home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        wanted = Policy.read(home.policy_file).require_sandbox
        yield Finding("policy", State.OK, "policy.toml is valid" if home.policy_file.exists() else "the default's")
    except PolicyError as error:
        wanted = SandboxLevel.FULL
        yield Finding("policy", State.FAIL, "policy.toml is not valid; every job is refused", str(error))
    yield from sandbox_findings(sandbox, wanted, home.path.resolve())
    yield _disk(home.path)
    try:
        check_is_member(home)
        lacks = what_leaving_lacks(home)
    except LeftConsortiumError as error:
        yield Finding("enrolment", State.WARN, "this firm left the consortium; nothing runs here any more", str(error))
        return
    except DureError as error:
        yield Finding("enrolment", State.FAIL, "the home is damaged", str(error))
        return
    if lacks:
        yield Finding("enrolment", State.WARN, "this firm left the consortium, and that is not done yet", lacks)
    yield from _modes(home)
    if not home.has_joined:
        yield Finding("enrolment", State.WARN, "this home belongs to no firm yet", "run `dure-agent join`")
        return
    standing = LinkStanding.read(home.standing_file)
    yield _clock(standing)
    try:
        yield _certificate(home, now, standing)
        config = home.config()
    except (HomeError, DureError) as error:
        yield Finding("enrolment", State.FAIL, "the home is damaged", str(error))
        return
    yield from network_findings(config, home.root_file, environment)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    text = f"{free / (1 << 30):.1f} GiB are free at {folder}"
    if free < FLOOR_BYTES:
        return Finding("disk", State.FAIL, text, f"make room: the agent needs {FLOOR_BYTES >> 20} MiB and more")
    return Finding("disk", State.OK, text)


def _modes(home: AgentHome) -> Iterator[Finding]:
    """Whether only this user may read keys. Modes are POSIX's; Windows shows them as open."""
    if not home.keys.is_dir():
        return
    private = [path for path in sorted(home.keys.glob("*")) if path.suffix == ".key"]
    open_ones = [path for path in (home.keys, *private) if stat.S_IMODE(path.stat().st_mode) & 0o077]
    for path in open_ones:
        mode = "700" if path.is_dir() else "600"
        advice = f"run `chmod {mode} {path}`; if others had access to it, join anew with new keys"
        yield Finding("keys", State.FAIL, f"other users of this machine may read {path}", advice)
    if not open_ones:
        yield Finding("keys", State.OK, f"{len(private)} private keys in {home.keys} are this user's alone")


def _clock(standing: LinkStanding | None) -> Finding:
    if standing is None:
        return Finding("clock", State.WARN, "not compared with the server's yet", "`dure-agent status` compares it")
    sentence = clock_sentence(standing.clock_ahead_seconds)
    if sentence:
        return Finding("clock", State.WARN, f"off by {standing.clock_ahead_seconds:+.0f} s", sentence)
    return Finding("clock", State.OK, f"in step with the server's ({standing.heard_at:%Y-%m-%d %H:%M} UTC)")


def _certificate(home: AgentHome, now: datetime, standing: LinkStanding | None) -> Finding:
    certificate = home.certificate()
    ahead = timedelta(seconds=standing.clock_ahead_seconds if standing else 0.0)
    text = f"the firm's certificate is valid until {certificate.not_after:%Y-%m-%d %H:%M} UTC"
    servers_now = now.astimezone(UTC) - ahead  # the server made it
    if not certificate.is_valid_at(servers_now):
        advice = "set the clock if it is wrong; else ask the operator for a new invitation"
        return Finding("certificate", State.FAIL, f"{text}, and not valid now", advice)
    if certificate.renewal_is_due(servers_now):
        return Finding("certificate", State.WARN, f"{text}; its renewal is due", "let the agent run: it renews it")
    return Finding("certificate", State.OK, text)
