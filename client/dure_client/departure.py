"""Carries out what `leaving` declared, beside a running agent's work: ends it, erases keys, tells the server."""

import logging
import threading
import time
from collections.abc import Callable

from dure_client.home import AgentHome
from dure_client.leaving import conclude, erase_job, erase_keys, left_jobs, must_erase_keys, untold
from dure_protocols.errors import DureError
from dure_protocols.leaving import Leave

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 10.0
RETRY_SECONDS = 5.0

Send = Callable[[bytes, float], bytes]
"""(statement, patience in seconds) -> receipt; `LinkClient.leave`."""


class Departure:
    """One thread's work, until `stop` is set or the firm has left the consortium."""

    def __init__(
        self,
        home: AgentHome,
        send: Send,
        stop: threading.Event,
        *,
        give_up: Callable[[str, Callable[[], None]], None],
        gone: Callable[[], None],
    ) -> None:
        """give_up: ends all work on a job and then runs something; gone: called once the firm is out of the consortium
        and its keys are erased."""
        self._home, self._send, self._stop = home, send, stop
        self._give_up, self._gone = give_up, gone
        self._erased: set[str] = set()
        self._not_before = 0.0
        self._seen: object = None

    def run(self) -> None:
        """Look after departures until told to stop."""
        while not self._stop.is_set():
            try:
                if self._look():
                    return
            except Exception as error:  # nothing may keep a firm from leaving; a full disk, say, is tried again
                is_known = isinstance(error, (DureError, OSError))
                logger.warning("leaving cannot go on yet: %s", error, exc_info=not is_known)
                self._not_before = time.monotonic() + RETRY_SECONDS
            self._stop.wait(LOOK_SECONDS)

    def _look(self) -> bool:
        """One look. Returns whether the firm has left the consortium."""
        for job in left_jobs(self._home):
            if job not in self._erased or (self._home.job_folder(job) / "session.bin").exists():
                self._give_up(job, lambda job=job: erase_job(self._home, job))  # type: ignore[misc]
                self._erased.add(job)
                logger.info("job %s is left: its work is given up and its keys are erased", job)
        if time.monotonic() < self._not_before:
            return False
        if must_erase_keys(self._home):  # the receipt is here, and erasing failed or was killed
            erase_keys(self._home)
            self._gone()
            return True
        for leave in untold(self._home):
            self._tell(leave)
            if leave.is_about_consortium:
                self._gone()
                return True
        return False

    def _tell(self, leave: Leave) -> None:
        what = "the consortium" if leave.is_about_consortium else f"job {leave.job}"
        receipt = conclude(self._home, leave, self._send(leave.encode(), PATIENCE_SECONDS))
        logger.info("the server has receipted that this firm left %s, for %d jobs", what, len(receipt.parts))
