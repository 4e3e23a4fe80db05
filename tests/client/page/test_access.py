"""The firm's own page: who may look, and what a foreign request gets."""

import re

import pytest

from dure_client.home import AgentHome
from dure_client.page.access import CODE_SECONDS, SESSION_SECONDS, Access
from dure_client.page.acts import ACTS
from dure_client.page.app import COOKIE, MAX_FIELDS, MAX_FORM_BYTES
from tests.client.page_firm import ORIGIN, PORT, WAITING, Browser, browser, files

PAGES = ("/", "/left", "/jobs/wear-2")
POSTS = (*(f"/acts/{name}" for name in ACTS), "/sign-out")


# Who may look


@pytest.mark.parametrize("path", PAGES)
def test_without_a_session_there_is_only_the_sign_in(stranger: Browser, path: str) -> None:
    answer = stranger.client.get(path, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert "north-mill" not in stranger.client.get(path).text


def test_the_code_opens_one_session_and_is_spent(stranger: Browser) -> None:
    code = {"code": stranger.access.code.lower().replace("-", " ")}
    answer = stranger.client.post("/sign-in", data=code, follow_redirects=False)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert all(each in cookie for each in ("HttpOnly", "SameSite=strict", "Path=/"))
    assert "Max-Age" not in cookie  # gone with the browser
    assert "north-mill" in stranger.client.get("/").text
    stranger.client.cookies.clear()
    assert stranger.client.post("/sign-in", data=code).status_code == 403


@pytest.mark.parametrize("code", ["", "A" * 16, "ÄÖÜ", "A" * 4000])
def test_a_wrong_code_opens_nothing(stranger: Browser, code: str) -> None:
    answer = stranger.client.post("/sign-in", data={"code": code})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_code_and_session_end(home: AgentHome) -> None:
    seconds = [0.0]
    late = browser(home, clock=lambda: seconds[0])
    seconds[0] = CODE_SECONDS
    assert late.client.post("/sign-in", data={"code": late.access.code}).status_code == 403
    seconds[0] = 0.0
    late.sign_in()
    seconds[0] = SESSION_SECONDS
    assert "Is it you?" in late.client.get("/").text


def test_a_closed_page_stays_closed(person: Browser) -> None:
    cookie = person.client.cookies[COOKIE]
    person.client.post("/sign-out", data={"token": person.token()})
    person.client.cookies.set(COOKIE, cookie)
    assert "Is it you?" in person.client.get("/").text


def test_nothing_secret_is_in_a_repr() -> None:
    access = Access()
    session = access.enter(access.code)
    assert session is not None
    assert session.key not in repr(session)
    assert session.token not in repr(session)


# Foreign requests


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", f"127.0.0.1.evil.example:{PORT}", "127.0.0.1:9999", ""])
def test_a_request_for_another_host_is_refused(person: Browser, host: str) -> None:
    for path in (*PAGES, "/sign-in", "/assets/look.css"):
        answer = person.client.get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "north-mill" not in answer.text


FOREIGN = {
    "another site": {"origin": "http://evil.example"},
    "another port of this machine": {"origin": "http://127.0.0.1:9999"},
    "another name of this machine": {"origin": f"http://localhost:{PORT}"},
    "a page that hides where it is": {"origin": "null"},
    "nobody": {"origin": ""},
    "a browser that knows better": {"origin": ORIGIN, "sec-fetch-site": "same-site"},
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_an_act_from_elsewhere_does_nothing(person: Browser, headers: dict[str, str]) -> None:
    form, before = {"token": person.token(), "job": "wear-2", "digest": WAITING.digest().hex()}, files(person.home)
    for path in (*POSTS, "/sign-in"):
        assert person.client.post(path, data=form, headers=headers).status_code == 403
    assert files(person.home) == before
    assert "north-mill" in person.client.get("/").text


@pytest.mark.parametrize(
    "wrong", ["no session", "no token", "another session's token", "no form", "too large", "too many fields"]
)
def test_an_act_wants_the_session_and_its_token(person: Browser, wrong: str) -> None:
    good = {"token": person.token(), "job": "wear-2", "digest": WAITING.digest().hex()}
    sent: dict[str, dict[str, str]] = {
        "no session": {"data": good},
        "no token": {"data": good | {"token": ""}},
        "another session's token": {"data": good | {"token": "00" * 32}},
        "no form": {"json": good},
        "too many fields": {"data": good | {f"more{n}": "" for n in range(MAX_FIELDS)}},
        "too large": {"data": good | {"more": "x" * MAX_FORM_BYTES}},
    }
    before = files(person.home)
    if wrong == "no session":
        person.client.cookies.clear()
    for path in POSTS:
        assert person.client.post(path, **sent[wrong]).status_code == 403
    assert files(person.home) == before


def test_looking_changes_nothing(person: Browser) -> None:
    before = files(person.home)
    for path in POSTS:
        assert person.client.get(path, params={"token": person.token(), "job": "wear-2"}).status_code == 405
    for path in PAGES:
        assert person.client.get(path).status_code == 200
    assert files(person.home) == before  # the ledger, too: nobody was asked anything


def test_the_policy_allows_nothing_from_elsewhere(person: Browser) -> None:
    answer = person.client.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "form-action 'self'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert not re.search(r"(src|href)=\"(https?:)?//", answer.text)
    assert not re.search(r"<script(?![^>]*src=)| style=| on\w+=", answer.text)
