"""The consortium's registry of model packages."""

import importlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dure_models import registry as installed
from dure_models.packages import WheelError
from dure_protocols.model_package import ModelPackageError
from dure_server.cli import app
from dure_server.models import ModelRegistry, RegistryError
from dure_server.settings import ServerHome, ServerSettings
from dure_server.setup import make_home
from dure_server.store import Store
from tests.model_packages.made import STRANGER, pump


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    return ModelRegistry(tmp_path / "models")


def test_a_package_is_published_and_listed_by_command_and_the_audit_says_who_did_it(tmp_path: Path) -> None:
    home = ServerHome(tmp_path / "server")
    settings = ServerSettings(consortium="Millers", public_host="127.0.0.1")
    make_home(home, settings, "test", datetime.now(UTC))
    file = tmp_path / "pump.dure-model"
    file.write_bytes(pump().to_bytes())
    terminal = {"COLUMNS": "200", "NO_COLOR": "1"}
    for arguments in (["publish", str(file)], ["list"]):
        done = CliRunner().invoke(app, ["model", *arguments, "--home", str(home.path)], env=terminal)
        assert done.exit_code == 0, done.output
        assert pump().digest in done.stdout
    store = Store.open(home.store_url(settings))
    with store.reading() as at:
        event = at.audit.all()[-1]
    store.close()
    assert (event.action, event.subject) == ("model.publish", "pump")


def test_publishing_twice_changes_nothing_and_a_version_means_one_package_for_good(registry: ModelRegistry) -> None:
    registry.publish(pump().to_bytes())
    registry.publish(pump().to_bytes())
    assert [each.digest for each in registry.packages()] == [pump().digest]
    for other in (pump(title="Other pumps"), pump(author=STRANGER)):
        with pytest.raises(RegistryError, match="ask its author for a new version"):
            registry.publish(other.to_bytes())


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(b"no package", ModelPackageError, id="no package"),
        pytest.param(pump({"evil.pth": b""}).to_bytes(), WheelError, id="a wheel that no firm would take"),
        pytest.param(pump(name="rul").to_bytes(), WheelError, id="a built-in model's name"),
    ],
)
def test_what_no_firm_could_use_is_not_published(registry: ModelRegistry, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        registry.publish(data)
    assert list(registry.packages()) == []


def test_a_published_model_is_importable_while_a_job_is_made_of_it_and_not_afterwards(registry: ModelRegistry) -> None:
    registry.publish(pump().to_bytes())
    with registry.offering("pump", None):
        assert "pump" in installed.names()
        assert importlib.import_module("pump_model").Pump
    assert "pump" not in installed.names()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pump_model")


def test_a_draft_says_which_of_several_packages_it_means(registry: ModelRegistry) -> None:
    first, second = pump(), pump(version="1.1")
    for package in (first, second):
        registry.publish(package.to_bytes())
    with pytest.raises(RegistryError, match=second.digest), registry.offering("pump", None):
        pass
    with registry.offering("pump", second.digest):
        assert "pump" in installed.names()
    with pytest.raises(RegistryError, match="model list"), registry.offering("pump", "0" * 64):
        pass
