"""A job in a real consortium, scraped on both sides: the counters agree with the store and the ledger, and what the
dashboard, the alerts and the documentation name is what is exported. And no log holds a secret.
"""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dure_client.home import AgentHome
from dure_client.ledger import read_records
from dure_lab.consortium import LocalConsortium
from dure_protocols.invitation import read_invitation
from dure_protocols.job import JobFile
from dure_protocols.ledger import signed_size
from tests.deploy import watched
from tests.end_to_end import tiny
from tests.end_to_end.recorded_mills import CANARY_FILE, CANARY_TEXT, Mills, Recording

FIRM = "cedar"  # nobody records its wire


@dataclass
class Watched:
    """A finished job, what both sides said to a scrape after it, and where the firm's ledger stood before."""

    consortium: LocalConsortium
    job: JobFile
    server: str
    agent: str
    home: AgentHome
    records_before: int

    def value(self, text: str, name: str, **labels: str) -> float:
        """The sum over all samples of a name that have these labels."""
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())


@pytest.fixture(scope="module")
def run(mills: Mills, recording: Recording) -> Iterator[Watched]:
    consortium = mills.consortium
    home = consortium.agents[FIRM]
    port = _free_port()
    consortium.stop(FIRM)
    records_before = len(list(read_records(home.ledger_file)))
    plain = home.config()
    home.write_config(plain.model_copy(update={"metrics_port": port}))
    consortium.start_agent(FIRM)
    job = consortium.propose(tiny.draft(consortium, "watched", rounds=2))
    tiny.approve(consortium, job)
    tiny.until(lambda: tiny.is_finished(consortium, job), consortium)
    tiny.until(lambda: tiny.result(home, job), consortium)
    server = httpx.get(f"{consortium.settings.console_url}/metrics").text
    agent = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    yield Watched(consortium, job, server, agent, home, records_before)
    home.write_config(plain)


def test_the_servers_counters_agree_with_the_store(run: Watched) -> None:
    rounds = tiny.published(run.consortium, run.job)
    assert run.value(run.server, "dure_rounds_finished_total", job=run.job.id) == len(rounds) == 4
    assert run.value(run.server, "dure_job_planned_rounds", job=run.job.id) == 4
    for direction, size in (("up", sum(r.bytes_up for r in rounds)), ("down", sum(r.bytes_down for r in rounds))):
        assert run.value(run.server, "dure_round_bytes_total", job=run.job.id, direction=direction) == size > 0
    for phase in ("join", "update", "release", "publish"):
        assert run.value(run.server, "dure_phase_seconds_count", job=run.job.id, phase=phase) == len(rounds)
    assert run.value(run.server, "dure_job_state", job=run.job.id, state="finished") == 1
    assert run.value(run.server, "dure_drop_outs_total", job=run.job.id) == 0


def test_the_link_has_moved_at_least_what_the_rounds_did_and_sees_every_agent(run: Watched) -> None:
    moved = sum(row.bytes_up for row in tiny.published(run.consortium, run.job))
    assert run.value(run.server, "dure_link_bytes_total", direction="up") >= moved
    assert run.value(run.server, "dure_link_streams", method="subscribe") == len(tiny.ROWS)
    assert run.value(run.server, "dure_firm_connected") == len(tiny.ROWS)
    assert run.value(run.server, "dure_link_messages_total", direction="up") > 0
    assert run.value(run.server, "dure_link_commit_seconds_count") > 0


def test_every_process_of_the_server_is_seen(run: Watched) -> None:
    for process in ("supervisor", "link", "console"):
        assert run.value(run.server, "dure_process_up", process=process) == 1
    assert run.value(run.server, "dure_coordinator_starts_total", job=run.job.id) == 1


def test_the_agents_counters_agree_with_its_ledger(run: Watched) -> None:
    records = list(read_records(run.home.ledger_file))
    assert run.value(run.agent, "dure_agent_ledger_records") == len(records)
    since = sum(signed_size(record.entry) for record in records[run.records_before :])
    sent = run.value(run.agent, "dure_agent_sent_bytes_total") - run.value(run.agent, "dure_agent_not_sent_bytes_total")
    assert sent == since > 0
    blobs = [record.entry for record in records[run.records_before :] if record.entry.kind == "blob"]
    assert run.value(run.agent, "dure_agent_sent_bytes_total", kind="blob") == sum(each.size_bytes for each in blobs)


def test_the_agent_tells_how_it_does(run: Watched) -> None:
    assert run.value(run.agent, "dure_agent_connected") == 1
    assert run.value(run.agent, "dure_agent_last_round", job=run.job.id) == 3
    assert run.value(run.agent, "dure_agent_trainer_seconds_count", method="Train") == 2
    assert 0 < run.value(run.agent, "dure_agent_certificate_days_left") <= 30
    assert run.value(run.agent, "dure_agent_received_bytes_total", kind="message") > 0


def test_what_is_asked_for_is_exported_and_what_is_exported_is_explained(run: Watched) -> None:
    exported = watched.exported(run.server) | watched.exported(run.agent)
    asked = set().union(*map(watched.metrics_in, watched.expressions()))
    assert asked - exported == set()
    assert exported - watched.documented() == set()
    assert {name for name in watched.documented() if name.startswith("dure_")} - exported == set()


def test_labels_are_of_a_closed_list_and_the_agents_name_no_firm(run: Watched) -> None:
    assert _labels(run.agent) <= {"version", "job", "kind", "code", "method", "le"}
    of_the_server = {"version", "job", "firm", "state", "status", "phase", "direction", "method", "kind", "process"}
    assert _labels(run.server) <= of_the_server | {"code", "folder", "certificate", "le"}
    assert not [firm for firm in tiny.ROWS if firm in run.agent]


def test_the_server_is_ready_and_the_probe_finds_the_agent_well(run: Watched) -> None:
    assert httpx.get(f"{run.consortium.settings.console_url}/ready").json() == {"status": "ok", "code": "ready"}
    probe = [sys.executable, "-m", "dure_client.cli", "status", "--probe", "--home", str(run.home.path)]
    tiny.until(lambda: subprocess.run(probe, check=False, capture_output=True).returncode == 0, run.consortium)


def test_the_timeline_tells_the_whole_course_on_the_command_line(run: Watched) -> None:
    command = [sys.executable, "-m", "dure_server.cli", "job", "show", run.job.id, "--timeline"]
    command += ["--home", str(run.consortium.home.path)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for words in ("the job is running", f"{FIRM} approved the job", "statistics", "round 2", "closing", "finished"):
        assert words in told
    assert told.count("the sum was published after") == 4
    events = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout)
    assert [event["kind"] for event in events].count("finished") == 4


def test_the_servers_logs_are_json_with_job_and_round(run: Watched) -> None:
    log = run.consortium.home.logs / f"coordinator-{run.job.id}.log"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["job"] for line in lines} == {run.job.id}
    assert {line.get("round") for line in lines} >= {0, 1, 2, 3}
    assert {line["process"] for line in lines} == {"coordinator"}


def test_no_log_of_any_process_holds_a_secret(run: Watched, mills: Mills) -> None:
    consortium = run.consortium
    secrets = [read_invitation((consortium.folder / "invitation.txt").read_text()).secret.hex()]
    secrets.append((consortium.folder / "invitation.txt").read_text().split("dure1_")[1][:40])
    key_files = [consortium.home.root_key_file, consortium.home.server_key_file]
    for home in consortium.agents.values():
        key_files += [home.tls_key_file, home.identity_key_file]
    for file in key_files:
        secrets += [line for line in file.read_text().splitlines() if not line.startswith("-----")]
    logs = {file: file.read_text() for file in sorted(consortium.folder.rglob("*.log"))}
    assert len(logs) > 8
    for file, text in logs.items():
        assert not [secret for secret in secrets if secret in text], file
        if consortium.home.path in file.parents:  # what is the firm's stays there
            assert CANARY_TEXT not in text
            assert CANARY_FILE not in text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _labels(scrape: str) -> set[str]:
    families = text_string_to_metric_families(scrape)
    return {label for family in families for sample in family.samples for label in sample.labels}
