"""A firm's page, and who opens it."""

import shutil
from pathlib import Path

import pytest

from dure_client.home import AgentHome
from tests.client.page_firm import Browser, browser, make_home


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("made") / "home").path


@pytest.fixture
def home(made: Path, tmp_path: Path) -> AgentHome:
    shutil.copytree(made, tmp_path / "home")
    return AgentHome(tmp_path / "home")


@pytest.fixture
def stranger(home: AgentHome) -> Browser:
    return browser(home)


@pytest.fixture
def person(stranger: Browser) -> Browser:
    stranger.sign_in()
    return stranger
