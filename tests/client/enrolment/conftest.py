"""A server to join, an invitation to it, and an empty home."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dure_client.home import AgentHome
from dure_protocols.certificates import (
    Authority,
    key_to_pem,
    new_serial,
    new_tls_key,
)
from dure_protocols.invitation import Invitation
from dure_server.console.process import enrolment_server
from dure_server.enrolment.app import enrolment_app
from dure_server.enrolment.operator import Operator
from dure_server.enrolment.service import EnrolmentService
from dure_server.settings import ServerHome, ServerSettings
from dure_server.setup import make_home
from dure_server.store import Store
from tests.client.enrolment_site import (
    Impostor,
    ImpostorOf,
    Site,
    free_port,
    running,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = ServerHome(tmp_path_factory.mktemp("server") / "home")
    values = {"consortium": "Millers", "public_host": "127.0.0.1", "bind_host": "127.0.0.1"}
    settings = ServerSettings.checked({**values, "enrolment_port": free_port()})
    authority = make_home(home, settings, "test", datetime.now(UTC))
    store = Store.open(home.store_url(settings))
    app = enrolment_app(EnrolmentService(store, authority, settings.link_port))
    with running(enrolment_server(home, settings, app)):
        yield Site(home, settings, authority, store, Operator(store, settings.enrolment_url, "test"))
    store.close()


@pytest.fixture
def invitation(site: Site, request: pytest.FixtureRequest) -> Invitation:
    """An invitation for a firm that only this test knows."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    return site.operator.invite(f"firm-{name}")


@pytest.fixture
def home(tmp_path: Path) -> AgentHome:
    return AgentHome(tmp_path / "agent")


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[ImpostorOf]:
    opened: list[Impostor] = []

    def make(authority: Authority, answers: list[bytes]) -> Impostor:
        key = new_tls_key()
        pem = authority.issue_server(key.public_key(), ["127.0.0.1"], datetime.now(UTC), serial=new_serial())
        opened.append(Impostor(key_to_pem(key), pem, tmp_path / f"impostor{len(opened)}", answers))
        return opened[-1]

    yield make
    for each in opened:
        each.close()
