"""Log lines: their form, what they are about, and what never gets into them."""

import json
import logging
import re
import sys
import threading
from collections.abc import Iterator

import pytest

from dure_protocols import logs
from dure_protocols.identity import Identity
from dure_protocols.logs import about, formatter, from_now_on, redacted

PEM = Identity.from_seed(b"7" * 32).to_pem().decode()
URL = "postgresql+psycopg://dure:hunter2@db.example.org/dure"
TOKEN = "dure1_" + "AbC-_123" * 20 + "."
SECRETS = (PEM, URL, TOKEN)


@pytest.fixture(autouse=True)
def nothing_was_said_before() -> Iterator[None]:
    """Other tests of this process may have said what their lines are about, from then on."""
    token = logs._PLACE.set({})
    yield
    logs._PLACE.reset(token)


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("dure_server.link", logging.WARNING, __file__, 1, message, args, info)


def raised(text: str) -> Exception:
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        raise ValueError(text)
    return caught.value


def as_json(line: logging.LogRecord, **place: str) -> dict[str, object]:
    text = formatter("link", as_json=True, **place).format(line)  # type: ignore[arg-type]
    assert "\n" not in text
    fields = json.loads(text)
    assert isinstance(fields, dict)
    return fields


def test_a_json_line_says_when_how_loud_who_and_what() -> None:
    fields = as_json(record("%s is here", "firm-a"))
    assert fields.pop("at").endswith("Z")  # type: ignore[attr-defined]
    assert fields == {
        "level": "warning",
        "process": "link",
        "logger": "dure_server.link",
        "message": "firm-a is here",
    }


def test_both_forms_say_what_a_line_is_about_and_leave_out_what_is_not_known() -> None:
    with about(job="wear", round=0, attempt=None, phase="join"):
        assert as_json(record("…"), firm="firm-a").items() >= {
            "job": "wear", "round": 0, "phase": "join", "firm": "firm-a"
        }.items()  # fmt: skip
        assert "attempt" not in as_json(record("…"))
        line = formatter("agent", as_json=False, firm="firm-a").format(record("what happened"))
    assert line.endswith("WARNING dure_server.link: what happened [job=wear round=0 phase=join firm=firm-a]")


def test_the_context_ends_with_its_block_and_is_each_threads_own() -> None:
    seen: list[dict[str, object]] = []

    def other() -> None:
        from_now_on(job="theirs")
        seen.append(as_json(record("…")))

    with about(job="ours"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        seen.append(as_json(record("…")))
    seen.append(as_json(record("…")))
    assert [fields.get("job") for fields in seen] == ["theirs", "ours", None]


def test_an_error_is_told_whole_in_one_json_line_and_below_a_text_line() -> None:
    line = record("it failed", error=raised("on\ntwo lines"))
    assert str(as_json(line)["error"]).endswith("ValueError: on\ntwo lines")
    assert formatter("link", as_json=False).format(line).endswith("ValueError: on\ntwo lines")


@pytest.mark.parametrize("is_json", [True, False], ids=["json", "text"])
@pytest.mark.parametrize("secret", SECRETS, ids=["private key", "password in a URL", "invitation"])
def test_a_planted_secret_is_in_no_line(secret: str, is_json: bool) -> None:
    form = formatter("link", as_json=is_json)
    lines = [
        form.format(record(f"quoted {secret} here")),
        form.format(record("quoted %s here", secret)),
        form.format(record("it failed", error=raised(f"cannot use {secret}"))),
    ]
    hidden = {PEM: PEM.splitlines()[1], URL: "hunter2", TOKEN: TOKEN[6:40]}[secret]
    assert all(hidden not in line for line in lines)
    assert all("here" in line for line in lines[:2])


def test_a_key_that_is_cut_off_is_blacked_out_to_the_end() -> None:
    assert redacted("so: " + PEM[:60]) == "so: [key]"


def test_what_is_no_secret_stays() -> None:
    plain = "link https://dure.example.org:7444/x, user@example.org, sqlite:////var/lib/dure/store.sqlite, 12:30:45"
    assert redacted(plain) == plain


def test_loggings_own_errors_do_not_come_from_the_formatter(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter("link", as_json=True))
    handler.handle(record("bytes %r and %s", b"\xff\x00", object()))
    assert json.loads(capsys.readouterr().err)["message"].startswith("bytes b'\\xff\\x00'")
