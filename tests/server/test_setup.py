"""The server's certificate follows its name, and keeps the names it had."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from dure_protocols.certificates import server_names
from dure_server.settings import ServerHome, ServerSettings
from dure_server.setup import make_home, renew_server_certificate_if_due

NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
ALWAYS = ["localhost", "127.0.0.1", "::1"]


def settings(host: str) -> ServerSettings:
    return ServerSettings.checked({"consortium": "Mills", "public_host": host})


def names(home: ServerHome) -> set[str]:
    return set(server_names(home.server_certificate_file.read_bytes()))


def test_a_server_that_gets_another_host_gets_a_certificate_with_the_old_name_and_the_new(tmp_path: Path) -> None:
    home = ServerHome(tmp_path / "home")
    make_home(home, settings("old.example.org"), "test", NOW)
    assert not renew_server_certificate_if_due(home, settings("old.example.org"), NOW)
    assert renew_server_certificate_if_due(home, settings("new.example.org"), NOW)
    assert names(home) == {"old.example.org", "new.example.org", *ALWAYS}
    assert not renew_server_certificate_if_due(home, settings("new.example.org"), NOW)


def test_an_address_written_in_another_way_is_no_other_address(tmp_path: Path) -> None:
    home = ServerHome(tmp_path / "home")
    make_home(home, settings("2001:DB8:0:0::7"), "test", NOW)
    assert not renew_server_certificate_if_due(home, settings("2001:DB8:0:0::7"), NOW)


def test_a_certificate_that_is_due_is_renewed_on_all_its_names(tmp_path: Path) -> None:
    home = ServerHome(tmp_path / "home")
    make_home(home, settings("old.example.org"), "test", NOW)
    renew_server_certificate_if_due(home, settings("new.example.org"), NOW)
    assert renew_server_certificate_if_due(home, settings("new.example.org"), NOW + timedelta(days=300))
    assert {"old.example.org", "new.example.org"} <= names(home)
