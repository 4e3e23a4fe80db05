"""What a running agent does for its link beside its jobs: renew the certificate in time, follow agent.toml,
run an errand for a command.

None costs a job anything: the link's client connects anew and repeats what was open.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from dure_client.enrolment.join import renew, renewal_is_due
from dure_client.home import AgentHome
from dure_client.link.client import LinkClient
from dure_protocols.errors import DureError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
RETRY_SECONDS = 60.0
RENEWAL_PATIENCE_SECONDS = 10.0


class Upkeep:
    """One thread's work, until `stop` is set. Time is the server's, as the link knows it: it made the certificate."""

    def __init__(
        self,
        home: AgentHome,
        link: LinkClient,
        stop: threading.Event,
        environment: Mapping[str, str],
        *,
        errand: Callable[[], None] = lambda: None,
        look_seconds: float = LOOK_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """`errand` is called at each look: what a command asked the agent to do for it."""
        self._home = home
        self._link = link
        self._errand = errand
        self._stop = stop
        self._environment = environment
        self._look_seconds = look_seconds
        self._retry_seconds = retry_seconds
        self._seen = self._signature()
        self._not_before = 0.0

    def run(self) -> None:
        """Look after both until told to stop."""
        while not self._stop.is_set():
            self._follow_settings()
            self._run_errand()
            if time.monotonic() >= self._not_before:
                self._renew_in_time()
            self._stop.wait(self._look_seconds)

    def _run_errand(self) -> None:
        try:
            self._errand()
        except (DureError, OSError) as error:  # a full disk must not end the renewals
            logger.warning("what a command asked for could not be done: %s", error)

    def _renew_in_time(self) -> None:
        try:
            if not renewal_is_due(self._home, self._link.clock.now_utc()):
                return
            facts = renew(
                self._home, lambda csr: self._link.renew(csr, RENEWAL_PATIENCE_SECONDS), self._link.clock.now_utc()
            )
        except (DureError, OSError) as error:  # tried again; `status` tells how long the old one lasts
            logger.warning("the certificate could not be renewed yet: %s", error)
            self._not_before = time.monotonic() + self._retry_seconds
        else:
            self._link.reload()
            logger.info("certificate renewed until %s", facts.not_after)

    def _follow_settings(self) -> None:
        """Go where agent.toml says, as soon as it says something else than before."""
        signature = self._signature()
        if signature == self._seen:
            return
        self._seen = signature
        try:
            route = self._home.config(self._environment).route(self._environment)
        except DureError as error:
            logger.warning("agent.toml was changed and is not followed: %s", error)
            return
        # A proxy's credentials may have changed in their file: whoever writes agent.toml wants a new connection.
        logger.info("agent.toml was changed: the link is now at %s", route)
        self._link.move(route)

    def _signature(self) -> tuple[int, int]:
        try:
            found = self._home.config_file.stat()
        except OSError:
            return (0, 0)
        return (found.st_ino, found.st_mtime_ns)
