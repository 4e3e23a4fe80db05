"""Which package is installed where several are here, and what becomes of the files of one that is installed again."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dure_client.cli import app
from dure_client.home import AgentHome
from dure_client.packages.shelf import INSTALLED, PACKAGE_FILE, PackageShelf
from dure_client.policy import Policy
from tests.model_packages.made import INFORMATION, STRANGER, pump

NOW = datetime(2026, 3, 2, 8, tzinfo=UTC)
METADATA = b"Metadata-Version: 2.1\nName: pump-model\nVersion: 1.0\nSummary: other words\n"


@pytest.fixture
def home(tmp_path: Path) -> AgentHome:
    made = AgentHome(tmp_path / "home")
    made.create()
    return made


@pytest.fixture
def shelf(home: AgentHome) -> PackageShelf:
    return PackageShelf(home.models)


def run(home: AgentHome, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--home", str(home.path)])


def test_the_allow_list_takes_one_of_several_packages_by_its_digest_only(home: AgentHome, shelf: PackageShelf) -> None:
    read, strange = pump(), pump({f"{INFORMATION}/METADATA": METADATA}, author=STRANGER)
    assert read.manifest.model_digest == strange.manifest.model_digest
    for each in (read, strange):
        shelf.keep(each.to_bytes(), each.digest)
    code = read.manifest.model_digest
    for words in ((), ("--digest", code)):
        refused = run(home, "policy", "allow", "pump", *words)
        assert refused.exit_code == 1
        for each in (read, strange):
            assert f"--package {each.digest}" in refused.stderr
    for words in (("--package", "00" * 32), ("--package", read.digest, "--digest", "00" * 32)):
        assert run(home, "policy", "allow", "pump", *words).exit_code == 1
    assert run(home, "policy", "allow", "logit", "--package", read.digest).exit_code == 1
    assert run(home, "policy", "allow", "tabular", "--package", read.digest).exit_code == 1
    assert not any(each.approved_at for each in shelf.all())
    assert run(home, "policy", "allow", "pump", "--package", read.digest).exit_code == 0
    assert [each.digest for each in shelf.all() if each.approved_at] == [read.digest]
    (allowed,) = (each for each in Policy.read(home.policy_file).allowed_models if each.name == "pump")
    assert allowed.digest == code


def test_a_package_that_cannot_be_unpacked_leaves_the_installed_one_in_place(shelf: PackageShelf) -> None:
    packed = pump()
    shelf.keep(packed.to_bytes(), packed.digest)
    shelf.install(packed.digest, NOW)
    in_the_way = shelf.folder_of(packed.digest) / f"{INSTALLED}.new"
    in_the_way.write_bytes(b"")
    with pytest.raises(FileExistsError):
        shelf.install(packed.digest, NOW)
    assert shelf.verified(packed.digest)
    in_the_way.unlink()
    shelf.install(packed.digest, NOW)
    assert shelf.verified(packed.digest)
    assert {file.name for file in shelf.folder_of(packed.digest).iterdir()} == {
        *(PACKAGE_FILE, INSTALLED, "approved-at"),
    }
