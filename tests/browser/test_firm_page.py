"""The firm's page in a real browser, served by `dure-agent ui` itself: entered by its link, used by mouse and keys."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from playwright.sync_api import Page

from dure_client.absence import Pause, local_now, pause_in_force
from dure_client.home import AgentHome
from dure_client.jobs.approvals import decision_on, known_job
from tests.browser.chromium import opened_page
from tests.client.page_firm import make_home, offer_package


@dataclass
class Served:
    """A firm's page that is being served. link: as it was printed, with the code."""

    home: AgentHome
    link: str

    @property
    def address(self) -> str:
        """Without the code."""
        return self.link.partition("#")[0]


@pytest.fixture
def served(tmp_path) -> Iterator[Served]:
    home = make_home(tmp_path / "home", at=datetime.now(UTC))
    command = [sys.executable, "-m", "dure_client.cli", "ui", "--home", str(home.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        link = re.search(r"http://\S+#\S+", process.stdout.readline())
        assert link is not None
        yield Served(home, link[0])
        process.send_signal(signal.SIGINT)


@pytest.fixture
def page(served: Served) -> Iterator[Page]:
    with opened_page() as opened:
        yield opened


def sign_in(page: Page, served: Served) -> None:
    page.goto(served.link)
    page.wait_for_url(served.address)
    page.locator("#firm-title").wait_for()


def test_the_link_signs_in_once_and_leaves_the_address_bar(page, served):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    sign_in(page, served)
    code = served.link.partition("#")[2]
    assert page.url == served.address
    assert all(url.startswith(served.address) and code not in url for url in asked)
    cookie = page.context.cookies()[0]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert page.evaluate("document.cookie") == ""
    assert page.problems == []
    page.context.clear_cookies()
    page.goto("about:blank")
    page.goto(served.link)
    page.get_by_text("This code is wrong, was used already").wait_for()


def test_a_job_is_approved_and_everything_paused_by_click(page, served):
    sign_in(page, served)
    page.get_by_role("link", name="Review").click()
    page.get_by_role("button", name="Approve").click()
    page.get_by_text("You approved wear-2").wait_for()
    assert known_job(served.home, "wear-2").state == "approved"
    page.get_by_role("link", name="This firm").first.click()
    page.get_by_role("button", name="Pause everything").click()
    page.get_by_text("Every job is paused here.", exact=True).wait_for()
    assert pause_in_force(served.home, None, local_now()) == Pause()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Pause everything").wait_for()
    assert pause_in_force(served.home, None, local_now()) is None
    assert page.problems == []


def test_a_package_is_read_and_approved_by_click(page, served):
    job, package = offer_package(served.home)
    sign_in(page, served)
    page.goto(f"{served.address}jobs/{job.id}")
    hidden = page.get_by_text("\\u202e hidden\\u001b[2J <script>alert(1)</script>").last
    assert not hidden.is_visible()
    page.get_by_text("pump_model/__init__.py", exact=True).click()
    assert hidden.is_visible()
    page.get_by_role("button", name="Approve").click()
    page.get_by_text("You approved pumps-1").wait_for()
    assert decision_on(served.home, job).package == package.digest
    assert page.problems == []


def test_what_left_is_seen_and_checked(page, served):
    sign_in(page, served)
    page.get_by_role("link", name="What left").first.click()
    assert page.get_by_text("1,022,168 bytes in 114 records").is_visible()
    page.get_by_role("button", name="Check the whole ledger").click()
    page.get_by_text("The ledger holds: 114 records").wait_for()
    assert page.problems == []


def test_a_change_shows_without_a_reload(page, served):
    sign_in(page, served)
    (served.home.job_folder("wear-2") / "job.json").unlink()
    page.locator("#waiting-title").wait_for(state="detached", timeout=20_000)
    assert page.problems == []


def test_the_keyboard_is_enough(page, served):
    page.goto(served.address)
    page.locator("#code").focus()
    page.keyboard.type(served.link.partition("#")[2].lower())
    page.keyboard.press("Enter")
    page.locator("#firm-title").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent").strip() == "Pause everything":
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Resume").wait_for()
    assert page.problems == []


UNNAMED = """
[...document.querySelectorAll('button, a, select, input:not([type=hidden])')]
  .filter(each => !(each.textContent.trim() || each.getAttribute('aria-label') || each.labels?.length)
                  || (each.labels && each.tagName != 'BUTTON' && !each.labels.length))
  .map(each => each.outerHTML)
"""
TWICE = "[...document.querySelectorAll('[id]')].map(each => each.id).filter((id, at, all) => all.indexOf(id) !== at)"


def test_nothing_sticks_out_and_everything_has_a_name(page, served):
    offer_package(served.home)
    sign_in(page, served)
    for path in ("", "jobs/wear-2", "jobs/pumps-1", "jobs/wear-1", "left"):
        page.goto(served.address + path)
        assert page.evaluate(UNNAMED) == []
        assert page.evaluate(TWICE) == []
        assert page.locator("h1").count() == 1
        for width in (320, 390, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert page.problems == []
