"""Which proxy the agent goes through, and where its credentials may and may not be seen."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import ValidationError

from dure_client.commands.join import named_proxy
from dure_client.home import AgentConfig
from dure_client.link.errors import reason
from dure_client.link.proxy import Proxy, ProxyError, proxy_for

SECRET = "hunter2:p@ss/%41"


@dataclass(frozen=True)
class Settings:
    proxy: str | None = None
    proxy_credentials_file: Path | None = None


NOTHING = Settings()
CONFIGURED = Settings(proxy="http://proxy.mill:3128")


@pytest.mark.parametrize(
    ("host", "settings", "environment", "expected"),
    [
        pytest.param("dure.org", NOTHING, {}, None, id="nobody names one"),
        pytest.param("dure.org", NOTHING, {"https_proxy": "http://p:1"}, "p:1", id="the environment"),
        pytest.param("dure.org", NOTHING, {"HTTPS_PROXY": "http://p:1"}, "p:1", id="the environment in capitals"),
        pytest.param("dure.org", NOTHING, {"https_proxy": "p:1"}, "p:1", id="without a scheme"),
        pytest.param("dure.org", NOTHING, {"http_proxy": "http://p:1"}, None, id="a proxy for plain HTTP is not meant"),
        pytest.param("dure.org", NOTHING, {"https_proxy": "http://[::1]:9"}, "[::1]:9", id="an IPv6 proxy"),
        pytest.param(
            "dure.org", CONFIGURED, {"https_proxy": "http://p:1"}, "proxy.mill:3128", id="agent.toml is first"
        ),
        pytest.param("dure.org", CONFIGURED, {"no_proxy": "dure.org"}, None, id="no_proxy names the host"),
        pytest.param("a.dure.org", CONFIGURED, {"no_proxy": ".dure.org"}, None, id="no_proxy names what is above it"),
        pytest.param("a.dure.org", CONFIGURED, {"NO_PROXY": "x, dure.org"}, None, id="without the dot, in capitals"),
        pytest.param("dure.org", CONFIGURED, {"no_proxy": "ure.org"}, "proxy.mill:3128", id="only a part of a label"),
        pytest.param("10.1.2.3", CONFIGURED, {"no_proxy": "10.0.0.0/8"}, None, id="no_proxy names a network"),
        pytest.param("10.1.2.3", CONFIGURED, {"no_proxy": "10.1.2.3"}, None, id="no_proxy names an address"),
        pytest.param("11.1.2.3", CONFIGURED, {"no_proxy": "10.0.0.0/8"}, "proxy.mill:3128", id="another network"),
        pytest.param("dure.org", CONFIGURED, {"no_proxy": "*"}, None, id="no_proxy names everything"),
        pytest.param("127.0.0.1", NOTHING, {"https_proxy": "http://p:1"}, None, id="this machine needs none"),
        pytest.param("127.0.0.1", CONFIGURED, {}, "proxy.mill:3128", id="but if agent.toml says so"),
    ],
)
def test_the_proxy_follows_from_agent_toml_and_environment(
    host: str, settings: Settings, environment: dict[str, str], expected: str | None
) -> None:
    found = proxy_for(host, settings, environment)
    assert (str(found) if found else None) == expected


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://p:1", "no TLS"),
        ("socks5://p:1", "no TLS"),
        ("http://p:port", "cannot be read"),
        ("http://", "http://HOST:PORT"),
        ("http://p:1/path", "nothing behind"),
    ],
)
def test_a_url_that_is_no_proxy_is_refused_without_being_repeated(url: str, says: str) -> None:
    with pytest.raises(ProxyError, match=says):
        proxy_for("dure.org", NOTHING, {"https_proxy": url})
    with pytest.raises(ProxyError) as caught:
        proxy_for("dure.org", NOTHING, {"https_proxy": f"ftp://kim:{SECRET}@p:1"})
    assert "hunter2" not in str(caught.value)


def private(folder: Path, text: str) -> Path:
    file = folder / "proxy-credentials"
    file.write_text(text)
    file.chmod(0o600)
    return file


def test_credentials_come_from_the_file_then_the_variable_then_the_environments_url(tmp_path: Path) -> None:
    in_url = {"https_proxy": "http://url:from%2Furl@p:1"}
    in_variable = in_url | {"DURE_PROXY_CREDENTIALS": "variable:from-variable"}
    file = Settings(proxy_credentials_file=private(tmp_path, f"file:{SECRET}\n"))
    cases = [(NOTHING, in_url, "from/url"), (NOTHING, in_variable, "from-variable"), (file, in_variable, SECRET)]
    for settings, environment, password in cases:
        found = proxy_for("dure.org", settings, environment)
        assert found is not None
        assert found.password == password


@pytest.mark.parametrize("text", ["", "no-colon", ":no-user", "two\nlines:x", "user:tab\there"])
def test_a_credentials_file_of_another_form_is_refused_without_being_repeated(tmp_path: Path, text: str) -> None:
    settings = Settings(CONFIGURED.proxy, private(tmp_path, text))
    with pytest.raises(ProxyError, match="user:password in one line"):
        proxy_for("dure.org", settings, {})


def test_a_credentials_file_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    file = private(tmp_path, "kim:x")
    file.chmod(0o640)
    with pytest.raises(ProxyError, match="chmod 600"):
        proxy_for("dure.org", Settings(CONFIGURED.proxy, file), {})
    with pytest.raises(ProxyError, match="cannot be read"):
        proxy_for("dure.org", Settings(CONFIGURED.proxy, tmp_path / "missing"), {})


def test_neither_repr_nor_text_nor_an_error_shows_credentials(caplog: pytest.LogCaptureFixture) -> None:
    proxy = Proxy("p", 1, "kim", SECRET)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").debug("%s %r %s", proxy, proxy, reason(OSError("x"), proxy, 0.0))
    shown = caplog.text + "".join(proxy.refusal(status) for status in (403, 407, 502))
    assert "hunter2" not in shown
    assert "kim" not in shown
    assert proxy.url == "http://p:1"
    assert proxy.url_with_credentials() == "http://kim:hunter2%3Ap%40ss%2F%2541@p:1"


def test_credentials_are_taken_neither_from_a_command_line_nor_from_agent_toml() -> None:
    with pytest.raises(ProxyError, match="seen by every user"):
        named_proxy("http://kim:x@p:1")
    assert named_proxy("p:1") == "http://p:1"
    values = {"consortium": "c", "firm": "f", "server_host": "h", "enrolment_port": 1, "link_port": 1}
    with pytest.raises(ValidationError, match="proxy_credentials_file"):
        AgentConfig.model_validate(values | {"root_fingerprint": "0" * 64, "proxy": "http://kim:x@p:1"})


@pytest.mark.parametrize(("status", "says"), [(407, "--credentials FILE"), (403, "allow CONNECT"), (503, "dure-agent")])
def test_what_a_proxy_refuses_is_told_with_what_to_do(status: int, says: str) -> None:
    assert says in Proxy("p", 1).refusal(status)
    assert str(status) in Proxy("p", 1).refusal(status)
    assert os.linesep not in Proxy("p", 1).refusal(status)
