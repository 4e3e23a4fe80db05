"""The agent's numbers for the firm's own Prometheus: on loopback, and only where agent.toml names a `metrics_port`.

They say how the agent does, and nothing about the firm's data. Labels are words from closed lists, and jobs that this
firm approved: what a server makes up becomes no series. docs/watching.md says what each number means.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from socketserver import ThreadingMixIn
from typing import Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dure_client.home import AgentHome, HomeError
from dure_client.ledger import Ledger
from dure_client.link.client import EgressRecorder
from dure_protocols.errors import DureError
from dure_protocols.frames import Envelope, Place
from dure_protocols.ledger import Entry, LedgerRecord, RecordKind, signed_size
from dure_protocols.messages import Refusal, decode

HOST: Final = "127.0.0.1"
TRAINER_SECONDS: Final = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


class MetricsError(DureError):
    """The port for `/metrics` cannot be had."""


class AgentMetrics:
    """What one agent process counts. Its parts tell it; methods may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds, to say how long no message came."""
        self._clock = clock
        self._heard_at: float | None = None
        self._newest: dict[str, int] = {}
        self.is_connected = False
        # A second series for each counter, which nobody asks for; and the function has no types.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._info = self._gauge("dure_agent_info", "The agent's version; always 1.", "version")
        self._info.labels(version("dure")).set(1)
        self._connected = self._gauge("dure_agent_connected", "Whether the link has let this agent in.")
        self._last_round = self._gauge("dure_agent_last_round", "Newest round that the agent answered in.", "job")
        self._messages = self._counter("dure_agent_messages", "Messages that were answered, each once.")
        self._sent = self._counter(
            "dure_agent_sent_bytes", "Bytes that the ledger records as about to leave, by kind.", "kind"
        )
        self._not_sent = self._counter(
            "dure_agent_not_sent_bytes", "Of those, bytes that a cut connection kept from leaving."
        )
        self._received = self._counter("dure_agent_received_bytes", "Bytes that came from the link.", "kind")
        self._refusals = self._counter("dure_agent_refusals", "Messages answered with a refusal, by code.", "code")
        self._trainer = Histogram(
            "dure_agent_trainer_seconds",
            "Seconds that calls of the trainer took, failed ones included.",
            ["method"],
            buckets=TRAINER_SECONDS,
            registry=self.registry,
        )
        for kind in ("message", "blob"):
            self._received.labels(kind)
        ProcessCollector(registry=self.registry)

    def watch(self, home: AgentHome, ledger: Ledger) -> None:
        """Also tell of this home: its certificate, disk and ledger, as they are at each scrape."""
        self.registry.register(_HomeCollector(home, ledger, self._since_message))

    def connected(self, is_connected: bool) -> None:
        """The link has let the agent in, or the connection is gone."""
        self.is_connected = is_connected
        self._connected.set(is_connected)

    def received(self, kind: str, size_bytes: int) -> None:
        """Bytes came: of a "message" or a "blob"."""
        self._received.labels(kind).inc(size_bytes)
        if kind == "message":
            self._heard_at = self._clock()

    def sent(self, entry: Entry) -> None:
        """The ledger has recorded what is about to leave."""
        if entry.kind is RecordKind.NOT_SENT:
            self._not_sent.inc(entry.size_bytes)
        else:
            self._sent.labels(entry.kind.value).inc(signed_size(entry))

    def answered(self, message: Envelope, reply: Envelope) -> None:
        """A message got its answer, for the first time."""
        self._messages.inc()
        code = reply.error_code
        if code is None:
            body = decode(reply.body)
            code = body.code.value if isinstance(body, Refusal) else None
        if code is not None:
            self._refusals.labels(code).inc()
            return
        place = Place.of(message.group)
        newest = max(place.round, self._newest.get(place.job, 0))  # keys and the finish are of no round
        self._newest[place.job] = newest
        self._last_round.labels(place.job).set(newest)

    def trained(self, method: str, seconds: float) -> None:
        """A call of the trainer ended."""
        self._trainer.labels(method).observe(seconds)

    def counting(self, recorder: EgressRecorder) -> EgressRecorder:
        """A recorder that counts what it records."""
        return _Counting(recorder, self)

    def text(self) -> bytes:
        """One scrape, in Prometheus' text form."""
        return generate_latest(self.registry)

    def _since_message(self) -> float | None:
        return None if self._heard_at is None else self._clock() - self._heard_at

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)


class _Counting:
    """An egress recorder in front of another."""

    def __init__(self, recorder: EgressRecorder, metrics: AgentMetrics) -> None:
        self._recorder, self._metrics = recorder, metrics

    def record(self, entry: Entry) -> LedgerRecord | object:
        """Record, then count: what cannot be recorded does not leave."""
        record = self._recorder.record(entry)
        self._metrics.sent(entry)
        return record


class _HomeCollector(Collector):
    """What is looked up at each scrape."""

    def __init__(self, home: AgentHome, ledger: Ledger, since_message: Callable[[], float | None]) -> None:
        self._home, self._ledger, self._since_message = home, ledger, since_message

    def collect(self) -> Iterator[Metric]:
        """The certificate's days, the disk, the ledger, the silence."""
        silence = GaugeMetricFamily("dure_agent_since_message_seconds", "Seconds since a message came from the link.")
        if (seconds := self._since_message()) is not None:
            silence.add_metric([], seconds)
        days = GaugeMetricFamily("dure_agent_certificate_days_left", "Days until the certificate ends.")
        with suppress(HomeError):
            left = self._home.certificate().not_after - datetime.now(UTC)
            days.add_metric([], left.total_seconds() / 86400)
        records = GaugeMetricFamily("dure_agent_ledger_records", "Records in the ledger.", self._ledger.head.number)
        free = shutil.disk_usage(self._home.path).free
        disk = GaugeMetricFamily("dure_agent_disk_free_bytes", "Free space where the agent's home is.", free)
        yield from (silence, days, records, disk)


class MetricsServer:
    """Answers `GET /metrics` on loopback in a thread of its own. Close it."""

    def __init__(self, port: int, text: Callable[[], bytes]) -> None:
        """Raises MetricsError if the port cannot be had."""
        hosts = {f"{host}:{port}" for host in (HOST, "localhost")}

        def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
            # The Host header: a web page whose name points here must not read this through the firm's browser.
            if environ.get("HTTP_HOST") not in hosts or environ.get("PATH_INFO") != "/metrics":
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                return [b"GET /metrics on 127.0.0.1 is all there is here\n"]
            start_response("200 OK", [("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)])
            return [text()]

        try:
            self._server = make_server(HOST, port, app, _Server, handler_class=_Handler)
        except OSError as error:
            raise MetricsError(
                f"port {port} on {HOST} cannot be listened on ({error.strerror}): stop the program that has it, or "
                "choose another metrics_port in agent.toml"
            ) from error
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """A scrape is no news."""
