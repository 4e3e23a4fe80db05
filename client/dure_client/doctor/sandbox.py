"""What is enforced on a trainer here: a probe in the very sandbox tries it."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from dure_client.doctor import probe
from dure_client.doctor.finding import Finding, State
from dure_client.trainer.sandbox import Grants, Limits, Sandbox, SandboxError, SandboxLevel

_TIMEOUT_SECONDS = 60.0
_LIMITS = Limits(memory_bytes=1 << 30, scratch_bytes=1 << 20, num_threads=64, num_processors=1)
_SENTENCES: Mapping[str, tuple[str, str]] = {
    "network": ("a trainer cannot connect, not even to this host", "a trainer can connect to this host and to others"),
    "home": ("a trainer cannot read the agent's home", "a trainer can read the agent's home, its keys among it"),
    "system files": ("a trainer cannot read /etc/passwd", "a trainer can read /etc/passwd and files like it"),
    "writing": (
        "a trainer cannot write outside of its scratch folder",
        "a trainer can write outside of its scratch folder",
    ),
    "processes": ("a trainer cannot start processes", "a trainer can start processes"),
    "threads": ("a trainer cannot start threads without end", "a trainer can start threads without end"),
    "processors": (
        "a trainer cannot use more processors than its limit",
        "a trainer can use more processors than its limit",
    ),
    "memory": ("a trainer cannot take more memory than its limit", "a trainer can take more memory than its limit"),
    "shared memory": (
        "a trainer cannot take memory that its limit does not count",
        "a trainer can take memory that its limit does not count",
    ),
}
"""Of each attempt: what is said where it was held, and where it was not."""
_BY_ROOT = "run the agent as a user of its own: the kernel counts no threads of root's"


class _Attempt(BaseModel):
    name: str
    held: bool
    by: str


_Attempts = TypeAdapter(list[_Attempt])


def sandbox_findings(sandbox: Sandbox, wanted: SandboxLevel, home: Path) -> Iterator[Finding]:
    """The level, and one finding for each thing that was tried. `home` must exist; nothing stays in it."""
    level = sandbox.level
    reaches = level.reaches(wanted)
    text = f'level "{level}"; policy.toml asks for at least "{wanted}"'
    state = State.FAIL if not reaches else State.OK if level is SandboxLevel.FULL else State.WARN
    yield Finding("sandbox", state, text, sandbox.why_not_more)
    try:
        attempts = _tried(sandbox, home)
    except (SandboxError, OSError, subprocess.SubprocessError, ValidationError) as error:
        yield Finding("sandbox: probe", State.FAIL, f"the probe did not run: {error}", "tell us: this is not foreseen")
        return
    for name in _SENTENCES:
        yield _finding(name, attempts.get(name), wanted)


def _finding(name: str, attempt: _Attempt | None, wanted: SandboxLevel) -> Finding:
    title = f"sandbox: {name}"
    if attempt is None:
        return Finding(title, State.FAIL, "not tried: the probe ended before", "tell us: this is not foreseen")
    held, open_ = _SENTENCES[name]
    if attempt.held:
        return Finding(title, State.OK, f"{held} (tried: {attempt.by})")
    if name == "threads" and os.name == "posix" and os.geteuid() == 0:
        return Finding(title, State.WARN, f"{open_} (tried)", _BY_ROOT)
    state = State.FAIL if wanted is SandboxLevel.FULL else State.WARN
    return Finding(title, state, f"{open_} (tried)", "see the line `sandbox` for what is missing here")


def _tried(sandbox: Sandbox, home: Path) -> dict[str, _Attempt]:
    with (
        tempfile.TemporaryDirectory(prefix="doctor-", dir=home) as folder,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        scratch, planted = Path(folder, "scratch"), Path(folder, "planted")
        scratch.mkdir()
        planted.write_bytes(b"not for a trainer")
        arguments = [str(listener.getsockname()[1]), str(planted), str(Path(folder, "outside"))]
        arguments += [str(_LIMITS.num_threads), str(_LIMITS.memory_bytes)]
        command = [sys.executable, "-I", "-S", str(Path(probe.__file__)), *arguments]
        confined = sandbox.confine(command, Grants(writable=[scratch], hidden=[home]), _LIMITS)
        ended = confined.run(_TIMEOUT_SECONDS, scratch)
    attempts = _Attempts.validate_json(b"[" + b",".join(ended.stdout.splitlines()) + b"]")
    return {attempt.name: attempt for attempt in attempts}
