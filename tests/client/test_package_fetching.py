"""Getting packages from the consortium's registry: over real TLS, by approved firms alone, on record in the ledger."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from dure_client.cli import app
from dure_client.enrolment.api import ServerRefusedError
from dure_client.enrolment.join import join
from dure_client.home import AgentHome, write_file
from dure_client.ledger import Ledger, read_records
from dure_client.packages.fetch import fetch, fetch_now, run_errand, wish_file
from dure_client.packages.shelf import INSTALLED, PackageChangedError, PackageError, PackageShelf
from dure_client.policy import allow_model, read_text
from dure_models.packages import WheelError
from dure_protocols.ledger import RecordKind
from dure_protocols.model_package import FILE_SUFFIX
from dure_server.console.process import enrolment_server
from dure_server.enrolment.app import enrolment_app
from dure_server.enrolment.operator import Operator
from dure_server.enrolment.service import EnrolmentService
from dure_server.models import ModelRegistry
from dure_server.settings import ServerHome, ServerSettings
from dure_server.setup import make_home
from dure_server.store import Store
from tests.client.enrolment_site import Recorder, Site, free_port, running
from tests.model_packages.made import pump


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with a registry."""
    home = ServerHome(tmp_path_factory.mktemp("server") / "home")
    values = {"consortium": "Millers", "public_host": "127.0.0.1", "bind_host": "127.0.0.1"}
    settings = ServerSettings.checked({**values, "enrolment_port": free_port()})
    authority = make_home(home, settings, "test", datetime.now(UTC))
    store = Store.open(home.store_url(settings))
    service = EnrolmentService(store, authority, settings.link_port, ModelRegistry(home.models))
    with running(enrolment_server(home, settings, enrolment_app(service))):
        yield Site(home, settings, authority, store, Operator(store, settings.enrolment_url, "test"))
    store.close()


@pytest.fixture
def published(site: Site) -> Iterator[ModelRegistry]:
    """An empty registry, and again at the end."""
    yield ModelRegistry(site.home.models)
    for file in site.home.models.iterdir():
        file.unlink()


@pytest.fixture
def home(site: Site, tmp_path: Path, request: pytest.FixtureRequest) -> AgentHome:
    """A firm that has joined and is not approved yet."""
    name = "firm-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    invitation = site.operator.invite(name)
    home = AgentHome(tmp_path / "agent")
    join(home, invitation, invitation.root_fingerprint)
    return home


@pytest.fixture
def member(site: Site, home: AgentHome) -> AgentHome:
    """The same, approved by the operator."""
    site.operator.approve(home.config().firm, home.identity().fingerprint)
    return home


def here(home: AgentHome) -> list[str]:
    return [each.digest for each in PackageShelf(home.models).all()]


@contextmanager
def an_agent(home: AgentHome) -> Iterator[None]:
    """What of a running agent matters here: it holds the ledger, and looks for errands."""
    stop = threading.Event()
    with Ledger(home.ledger_file, home.identity()) as ledger:

        def look() -> None:
            while not stop.wait(0.02):
                run_errand(home, ledger, {})

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def test_a_firm_fetches_what_is_published_and_each_request_is_in_its_ledger(
    published: ModelRegistry, member: AgentHome
) -> None:
    package = published.publish(pump().to_bytes())
    before = len(list(read_records(member.ledger_file)))
    done = CliRunner().invoke(app, ["model", "fetch", "pump", "--home", str(member.path)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert package.digest in done.stdout
    assert here(member) == [package.digest]
    kinds = [record.entry.kind for record in list(read_records(member.ledger_file))[before:]]
    assert kinds == [RecordKind.ENROLMENT] * 2


def test_what_is_here_already_is_not_asked_for_again(published: ModelRegistry, member: AgentHome) -> None:
    package = published.publish(pump().to_bytes())
    recorder = Recorder()
    assert fetch(member, "", recorder, {}) == [package.digest]
    assert fetch(member, package.digest, recorder, {}) == [package.digest]
    assert len(recorder.entries) == 3


def test_while_an_agent_runs_it_fetches_for_the_command(published: ModelRegistry, member: AgentHome) -> None:
    package = published.publish(pump().to_bytes())
    with an_agent(member):
        assert fetch_now(member, "pump") == [package.digest]
        with pytest.raises(PackageError, match=r"'valve'.*pump"):
            fetch_now(member, "valve")
    assert here(member) == [package.digest]
    assert not wish_file(member).exists()


def test_a_command_does_not_wait_for_ever_for_an_agent_that_does_not_answer(member: AgentHome) -> None:
    with Ledger(member.ledger_file, member.identity()), pytest.raises(PackageError, match=r"agent\.log"):
        fetch_now(member, "", patience_seconds=0.2)


def test_a_wish_that_cannot_be_read_is_laid_aside(member: AgentHome) -> None:
    wish_file(member).write_bytes(b"{")
    run_errand(member, Recorder(), {})
    assert not wish_file(member).exists()


def test_a_firm_that_is_not_approved_or_was_shut_out_gets_nothing(
    site: Site, published: ModelRegistry, home: AgentHome
) -> None:
    published.publish(pump().to_bytes())
    with pytest.raises(ServerRefusedError, match="approved"):
        fetch(home, "", Recorder(), {})
    site.operator.approve(home.config().firm, home.identity().fingerprint)
    assert len(fetch(home, "", Recorder(), {})) == 1
    site.operator.revoke(home.config().firm)
    with pytest.raises(ServerRefusedError, match="revoked"):
        fetch(home, "", Recorder(), {})


def test_a_stranger_gets_nothing(site: Site, published: ModelRegistry) -> None:
    package = published.publish(pump().to_bytes())
    asked = f"{site.settings.enrolment_url}/api/v1/enrolment/certificates/{'0' * 64}/models/{package.digest}"
    answer = httpx.get(asked, verify=False)
    assert answer.status_code == 404
    assert b"pump" not in answer.content


def test_a_package_that_the_server_changed_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, published: ModelRegistry, member: AgentHome
) -> None:
    published.publish(pump().to_bytes())
    monkeypatch.setattr(ModelRegistry, "read", lambda *_: pump(title="Other pumps").to_bytes())
    with pytest.raises(PackageChangedError, match="was asked for"):
        fetch(member, "", Recorder(), {})
    assert here(member) == []


def test_native_code_comes_in_by_leave_of_the_policy_only(published: ModelRegistry, member: AgentHome) -> None:
    package = published.publish(pump({"pump_model/fast.so": b"\x7fELF"}).to_bytes())
    with pytest.raises(WheelError, match="allow_native_code"):
        fetch(member, "", Recorder(), {})
    text = read_text(member.policy_file).replace("allow_native_code = false", "allow_native_code = true")
    write_file(member.policy_file, text.encode())
    assert fetch(member, "", Recorder(), {}) == [package.digest]


def test_fetching_installs_nothing_though_its_code_is_on_the_allow_list(
    published: ModelRegistry, member: AgentHome
) -> None:
    package = published.publish(pump().to_bytes())
    text = allow_model(read_text(member.policy_file), "pump", package.manifest.model_digest)
    write_file(member.policy_file, text.encode())
    done = CliRunner().invoke(app, ["model", "fetch", "--home", str(member.path)], env={"COLUMNS": "200"})
    assert f"dure-agent model show {package.digest} --source" in done.stdout, done.output
    assert not (PackageShelf(member.models).folder_of(package.digest) / INSTALLED).exists()
    with pytest.raises(PackageError, match="nobody approved it"):
        PackageShelf(member.models).verified(package.digest)


def test_a_published_file_that_was_damaged_is_not_offered(
    site: Site, published: ModelRegistry, member: AgentHome
) -> None:
    package = published.publish(pump().to_bytes())
    file = site.home.models / f"{package.digest}{FILE_SUFFIX}"
    file.write_bytes(file.read_bytes()[:-1])
    assert fetch(member, "", Recorder(), {}) == []
