"""Puts the agent together and runs it: home, ledger, link, Flower app. What `dure-agent run` calls.

What runs beside what, by the threads' names:

    the main thread    takes the server's messages off the link and answers each, in `Agent.run`
    upkeep             renews the certificate, follows agent.toml, does what a command asked the agent to do
    idle trainers      ends the trainers of jobs that nobody asks anything of
    ledger heads       states to the server where the ledger ends
    leaving            carries out that the firm leaves a job, or the consortium
    heartbeat          says that the agent is well, to `dure-agent status` and to the service manager
    metrics            serves /metrics, where a port is configured
    results, warm-up   of `Firm`: train the firm's own model after a job; compile before its first round

Each trainer is a process of its own, with a thread for its log and one that watches its limits.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
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
from dure_client.link.client import EgressRecorder, LinkClient
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
    take the PIN, ProxyError where the proxy's settings are wrong, LedgerError if another agent runs on this home,
    MetricsError if the port for metrics is taken, NotAdmittedError when the consortium shuts the firm out,
    VersionRefusedError when this version does not understand the server's. `num_threads` is what each trainer may use;
    json_logs: of the trainers; sandbox: what they run in, this host's strongest if None.
    """
    config = home.config()
    check_is_member(home)
    finish_renewal(home)
    route, clock = config.route(os.environ), clock or ServerClock()
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
        link = LinkClient(route, home.keys, counted, clock=clock, on_welcome=_noting(home, clock), watch=metrics)
        stack.callback(link.close)
        end = _Ending(link)
        stack.callback(end.stop.set)
        agent = Agent(
            home.state,
            node_id(config.consortium, config.firm),
            link,
            FlowerApp(client_app(firm.answer)),
            answered=metrics.answered,
            has_left=lambda job: has_left(home, job),
        )
        leaving = _start_beside(home, firm, link, ledger, counted, end)
        firm.resume()
        logger.info("agent of %s runs; link %s", config.firm, route)
        notify("READY=1", os.environ)
        _serve(home, agent, leaving)


class _Ending:
    """Ends the agent: at SIGTERM or Ctrl-C, and once the firm is out of the consortium. Then `stop` is set."""

    def __init__(self, link: LinkClient) -> None:
        self._link, self.stop = link, threading.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self)

    def __call__(self, *_: object) -> None:
        self.stop.set()
        self._link.close()


def _start_beside(
    home: AgentHome, firm: Firm, link: LinkClient, ledger: Ledger, counted: EgressRecorder, end: _Ending
) -> threading.Thread:
    """Start what runs beside the main thread until `end.stop` is set. Returns the thread that tells of leaving."""
    upkeep = Upkeep(home, link, end.stop, os.environ, errand=lambda: run_errand(home, counted, os.environ))
    keeper = HeadKeeper(home, ledger, link, end.stop)
    departure = Departure(home, link.leave, end.stop, give_up=firm.give_up, gone=end)
    leaving = threading.Thread(target=departure.run, name="leaving", daemon=True)
    for thread in (
        threading.Thread(target=upkeep.run, name="upkeep", daemon=True),
        threading.Thread(target=_close_idle, args=(firm, end.stop), name="idle trainers", daemon=True),
        threading.Thread(target=keeper.run, name="ledger heads", daemon=True),
        leaving,
    ):
        thread.start()
    return leaving


def _serve(home: AgentHome, agent: Agent, leaving: threading.Thread) -> None:
    """Answer messages until the agent ends. A firm that left is shut out, and that is no error."""
    try:
        agent.run()
    except NotAdmittedError:
        if not has_left_consortium(home):
            raise
        # The server has heard it and shut this firm out; its receipt is on its way.
        leaving.join(2 * PATIENCE_SECONDS)
    if has_left_consortium(home):
        logger.info("this firm left the consortium: the agent ends")


def _noting(home: AgentHome, clock: ServerClock) -> Callable[[Welcome], None]:
    """Keeps what the server said of itself where `dure-agent status` finds it."""

    def note(welcome: Welcome) -> None:
        LinkStanding(
            heard_at=datetime.now(UTC),
            server_version=welcome.server_version,
            protocol=welcome.protocol,
            clock_ahead_seconds=clock.ahead_seconds or 0.0,
        ).write(home.standing_file)

    return note


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
