"""Puts the agent together and runs it: home, ledger, link, Flower app. What `dure-agent run` calls."""

import logging
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime

from dure_client.agent import Agent
from dure_client.enrolment.join import finish_renewal, renew, renewal_is_due
from dure_client.flower import FlowerApp, client_app
from dure_client.health import Heartbeat
from dure_client.home import AgentHome
from dure_client.jobs.firm import Firm, utc_now
from dure_client.ledger import Ledger
from dure_client.link.client import LinkClient
from dure_client.metrics import AgentMetrics, MetricsServer
from dure_client.trainer.process import TRAINER_MODULE
from dure_protocols.errors import DureError
from dure_protocols.frames import node_id

logger = logging.getLogger(__name__)

RENEWAL_LOOK_SECONDS = 3600.0


def run_agent(
    home: AgentHome,
    *,
    num_threads: int = 1,
    clock: Callable[[], datetime] = utc_now,
    trainer_module: str = TRAINER_MODULE,
    json_logs: bool = False,
) -> None:
    """Serve the firm's jobs until SIGTERM or Ctrl-C.

    Raises HomeError before the firm has joined, LedgerError if another agent runs on this home, MetricsError if the
    port for metrics is taken, NotAdmittedError when the consortium shuts the firm out. `num_threads` is what each
    trainer may use; json_logs: of the trainers.
    """
    config = home.config()
    finish_renewal(home)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(home.ledger_file, home.identity()))
        metrics = _metrics(home, ledger, config.metrics_port, stack)
        firm = Firm(
            home,
            num_threads=num_threads,
            trainer_module=trainer_module,
            trainer_json_log=json_logs,
            trained=metrics.trained,
        )
        stack.callback(firm.close)
        link = LinkClient(config.link_address, home.keys, metrics.counting(ledger), watch=metrics)
        stack.callback(link.close)
        stop = threading.Event()

        def end(*_: object) -> None:
            stop.set()
            link.close()

        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, end)
        threading.Thread(target=_renew_in_time, args=(home, link, stop, clock), name="renewal", daemon=True).start()
        stack.callback(stop.set)
        app = FlowerApp(client_app(firm.answer))
        node = node_id(config.consortium, config.firm)
        agent = Agent(home.state, node, link, app, answered=metrics.answered)
        firm.resume()
        logger.info("agent of %s runs; link %s", config.firm, config.link_address)
        agent.run()


def _metrics(home: AgentHome, ledger: Ledger, port: int | None, stack: ExitStack) -> AgentMetrics:
    """What the agent counts, served where a port is configured; and the heartbeat. The stack ends both."""
    metrics = AgentMetrics()
    metrics.watch(home, ledger)
    if port is not None:
        stack.callback(MetricsServer(port, metrics.text).close)
        logger.info("metrics on http://127.0.0.1:%d/metrics", port)
    stack.callback(Heartbeat(home.state, lambda: metrics.is_connected).close)
    return metrics


def _renew_in_time(home: AgentHome, link: LinkClient, stop: threading.Event, clock: Callable[[], datetime]) -> None:
    while not stop.is_set():
        try:
            if renewal_is_due(home, clock()):
                facts = renew(home, link.renew, clock())
                link.reload()
                logger.info("certificate renewed until %s", facts.not_after)
        except DureError as error:  # tried again; `status` tells how long the old one lasts
            logger.warning("the certificate could not be renewed yet: %s", error)
        stop.wait(RENEWAL_LOOK_SECONDS)
