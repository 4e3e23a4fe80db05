"""`dure-agent server` and `dure-agent proxy`: what they write, and what they refuse."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dure_client.cli import app
from dure_client.home import AgentConfig, AgentHome

CONFIG = AgentConfig(
    consortium="Mills",
    firm="mill",
    server_host="dure.example.org",
    enrolment_port=7444,
    link_port=7443,
    root_fingerprint="ab" * 32,
)


@pytest.fixture
def home(tmp_path: Path) -> AgentHome:
    made = AgentHome(tmp_path / "agent")
    made.create()
    made.write_config(CONFIG)
    return made


def run(home: AgentHome, *arguments: str, fails: bool = False) -> str:
    result = CliRunner().invoke(app, [*arguments, "--home", str(home.path)], env={"https_proxy": "", "HTTPS_PROXY": ""})
    assert (result.exit_code != 0) == fails, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("new.example.org", "new.example.org:7443"),
        ("new.example.org:443", "new.example.org:443"),
        ("192.0.2.7:443", "192.0.2.7:443"),
        ("2001:db8::7", "[2001:db8::7]:7443"),
        ("[2001:db8::7]", "[2001:db8::7]:7443"),
        ("[2001:db8::7]:443", "[2001:db8::7]:443"),
    ],
)
def test_the_address_moves_and_the_name_that_the_certificate_must_have_stays(
    home: AgentHome, address: str, expected: str
) -> None:
    output = run(home, "server", "set", address)
    assert f"Server: {expected}; its certificate must be the consortium's and name dure.example.org" in output
    config = home.config()
    assert (config.link_address, config.server_name) == (expected, "dure.example.org")
    assert config.enrolment_port == 7444
    run(home, "server", "set", "third.example.org")
    assert home.config().server_name == "dure.example.org"
    assert "third.example.org" in run(home, "server", "show")


def test_another_name_and_another_port_of_enrolment_are_taken_when_they_are_given(home: AgentHome) -> None:
    run(home, "server", "set", "new.example.org", "--name", "new.example.org", "--enrolment-port", "444")
    config = home.config()
    assert (config.server_name, config.enrolment_url) == ("new.example.org", "https://new.example.org:444")


@pytest.mark.parametrize("address", ["", "new.example.org:0", "new.example.org:99999", "https://new.example.org", ":7"])
def test_what_is_no_address_is_refused_and_nothing_changes(home: AgentHome, address: str) -> None:
    assert "is no address of a server" in run(home, "server", "set", address, fails=True)
    assert home.config() == CONFIG


def test_a_proxy_is_set_and_cleared_and_its_credentials_stay_in_their_file(home: AgentHome, tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("kim:hunter2")
    file.chmod(0o600)
    output = run(home, "proxy", "set", "proxy.mill:3128", "--credentials", str(file))
    assert "through the proxy proxy.mill:3128" in output
    assert home.config().proxy == "http://proxy.mill:3128"
    assert "hunter2" not in output + home.config_file.read_text()
    route = home.config().route({})
    assert route.proxy is not None
    assert route.proxy.password == "hunter2"
    run(home, "proxy", "clear")
    assert home.config() == CONFIG


@pytest.mark.parametrize("url", ["http://kim:hunter2@proxy.mill:3128", "socks5://proxy.mill:1"])
def test_a_proxy_that_cannot_be_used_is_refused_and_nothing_changes(home: AgentHome, url: str) -> None:
    output = run(home, "proxy", "set", url, fails=True)
    assert "hunter2" not in output
    assert home.config() == CONFIG


def test_a_credentials_file_that_others_may_read_is_refused_before_anything_changes(
    home: AgentHome, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    file.write_text("kim:hunter2")
    file.chmod(0o644)
    assert "chmod 600" in run(home, "proxy", "set", "http://p:1", "--credentials", str(file), fails=True)
    assert home.config() == CONFIG
