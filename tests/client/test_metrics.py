"""The agent's own numbers, the port they are on, and the heartbeat that a probe reads."""

import hashlib
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from dure_client import health as health_module
from dure_client.cli import app
from dure_client.health import Health, Heartbeat, health_file, read_health
from dure_client.home import AgentHome
from dure_client.ledger import Ledger
from dure_client.metrics import AgentMetrics, MetricsError, MetricsServer
from dure_lab.homes import make_home
from dure_protocols.certificates import Authority, key_to_pem, new_serial, new_tls_key, signing_request
from dure_protocols.errors import RefusalCode
from dure_protocols.frames import DURE_MESSAGE_TYPE, Envelope, Place
from dure_protocols.ledger import Entry, RecordKind
from dure_protocols.messages import Finished, Refusal, encode

NOW = datetime.now(UTC)


@pytest.fixture
def home(tmp_path: Path) -> AgentHome:
    """The home of a firm that has joined, with a certificate of thirty days."""
    made = make_home(tmp_path / "home", "Millers", "firm-a", b"a" * 32)
    authority = Authority.create("Millers", NOW, key=new_tls_key(), serial=new_serial())
    key = new_tls_key()
    made.tls_key_file.write_bytes(key_to_pem(key))
    made.tls_certificate_file.write_bytes(
        authority.issue_client("firm-a", signing_request(key), NOW, serial=new_serial())
    )
    return made


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def value(metrics: AgentMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def request(job: str, number: int) -> Envelope:
    return Envelope.request(
        run_id=1, dst_node=2, group=Place(job, number, 1, "join").group, message_type=DURE_MESSAGE_TYPE, body=b"x",
        arrays=(), created_at=NOW.timestamp(), ttl=60.0,
    )  # fmt: skip


def answered(metrics: AgentMetrics, job: str, number: int, refused: RefusalCode | None = None) -> None:
    message = request(job, number)
    body = encode(Refusal("firm-a", refused) if refused else Finished("firm-a", bytes(32)))
    metrics.answered(message, message.reply(body, (), None, created_at=NOW.timestamp()))


def test_answers_are_counted_and_refusals_by_their_code() -> None:
    metrics = AgentMetrics()
    answered(metrics, "wear", 3)
    answered(metrics, "wear", 0)  # the finish is of no round
    answered(metrics, "wear", 9, RefusalCode.DATA)
    message = request("wear", 4)
    metrics.answered(message, message.reply(error_code=RefusalCode.INTERNAL, created_at=NOW.timestamp()))
    assert value(metrics, "dure_agent_messages_total") == 4
    assert value(metrics, "dure_agent_refusals_total", code="data") == 1
    assert value(metrics, "dure_agent_refusals_total", code="internal") == 1
    assert value(metrics, "dure_agent_last_round", job="wear") == 3


def test_a_job_that_the_firm_refuses_becomes_no_series() -> None:
    metrics = AgentMetrics()
    for number in range(100):
        answered(metrics, f"made-up-{number}", 1, RefusalCode.UNKNOWN_JOB)
    assert b"made-up" not in metrics.text()


def test_what_the_ledger_records_is_what_is_counted(home: AgentHome) -> None:
    metrics = AgentMetrics()
    with Ledger(home.ledger_file, home.identity()) as ledger:
        metrics.watch(home, ledger)
        recorder = metrics.counting(ledger)
        for kind, size in ((RecordKind.BLOB, 1000), (RecordKind.JOIN, 20), (RecordKind.NOT_SENT, 400)):
            recorder.record(Entry(kind, size, hashlib.sha256().digest()))
        assert value(metrics, "dure_agent_ledger_records") == ledger.head.number == 3
    assert value(metrics, "dure_agent_sent_bytes_total", kind="blob") == 1000
    assert value(metrics, "dure_agent_sent_bytes_total", kind="join") == 20
    assert value(metrics, "dure_agent_not_sent_bytes_total") == 400


def test_what_cannot_be_recorded_is_not_counted() -> None:
    class Broken:
        def record(self, entry: Entry) -> object:
            raise OSError("the disk is full")

    metrics = AgentMetrics()
    with pytest.raises(OSError, match="full"):
        metrics.counting(Broken()).record(Entry(RecordKind.JOIN, 20, hashlib.sha256().digest()))
    assert value(metrics, "dure_agent_sent_bytes_total", kind="join") is None


def test_the_home_is_looked_at_when_it_is_scraped(home: AgentHome) -> None:
    now = [100.0]
    metrics = AgentMetrics(lambda: now[0])
    with Ledger(home.ledger_file, home.identity()) as ledger:
        metrics.watch(home, ledger)
        assert 29 < (value(metrics, "dure_agent_certificate_days_left") or 0) <= 30
        assert (value(metrics, "dure_agent_disk_free_bytes") or 0) > 0
        assert value(metrics, "dure_agent_since_message_seconds") is None
        metrics.received("message", 50)
        metrics.received("blob", 7)
        now[0] += 2.5
        assert value(metrics, "dure_agent_since_message_seconds") == 2.5
    assert value(metrics, "dure_agent_received_bytes_total", kind="message") == 50


@pytest.fixture
def served(port: int) -> Iterator[str]:
    server = MetricsServer(port, AgentMetrics().text)
    yield f"http://127.0.0.1:{port}"
    server.close()


def test_metrics_are_served_on_loopback_and_nothing_else_is(served: str, port: int) -> None:
    answer = httpx.get(f"{served}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "dure_agent_connected 0.0" in answer.text
    assert httpx.get(f"{served}/").status_code == 404
    with pytest.raises(OSError, match=r"refused|assign|timed out"):
        socket.create_connection(("127.0.0.2", port), timeout=2)  # this machine too, but not the address asked for


def test_a_page_elsewhere_cannot_read_them_through_the_firms_browser(served: str) -> None:
    assert httpx.get(f"{served}/metrics", headers={"Host": "evil.example"}).status_code == 404


def test_a_port_that_is_taken_is_told(served: str, port: int) -> None:
    with pytest.raises(MetricsError, match=r"metrics_port in agent\.toml"):
        MetricsServer(port, AgentMetrics().text)


def test_the_port_stands_in_the_agents_configuration_and_is_off_unless_it_does(home: AgentHome) -> None:
    assert home.config().metrics_port is None
    assert "metrics_port" not in home.config_file.read_text()
    home.write_config(home.config().model_copy(update={"metrics_port": 9464}))
    assert home.config().metrics_port == 9464


# Health


def test_an_agent_is_well_while_its_heart_beats_and_it_is_connected(
    home: AgentHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "LOOK_SECONDS", 0.01)
    connected = False
    assert read_health(home, NOW) is Health.NOT_RUNNING
    heart = Heartbeat(home.state, lambda: connected)
    assert eventually(home, Health.NOT_CONNECTED)
    connected = True
    assert eventually(home, Health.OK)
    heart.close()
    assert read_health(home, NOW) is Health.NOT_RUNNING


def test_a_heart_goes_on_over_a_disk_that_takes_no_file(home: AgentHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(health_module, "BEAT_SECONDS", 0.01)
    aside = health_file(home.state).with_suffix(".new")
    aside.mkdir()  # nothing can be written there
    heart = Heartbeat(home.state, lambda: True)
    time.sleep(0.1)
    assert read_health(home, datetime.now(UTC)) is Health.NOT_RUNNING
    aside.rmdir()
    assert eventually(home, Health.OK)
    heart.close()


def test_a_heart_that_stopped_without_a_word_is_noticed(home: AgentHome) -> None:
    health_file(home.state).write_text('{"connected": true}')
    assert read_health(home, datetime.now(UTC)) is Health.OK
    old = time.time() - health_module.SILENT_SECONDS - 1
    os.utime(health_file(home.state), (old, old))
    assert read_health(home, datetime.now(UTC)) is Health.NOT_RUNNING


def test_a_certificate_that_ended_and_a_full_disk_are_told(home: AgentHome, monkeypatch: pytest.MonkeyPatch) -> None:
    health_file(home.state).write_text('{"connected": true}')
    later = NOW + timedelta(days=31)
    os.utime(health_file(home.state), (later.timestamp(), later.timestamp()))
    assert read_health(home, later) is Health.CERTIFICATE
    health_file(home.state).write_text('{"connected": true}')
    monkeypatch.setattr(health_module, "FLOOR_BYTES", 1 << 60)
    assert read_health(home, datetime.now(UTC)) is Health.DISK


@pytest.mark.parametrize(
    ("content", "said", "status"),
    [(None, "not-running", 1), ('{"connected": false}', "not-connected", 3), ('{"connected": true}', "ok", 0)],
)
def test_the_probe_says_a_word_and_an_exit_status(home: AgentHome, content: str | None, said: str, status: int) -> None:
    if content:
        health_file(home.state).write_text(content)
    for more, printed in (([], f"{said}\n"), (["--json"], f'{{"health": "{said}"}}\n')):
        result = CliRunner().invoke(app, ["status", "--probe", *more, "--home", str(home.path)])
        assert (result.stdout, result.exit_code) == (printed, status)


def eventually(home: AgentHome, expected: Health) -> bool:
    deadline = time.monotonic() + 10
    while read_health(home, datetime.now(UTC)) is not expected:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
