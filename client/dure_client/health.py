"""Whether the agent is well: told by the running agent in a file, read by `dure-agent status`.

    state/health.json   {"connected": true}, written anew every few seconds; its age says whether the agent lives

No port, because most firms want none, and no question to the server, because what leaves is on record.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from threading import Event, Thread
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from dure_client.home import AgentHome
from dure_client.link.standing import LinkStanding

BEAT_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 1.0
SILENT_SECONDS: Final = 4 * BEAT_SECONDS
"""An agent that has not written for so long does not run, or hangs."""
FLOOR_BYTES: Final = 256 << 20


class Health(StrEnum):
    """Well, or the first thing that is wrong."""

    OK = "ok"
    NOT_RUNNING = "not-running"
    CERTIFICATE = "certificate"
    """The certificate is not valid now."""
    DISK = "disk"
    """Too little space is free to take a model and keep an answer."""
    NOT_CONNECTED = "not-connected"
    """The agent runs and tries; the link is not reached, or does not let it in."""

    @property
    def exit_status(self) -> int:
        """For a probe: 0 well, 1 where starting the agent again helps, 3 where something else has to be mended."""
        return {Health.OK: 0, Health.NOT_RUNNING: 1}.get(self, 3)


class Beat(BaseModel):
    """state/health.json."""

    model_config = ConfigDict(frozen=True, strict=True)

    connected: bool


class Heartbeat:
    """The running agent's side. Close it; then the agent counts as not running at once."""

    def __init__(self, state: Path, is_connected: Callable[[], bool], alive: Callable[[], None] = lambda: None) -> None:
        """Begins to write in a thread. `alive` is called each time, for whoever else watches this process."""
        self._file, self._is_connected, self._alive = health_file(state), is_connected, alive
        self._ended = Event()
        self._thread = Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The agent ends."""
        self._ended.set()
        self._thread.join()
        self._file.unlink(missing_ok=True)

    def _run(self) -> None:
        said: tuple[bool, float] | None = None
        while True:
            connected, now = self._is_connected(), time.monotonic()
            if said is None or connected is not said[0] or now - said[1] >= BEAT_SECONDS:
                said = connected, now
                self._write(connected)
                self._alive()
            if self._ended.wait(LOOK_SECONDS):
                return

    def _write(self, connected: bool) -> None:
        aside, beat = self._file.with_suffix(".new"), Beat(connected=connected)
        with suppress(OSError):  # a full disk: the heart beats on, and shows when there is space again
            aside.write_text(beat.model_dump_json())  # not flushed: worth nothing after a power cut
            aside.replace(self._file)


def health_file(state: Path) -> Path:
    """Where the heartbeat is."""
    return state / "health.json"


def last_beat(file: Path) -> Beat | None:
    """What a running agent wrote last; None where nothing is, or nothing that can be read."""
    try:
        return Beat.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def read_health(home: AgentHome, now: datetime) -> Health:
    """How the agent of a home is. Raises HomeError if the firm has not joined."""
    certificate = home.certificate()
    try:
        file = health_file(home.state)
        age_seconds = now.timestamp() - file.stat().st_mtime
    except OSError:
        return Health.NOT_RUNNING
    beat = last_beat(file)
    if beat is None or age_seconds > SILENT_SECONDS:
        return Health.NOT_RUNNING
    standing = LinkStanding.read(home.standing_file)
    ahead = timedelta(seconds=standing.clock_ahead_seconds if standing else 0.0)
    if not certificate.is_valid_at(now.astimezone(UTC) - ahead):  # the server's time: it made the certificate
        return Health.CERTIFICATE
    if shutil.disk_usage(home.path).free < FLOOR_BYTES:
        return Health.DISK
    return Health.OK if beat.connected else Health.NOT_CONNECTED
