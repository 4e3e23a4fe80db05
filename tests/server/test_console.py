"""The console's page, its API, its stream and its guard."""

import asyncio
import base64
import hashlib
import re
import shutil
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from dure_pages.assets import AssetError, load_assets
from dure_pages.render import bytes_text, seconds_text
from dure_server.console.app import ASSETS, console_app
from dure_server.console.live import events
from dure_server.console.probes import Watch
from dure_server.console.render import Pages
from dure_server.link.desk_client import DeskClient
from dure_server.settings import ServerHome
from dure_server.store import EventKind, Happening, JobState, SignoffState, Store
from tests.server.conftest import Clock
from tests.server.samples import identity, job_file

PORT = 7480
FIRMS = ("firm-a", "firm-b")


@pytest.fixture
def client(store: Store, tmp_path: Path) -> TestClient:
    home = ServerHome(tmp_path)
    app = console_app(store, PORT, asyncio.Event(), Watch(home, store, DeskClient(home.desk_socket, 0.2)))
    return TestClient(app, base_url=f"http://127.0.0.1:{PORT}", raise_server_exceptions=False)


@pytest.fixture
def job(store: Store, clock: Clock) -> str:
    """A running job: round 0 and 1 finished, an attempt at 2 abandoned, round 2 under way without firm-b's answer."""
    with store.transaction() as tx:
        for firm in FIRMS:
            tx.firms.invite(firm)
            tx.firms.join(firm, identity(firm).public_bytes, "0.1.0")
            tx.firms.approve(firm)
            tx.firms.seen(firm, "0.1.0")
        tx.jobs.propose(job_file("wear", title="Wear <b>&amp;</b> tear", simulated=True))
        tx.signoffs.ask("wear", FIRMS)
        for firm in FIRMS:
            tx.signoffs.set("wear", firm, SignoffState.APPROVED)
        tx.jobs.set_state("wear", JobState.RUNNING)
    finish_round(store, 0, {})
    finish_round(store, 1, {"loss": 0.52, "pr_auc": 0.31})
    finish_round(store, 2, {"loss": 0.41, "pr_auc": 0.36})
    with store.transaction() as tx:
        tx.rounds.begin("wear", 3, 1, FIRMS)
        tx.rounds.abandon("wear", 3, 1, "firm-b was lost before its upload")
        tx.rounds.begin("wear", 3, 2, FIRMS)
        sentence = "Waiting for firm-b: its update has not arrived."
        tx.progress.set(
            "wear", "masked update", sentence, round_number=3, attempt=2, members=FIRMS, waiting_for=["firm-b"]
        )
    return "wear"


def finish_round(store: Store, number: int, metrics: dict[str, float]) -> None:
    digests = {name: hashlib.sha256(f"{name}{number}".encode()).hexdigest() for name in ("model_digest", "sum_digest")}
    with store.transaction() as tx:
        tx.rounds.begin("wear", number, 1, FIRMS)
        tx.rounds.finish(
            "wear", number, 1, count=12345, metrics=metrics, bytes_up=2_000_000, bytes_down=1_000_000, **digests
        )


def words_of(html: str) -> str:
    """What a reader sees, in one line."""

    class Words(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.words: list[str] = []

        def handle_data(self, data: str) -> None:
            self.words += data.split()

    parser = Words()
    parser.feed(html)
    return " ".join(parser.words)


# The page


def test_an_empty_console_says_what_to_do_first(client: TestClient) -> None:
    words = words_of(client.get("/").text)
    assert "Millers" in words
    assert "dure-server invite FIRM" in words
    assert "No job yet" in words


def test_the_page_tells_the_live_round_who_is_in_and_why_we_wait(client: TestClient, job: str) -> None:
    words = words_of(client.get("/").text)
    assert "Waiting for firm-b: its update has not arrived." in words
    assert "Round 3 of 3 attempt 2 masked update" in words
    assert "firm-a answered" in words
    assert "firm-b answer awaited" in words


def test_a_firm_that_is_not_connected_is_shown_missing(client: TestClient, job: str, store: Store) -> None:
    with store.transaction() as tx:
        tx.firms.seen("firm-b", None)
    assert "firm-b not connected" in words_of(client.get("/").text)


def test_the_rounds_stand_in_the_table_newest_first(client: TestClient, job: str) -> None:
    words = words_of(client.get("/").text)
    sums = [hashlib.sha256(f"sum_digest{number}".encode()).hexdigest()[:10] for number in range(3)]
    assert all(f"{each}…" in words for each in sums)
    assert words.index(sums[2]) < words.index(sums[1]) < words.index(sums[0])
    assert "0.41 0.36 12,345 2" in words
    assert "firm-b was lost before its upload" in words


def test_simulated_data_is_labelled_wherever_the_job_shows(client: TestClient, job: str) -> None:
    fragments = client.get("/").text
    assert words_of(fragments).count("simulated data") == 3  # the list, the headline, the chart


def test_without_script_there_is_a_curve(client: TestClient, job: str) -> None:
    html = client.get("/").text
    assert "loss from round 1 to 2, between 0.41 and 0.52" in html
    assert html.count("<circle") >= 2


def test_texts_of_a_job_are_never_markup(client: TestClient, job: str) -> None:
    html = client.get("/").text
    assert "Wear &lt;b&gt;&amp;amp;&lt;/b&gt; tear" in html
    assert "<b>" not in html


def test_the_first_page_follows_the_running_job_and_a_jobs_page_stays(
    client: TestClient, job: str, store: Store, clock: Clock
) -> None:
    clock.forward(minutes=5)
    with store.transaction() as tx:
        tx.jobs.propose(job_file("later", title="Later"))
    assert 'id="job-title">Wear' in client.get("/").text
    assert 'id="job-title">Later' in client.get("/jobs/later").text
    assert 'sse-connect="/events?job=later"' in client.get("/jobs/later").text


def test_an_unknown_job_has_a_page_that_says_so(client: TestClient, job: str) -> None:
    response = client.get("/jobs/tear")
    assert response.status_code == 404
    assert "known jobs: wear" in words_of(response.text)


def test_the_page_has_landmarks_a_language_and_a_skip_link(client: TestClient, job: str) -> None:
    html = client.get("/").text
    for piece in ('<html lang="en">', "<main id=", "<nav ", "<header ", "<footer ", 'href="#main"', 'role="status"'):
        assert html.count(piece) == 1
    assert html.count("<h1") == 1


# The timeline


def test_the_timeline_tells_attempts_and_drop_outs_on_the_page_and_in_the_api(
    client: TestClient, job: str, store: Store
) -> None:
    with store.transaction() as tx:
        tx.timeline.add(
            job,
            [
                Happening(EventKind.PHASE, "join", 3, 1, "firm-a", 1.5),
                Happening(EventKind.DROPPED, "update", 3, 1, "firm-b", code="no-answer"),
                Happening(EventKind.ABANDONED, None, 3, 1),
            ],
        )
    words = words_of(client.get("/").text)
    assert "Round 3 attempt 1 1.5 s join 1.5 s firm-b dropped out of update: no-answer" in words
    assert "the job is running" in words
    events = client.get(f"/api/v1/jobs/{job}/timeline").json()
    assert [each["kind"] for each in events] == ["state", "phase", "dropped", "abandoned"]
    assert events[2]["sentence"] == "firm-b dropped out of update: no-answer"
    newer = client.get(f"/api/v1/jobs/{job}/timeline", params={"after": events[1]["number"]}).json()
    assert newer == events[2:]
    assert client.get("/api/v1/jobs/tear/timeline").status_code == 404


def test_an_event_reaches_open_pages(store: Store, job: str, clock: Clock) -> None:
    async def story() -> str:
        stopping = asyncio.Event()
        stream = events(store, Pages(load_assets(ASSETS)), None, stopping)
        await _take(stream, 8)
        clock.forward(seconds=1)
        with store.transaction() as tx:
            tx.timeline.add(job, [Happening(EventKind.SIGNOFF, firm="firm-b", code="approved")])
        (changed,) = await _take(stream, 1)
        stopping.set()
        return changed

    changed = asyncio.run(story())
    assert changed.startswith("event: timeline")
    assert "firm-b approved the job" in changed


# Probes


def test_probes_say_one_word(client: TestClient, job: str) -> None:
    health = client.get("/health")
    assert (health.status_code, health.json()) == (200, {"status": "ok", "code": "alive"})
    ready = client.get("/ready")  # there is no link here
    assert (ready.status_code, ready.json()) == (503, {"status": "not-ok", "code": "link"})


def test_metrics_are_served_as_prometheus_reads_them(client: TestClient, job: str) -> None:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'dure_rounds_finished_total{job="wear"} 3.0' in answer.text
    assert "dure_link_up 0.0" in answer.text


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_probes_stand_behind_the_guard(client: TestClient, path: str) -> None:
    assert client.get(path, headers={"Host": "evil.example"}).status_code == 421


# Assets and headers


def test_everything_a_page_loads_comes_from_here_with_its_integrity(client: TestClient, job: str) -> None:
    html = client.get("/").text
    tags = re.findall(r'<(?:script|link)[^>]*(?:src|href)="([^"]+)"(?: integrity="([^"]+)")?', html)
    assert len(tags) == 8
    for url, integrity in tags:
        content = client.get(url)
        assert content.status_code == 200
        assert "immutable" in content.headers["cache-control"]
        if not url.startswith("/assets/icon.svg"):
            assert integrity == f"sha256-{base64.b64encode(hashlib.sha256(content.content).digest()).decode()}"
    assert not re.search(r"(src|href)=\"(https?:)?//", html)
    assert " style=" not in html
    assert not re.search(r"<script(?![^>]*src=)", html)


def test_the_policy_allows_nothing_from_elsewhere(client: TestClient) -> None:
    headers = client.get("/").headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"


def test_a_changed_vendored_file_keeps_the_console_from_starting(tmp_path: Path) -> None:
    folder = tmp_path / "assets"
    shutil.copytree(ASSETS, folder)
    assert load_assets(folder) == load_assets(ASSETS)
    with (folder / "vendor" / "htmx.min.js").open("ab") as file:
        file.write(b" ")
    with pytest.raises(AssetError, match=r"htmx\.org 2\.0\.11 as published: install Dure again"):
        load_assets(folder)


# The guard


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", f"127.0.0.1.evil.example:{PORT}", "127.0.0.1:9999", ""])
def test_a_request_for_another_host_is_refused(client: TestClient, host: str) -> None:
    for path in ("/", "/api/v1/jobs", "/events", "/assets/console.js"):
        response = client.get(path, headers={"host": host})
        assert response.status_code == 421
        assert "Millers" not in response.text


@pytest.mark.parametrize("host", [f"127.0.0.1:{PORT}", f"localhost:{PORT}", f"LOCALHOST:{PORT}", f"[::1]:{PORT}"])
def test_this_machine_has_three_names(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(client: TestClient, method: str) -> None:
    assert client.request(method, "/api/v1/jobs").status_code == 405


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/assets/../app.py", "/assets/%2e%2e/app.py"])
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


# The API


def test_the_api_gives_what_the_page_shows(client: TestClient, job: str) -> None:
    (summary,) = client.get("/api/v1/jobs").json()
    assert (summary["id"], summary["state"], summary["rounds_finished"], summary["simulated"]) == (
        "wear",
        "running",
        2,
        True,
    )
    rounds = client.get("/api/v1/jobs/wear/rounds").json()
    assert [(row["number"], row["attempt"], row["state"]) for row in rounds] == [
        (0, 1, "finished"),
        (1, 1, "finished"),
        (2, 1, "finished"),
        (3, 1, "abandoned"),
        (3, 2, "running"),
    ]
    whole = client.get("/api/v1/jobs/wear").json()
    assert whole["live"]["sentence"].startswith("Waiting for firm-b")
    assert [(seat["firm"], seat["standing"]) for seat in whole["seats"]] == [
        ("firm-a", "answered"),
        ("firm-b", "waiting"),
    ]
    assert {firm["name"] for firm in client.get("/api/v1/firms").json()} == {"firm-a", "firm-b"}


def test_an_unknown_job_is_a_problem(client: TestClient, job: str) -> None:
    response = client.get("/api/v1/jobs/tear")
    assert (response.status_code, response.json()["type"]) == (404, "urn:dure:problem:not-found")


# The stream


async def _take(stream: AsyncIterator[str], number: int) -> list[str]:
    return [await asyncio.wait_for(anext(stream), 5) for _ in range(number)]


def test_the_stream_sends_every_part_once_and_then_only_what_changed(store: Store, job: str, clock: Clock) -> None:
    async def story() -> tuple[list[str], str, list[str]]:
        stopping = asyncio.Event()
        stream = events(store, Pages(load_assets(ASSETS)), None, stopping)
        first = await _take(stream, 8)
        clock.forward(seconds=1)
        with store.transaction() as tx:
            tx.progress.set(job, "release", "Waiting for nobody.", round_number=3, attempt=2, members=FIRMS)
        changed = await _take(stream, 2)
        stopping.set()
        return first, changed[0] + changed[1], [each async for each in stream]

    first, changed, rest = asyncio.run(story())
    assert [re.findall(r"event: (\w+)", each) for each in first] == [
        [], ["sentence"], ["job"], ["chart"], ["timeline"], ["rounds"], ["jobs"], ["firms"]
    ]  # fmt: skip
    assert re.findall(r"event: (\w+)", changed) == ["sentence", "job"]
    assert "Waiting for nobody." in changed
    assert rest == []


def test_sizes_and_spans_are_written_for_people() -> None:
    assert [bytes_text(each) for each in (0, 999, 1234, 20_480_000, 3 * 10**12)] == [
        "0 B",
        "999 B",
        "1.2 kB",
        "20.5 MB",
        "3.0 TB",
    ]
    assert [seconds_text(each) for each in (0.21, 42.3, 95.2, 7300)] == ["0.2 s", "42 s", "1 min 35 s", "2 h 1 min"]
