"""The console's first page in a real browser, served by the real process: it loads under its own policy and lives."""

import hashlib
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from dure_lab.consortium import LocalConsortium
from dure_protocols.identity import Identity
from dure_protocols.job import JobFile
from dure_server.store import EventKind, Happening, JobState
from tests.browser.chromium import opened_page
from tests.protocols.test_job import VALUES

FIRMS = ("firm-a", "firm-b", "firm-c")
LONG_NAME = "f" * 63
PAST = [
    Happening(EventKind.COORDINATOR),
    Happening(EventKind.PHASE, "join", 1, 1, LONG_NAME, 0.5),
    Happening(EventKind.PHASE, "update", 1, 1, LONG_NAME, 8000.0),
    Happening(EventKind.DROPPED, "update", 1, 1, LONG_NAME, code="cohort-too-small"),
    Happening(EventKind.ABANDONED, None, 1, 1),
    Happening(EventKind.WAITING, "join", 1, 2, seconds=99999.0),
]


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
            at.timeline.add(job.id, PAST)
            at.progress.set(job.id, "join", "waiting for firm-b to connect", members=FIRMS, waiting_for=["firm-b"])
        yield made


@pytest.fixture
def page(consortium: LocalConsortium) -> Iterator[Page]:
    with opened_page() as opened:
        yield opened


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


def test_an_event_shows_without_a_reload(page, consortium):
    page.goto(consortium.settings.console_url)
    page.get_by_text("waited 27 h 46 min for enough firms").wait_for()
    with consortium.store.transaction() as at:
        at.timeline.add(VALUES["id"], [Happening(EventKind.SIGNOFF, firm="firm-b", code="approved")])
    page.get_by_text("firm-b approved the job").wait_for(timeout=20_000)
    assert page.problems == []


@pytest.mark.parametrize("width", [320, 390, 800, 1280])
def test_nothing_sticks_out_of_a_narrow_window(page, consortium, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(consortium.settings.console_url)
    assert page.locator(".timeline .bar rect").count() == 2
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0
    timeline = page.locator(".timeline").evaluate("list => list.scrollWidth - list.clientWidth")
    assert timeline <= 0
