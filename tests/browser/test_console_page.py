"""The console's first page in a real browser, served by the real process: it loads under its own policy and lives."""

import hashlib
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright

from dure_lab.consortium import LocalConsortium
from dure_protocols.identity import Identity
from dure_protocols.job import JobFile
from dure_server.store import JobState
from tests.conftest import lacking
from tests.protocols.test_job import VALUES

CHROMIUM_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
FIRMS = ("firm-a", "firm-b", "firm-c")


@pytest.fixture(scope="module")
def consortium(tmp_path_factory) -> Iterator[LocalConsortium]:
    """A running server with a job that waits."""
    with LocalConsortium(tmp_path_factory.mktemp("console")) as made:
        made.start_server()
        keys = {name: Identity.from_seed(hashlib.sha256(name.encode()).digest()).public_bytes for name in FIRMS}
        job = JobFile.model_validate(VALUES | {"firms": {n: key.hex() for n, key in keys.items()}, "simulated": True})
        with made.store.transaction() as at:
            for name in FIRMS:
                at.firms.invite(name)
            at.jobs.propose(job)
            at.progress.set(job.id, "join", "waiting for firm-b to connect", members=FIRMS, waiting_for=["firm-b"])
        yield made


@pytest.fixture
def page(consortium: LocalConsortium) -> Iterator[Page]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        lacking("no Chromium: install it (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        opened = browser.new_page()
        opened.problems = []
        opened.on("console", lambda message: opened.problems.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: opened.problems.append(str(error)))
        opened.on("requestfailed", lambda request: opened.problems.append(request.url))
        yield opened
        browser.close()


def test_the_page_loads_from_this_server_alone_and_says_that_the_data_is_simulated(page, consortium):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(consortium.settings.console_url)
    assert page.locator("#job-title").inner_text() == VALUES["title"]
    assert page.get_by_text("simulated data").first.is_visible()
    assert asked
    assert all(url.startswith(consortium.settings.console_url) for url in asked)
    assert page.problems == []


def test_a_change_shows_without_a_reload(page, consortium):
    page.goto(consortium.settings.console_url)
    page.wait_for_function("document.querySelector('#job-title') !== null")
    with consortium.store.transaction() as at:
        at.jobs.set_state(VALUES["id"], JobState.STOPPED, "the operator had second thoughts")
    page.get_by_text("the operator had second thoughts").first.wait_for(timeout=20_000)
    assert page.problems == []


def test_nothing_sticks_out_on_a_phone(page, consortium):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(consortium.settings.console_url)
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0
