"""Why this firm refused something of a job last, for its own people: jobs/<job>/refusal.json. It never leaves.

`dure-agent jobs` and `review` show it. The operator sees the code alone.
"""

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from dure_client.home import AgentHome, write_file
from dure_protocols.errors import RefusalCode

REFUSAL_FILE = "refusal.json"
MAX_REASON = 4_096  # characters


class KeptRefusal(BaseModel):
    """The code, as the operator saw it; the reason in words; when, UTC, ISO 8601."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: RefusalCode
    reason: str
    time: str


def note_refusal(home: AgentHome, job: str | None, code: RefusalCode, reason: str, now: datetime) -> None:
    """Keep why something was refused; the same again is not written again. Does nothing for an unknown job."""
    if job is None or not home.job_folder(job).is_dir():
        return
    before, cut = last_refusal(home, job), reason[:MAX_REASON]
    if before is None or (before.code, before.reason) != (code, cut):
        kept = KeptRefusal(code=code, reason=cut, time=now.astimezone(UTC).isoformat(timespec="seconds"))
        write_file(home.job_folder(job) / REFUSAL_FILE, kept.model_dump_json().encode() + b"\n")


def last_refusal(home: AgentHome, job: str) -> KeptRefusal | None:
    """What was refused last in a job, if anything was since it was approved."""
    try:
        return KeptRefusal.model_validate_json((home.job_folder(job) / REFUSAL_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def forget_refusal(home: AgentHome, job: str) -> None:
    """The job was approved since."""
    (home.job_folder(job) / REFUSAL_FILE).unlink(missing_ok=True)
