"""The agent's home: keys that nobody else reads and nothing overwrites."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dure_client.home import AgentConfig, AgentHome, HomeError, keep_or_make_private, read_private, write_file

CONFIG = AgentConfig(
    consortium='경남 "Millers" \\ co',
    firm="firm-a",
    server_host="2001:db8::7",
    enrolment_port=7444,
    link_port=7443,
    root_fingerprint="ab" * 32,
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    home = AgentHome(tmp_path / "home")
    home.create()
    home.write_config(CONFIG)
    assert home.config() == CONFIG
    assert (CONFIG.link_address, CONFIG.enrolment_url) == ("[2001:db8::7]:7443", "https://[2001:db8::7]:7444")


def test_folders_and_keys_are_private(tmp_path: Path) -> None:
    home = AgentHome(tmp_path / "home")
    home.create()
    keep_or_make_private(home.tls_key_file, b"key")
    modes = {path: path.stat().st_mode & 0o777 for path in (home.path, home.keys, home.state, home.tls_key_file)}
    assert list(modes.values()) == [0o700, 0o700, 0o700, 0o600]


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert keep_or_make_private(path, b"first") == b"first"
    assert keep_or_make_private(path, b"second") == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["key"]


def test_two_runs_at_once_agree_on_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda n: keep_or_make_private(tmp_path / "key", bytes([n]) * 32), range(32)))
    assert set(kept) == {(tmp_path / "key").read_bytes()}
    assert [each.name for each in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_key_that_others_may_read_is_not_used(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    keep_or_make_private(path, b"key")
    path.chmod(mode)
    with pytest.raises(HomeError, match="chmod 600"):
        read_private(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("firm = ", "is damaged"),
        ("", "is damaged \\(consortium: Field required"),
        (CONFIG.to_toml().replace("firm-a", "Firm A"), "is damaged"),
        (CONFIG.to_toml().replace("7443", "0"), "link_port"),
        (CONFIG.to_toml() + "more = 1\n", "more: no such field; there are: .*metrics_port"),
        (CONFIG.to_toml() + "metric_port = 1\n", "metric_port: no such field; did you mean metrics_port"),
    ],
)
def test_a_damaged_agent_toml_says_where(tmp_path: Path, text: str, says: str) -> None:
    home = AgentHome(tmp_path)
    home.config_file.write_text(text)
    with pytest.raises(HomeError, match=says):
        home.config()


def test_a_home_without_a_firm_says_to_join(tmp_path: Path) -> None:
    home = AgentHome(tmp_path)
    assert not home.has_joined
    with pytest.raises(HomeError, match="dure-agent join"):
        home.config()
    for read in (home.identity, home.tls_key, home.certificate):
        with pytest.raises(HomeError):
            read()
    assert home.job_names() == []


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"one")
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


OVERRIDES = {
    "consortium": "Other mills",
    "firm": "firm-b",
    "server_host": "dure.example.org",
    "enrolment_port": 8444,
    "link_port": 8443,
    "root_fingerprint": "cd" * 32,
    "metrics_port": 9100,
    "server_name": "dure.example.org",
    "proxy": "http://proxy.example.org:3128",
    "proxy_credentials_file": Path("/etc/dure/proxy"),
}


@pytest.mark.parametrize("name", [name for name in AgentConfig.model_fields if not name.startswith("pkcs11_")])
def test_each_setting_can_be_given_by_the_environment_and_is_not_written_back(tmp_path: Path, name: str) -> None:
    home = AgentHome(tmp_path)
    home.create()
    home.write_config(CONFIG)
    environment = {f"DURE_AGENT_{name.upper()}": str(OVERRIDES[name])}
    assert home.config(environment) == CONFIG.model_copy(update={name: OVERRIDES[name]})
    assert home.written_config() == CONFIG


def test_the_settings_of_a_token_can_be_given_by_the_environment(tmp_path: Path) -> None:
    home = AgentHome(tmp_path)
    home.create()
    home.write_config(CONFIG)
    token = {"pkcs11_module": "/m.so", "pkcs11_token": "dure", "pkcs11_key": "mill", "pkcs11_pin_file": "/etc/dure/pin"}
    found = home.config({f"DURE_AGENT_{name.upper()}": value for name, value in token.items()})
    assert {name: str(getattr(found, name)) for name in token} == token


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("LINK_PORT", "seven", "link_port"),
        ("PROXY", "http://user:hidden-word@proxy:3128", "proxy_credentials_file"),
        ("ROOT_FINGERPRINT", "12", "root_fingerprint"),
    ],
)
def test_a_wrong_variable_is_named_and_its_value_is_not(tmp_path: Path, name: str, value: str, says: str) -> None:
    home = AgentHome(tmp_path)
    home.create()
    home.write_config(CONFIG)
    with pytest.raises(HomeError, match=says) as refused:
        home.config({f"DURE_AGENT_{name}": value})
    assert value not in str(refused.value)


def test_an_empty_variable_is_none(tmp_path: Path) -> None:
    home = AgentHome(tmp_path)
    home.create()
    home.write_config(CONFIG)
    assert home.config({"DURE_AGENT_PROXY": ""}) == CONFIG
