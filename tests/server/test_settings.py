"""server.toml: what is written is read, and what is wrong is named, but never a password."""

from pathlib import Path

import pytest

from dure_server.settings import STORE_VARIABLE, ServerHome, ServerSettings, SettingsError

GOOD: dict[str, object] = {"consortium": '경남 "Millers" \\ co', "public_host": "dure.example.org"}
PASSWORD_URL = "postgresql://dure:hunter2@db/dure"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    home = ServerHome(tmp_path)
    settings = ServerSettings.checked({**GOOD, "link_port": 1234, "store_url": PASSWORD_URL})
    home.settings_file.write_text(settings.to_toml())
    assert home.settings() == settings
    assert home.store_url(home.settings()) == PASSWORD_URL


def test_the_store_is_a_file_in_the_home_unless_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = ServerHome(tmp_path)
    home.settings_file.write_text(ServerSettings.checked(GOOD).to_toml())
    assert home.store_url(home.settings()) == f"sqlite:///{tmp_path}/store.sqlite"
    monkeypatch.setenv(STORE_VARIABLE, PASSWORD_URL)
    assert home.store_url(home.settings()) == PASSWORD_URL


def test_repr_hides_the_stores_password() -> None:
    assert "hunter2" not in repr(ServerSettings.checked({**GOOD, "store_url": PASSWORD_URL}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"consortium": ""}, "consortium"),
        ({"public_host": "https://dure.example.org"}, "without a scheme or a port"),
        ({"public_host": "dure.example.org:7444"}, "without a scheme or a port"),
        ({"public_host": ""}, "public_host"),
        ({"link_port": 0}, "link_port"),
        ({"console_port": 70_000}, "console_port"),
        ({"link_port": 7480}, "three different ports"),
        ({"linkport": 7480}, "linkport"),
        ({"link_port": "hunter2"}, "link_port"),
    ],
)
def test_a_wrong_setting_is_named(change: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        ServerSettings.checked({**GOOD, **change})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "dure.example.org", "192.0.2.7", "2001:db8::7"])
def test_hosts_and_addresses_become_urls(host: str) -> None:
    url = ServerSettings.checked({**GOOD, "public_host": host}).enrolment_url
    assert url == (f"https://[{host}]:7444" if ":" in host else f"https://{host}:7444")


def test_a_folder_without_settings_says_to_run_init(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="dure-server init"):
        ServerHome(tmp_path).settings()


def test_damaged_toml_says_where(tmp_path: Path) -> None:
    ServerHome(tmp_path).settings_file.write_text("consortium = \n")
    with pytest.raises(SettingsError, match="not valid TOML"):
        ServerHome(tmp_path).settings()
