"""Puts the agent together and runs it: home, ledger, link, Flower app. What `dure-agent run` calls."""

import logging
import os
import signal
import threading
from contextlib import ExitStack
from datetime import UTC, datetime

from dure_client.agent import Agent
from dure_client.departure import PATIENCE_SECONDS, Departure
from dure_client.enrolment.join import finish_renewal
from dure_client.flower import FlowerApp, client_app
from dure_client.heads import HeadKeeper
from dure_client.health import Heartbeat
from dure_client.home import AgentHome
from dure_client.jobs.firm import Firm
from dure_client.leaving import check_is_member, has_left, has_left_consortium
from dure_client.ledger import Ledger
from dure_client.link.client import LinkClient
from dure_client.link.clock import ServerClock
from dure_client.link.errors import NotAdmittedError
from dure_client.link.standing import LinkStanding
from dure_client.metrics import AgentMetrics, MetricsServer
from dure_client.notify import notify
from dure_client.packages.fetch import run_errand
from dure_client.trainer.process import TRAINER_MODULE
from dure_client.trainer.sandbox import Sandbox
from dure_client.upkeep import Upkeep
from dure_protocols.frames import Welcome, node_id

logger = logging.getLogger(__name__)

IDLE_LOOK_SECONDS = 30.0


def run_agent(
    home: AgentHome,
    *,
    num_threads: int = 1,
    clock: ServerClock | None = None,
    trainer_module: str = TRAINER_MODULE,
    json_logs: bool = False,
    sandbox: Sandbox | None = None,
) -> None:
    """Serve the firm's jobs until SIGTERM or Ctrl-C.

    Raises HomeError before the firm has joined, LeftConsortiumError after it has left, PinError where a token does not
    take the PIN, ProxyError where the proxy's settings are wrong, LedgerError if another
    agent runs on this home, MetricsError if the port for metrics is taken, NotAdmittedError when the consortium shuts
    the firm out, VersionRefusedError when this version does not understand the server's. `num_threads` is what each
    trainer may use; json_logs: of the trainers; sandbox: what they run in, this host's strongest if None.
    """
    config = home.config()
    check_is_member(home)
    finish_renewal(home)
    route, clock = config.route(os.environ), clock or ServerClock()

    def note(welcome: Welcome) -> None:
        LinkStanding(
            heard_at=datetime.now(UTC),
            server_version=welcome.server_version,
            protocol=welcome.protocol,
            clock_ahead_seconds=clock.ahead_seconds or 0.0,
        ).write(home.standing_file)

    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(home.ledger_file, home.identity()))
        metrics = _metrics(home, ledger, config.metrics_port, stack)
        firm = Firm(
            home,
            num_threads=num_threads,
            trainer_module=trainer_module,
            trainer_json_log=json_logs,
            sandbox=sandbox,
            trained=metrics.trained,
        )
        stack.callback(firm.close)
        counted = metrics.counting(ledger)
        link = LinkClient(route, home.keys, counted, clock=clock, on_welcome=note, watch=metrics)
        stack.callback(link.close)
        stop = threading.Event()

        def end(*_: object) -> None:
            stop.set()
            link.close()

        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, end)
        upkeep = Upkeep(home, link, stop, os.environ, errand=lambda: run_errand(home, counted, os.environ))
        threading.Thread(target=upkeep.run, name="upkeep", daemon=True).start()
        threading.Thread(target=_close_idle, args=(firm, stop), name="idle trainers", daemon=True).start()
        keeper = HeadKeeper(home, ledger, link, stop)
        threading.Thread(target=keeper.run, name="ledger heads", daemon=True).start()
        stack.callback(stop.set)
        app = FlowerApp(client_app(firm.answer))
        node = node_id(config.consortium, config.firm)
        agent = Agent(home.state, node, link, app, answered=metrics.answered, has_left=lambda job: has_left(home, job))
        departure = Departure(home, link.leave, stop, give_up=firm.give_up, gone=end)
        leaving = threading.Thread(target=departure.run, name="leaving", daemon=True)
        leaving.start()
        firm.resume()
        logger.info("agent of %s runs; link %s", config.firm, route)
        notify("READY=1", os.environ)
        try:
            agent.run()
        except NotAdmittedError:
            if not has_left_consortium(home):
                raise
            # The server has heard it and shut this firm out; its receipt is on its way.
            leaving.join(2 * PATIENCE_SECONDS)
        if has_left_consortium(home):
            logger.info("this firm left the consortium: the agent ends")


def _close_idle(firm: Firm, stop: threading.Event) -> None:
    while not stop.wait(IDLE_LOOK_SECONDS):
        firm.close_idle()


def _metrics(home: AgentHome, ledger: Ledger, port: int | None, stack: ExitStack) -> AgentMetrics:
    """What the agent counts, served where a port is configured; and the heartbeat. The stack ends both."""
    metrics = AgentMetrics()
    metrics.watch(home, ledger)
    if port is not None:
        stack.callback(MetricsServer(port, metrics.text).close)
        logger.info("metrics on http://127.0.0.1:%d/metrics", port)
    stack.callback(Heartbeat(home.state, lambda: metrics.is_connected, lambda: notify("WATCHDOG=1", os.environ)).close)
    return metrics
