"""An agent behind a firm's HTTP proxy: CONNECT, and mutual TLS from end to end through it."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dure_client.agent import spool
from dure_client.link.channel import Route
from dure_client.link.client import LinkClient
from dure_client.link.errors import LinkTimeoutError
from dure_client.link.proxy import Proxy, proxy_for
from dure_protocols.frames import ArrayRef
from dure_protocols.ledger import RecordKind
from tests.end_to_end.link_site import NAME, Account, LinkSite, blob
from tests.end_to_end.wires import HOST, ConnectProxy, is_tls

USER, PASSWORD = "kim", "hunter2:p@ss/%41 ü"


@pytest.fixture
def proxy() -> Iterator[ConnectProxy]:
    """A proxy that wants a password, and whose DNS alone knows the server's name."""
    with ConnectProxy(names={NAME: HOST}, credentials=f"{USER}:{PASSWORD}") as made:
        yield made


def route_through(site: LinkSite, proxy: ConnectProxy, user: str = USER, password: str = PASSWORD) -> Route:
    return Route(f"{NAME}:{site.port}", NAME, Proxy(HOST, proxy.port, user, password))


def work(site: LinkSite, firm: str, client: LinkClient, folder: Path) -> None:
    """A message down with a blob, its answer up with another."""
    array = blob(100_000, seed=21)
    message = site.message(firm, "steel/1/0/cohort", arrays=[array])
    site.push(firm, message)
    assert next(client.messages()) == message
    client.download(message.arrays[0], folder / "down", patience_seconds=20)
    assert (folder / "down").read_bytes() == array.tobytes()
    path = folder / spool(array, folder)
    ref = ArrayRef.of("masked", array, path.name)
    reply = message.reply(b"the-firms-answer", (ref,), created_at=time.time())
    client.upload(path, ref, reply, patience_seconds=20)
    client.reply(reply, RecordKind.MASKED_UPDATE, patience_seconds=20)
    assert site.replies(message) == [reply]


def test_the_link_works_through_the_proxy_and_the_proxy_sees_tls_and_nothing_else(
    site: LinkSite, firm: str, proxy: ConnectProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        client = site.client(firm, route=route_through(site, proxy))
        work(site, firm, client, tmp_path)
        client.close()
    assert proxy.tunnels
    for tunnel in proxy.tunnels:
        assert tunnel.head.startswith(f"CONNECT {NAME}:{site.port} HTTP/1.1\r\n".encode())
        assert is_tls(bytes(tunnel.up))
        assert is_tls(bytes(tunnel.down))
        # Not even the firm's name: TLS 1.3 encrypts the client's certificate, too.
        for secret in (firm.encode(), b"the-firms-answer", blob(100_000, seed=21).tobytes()[:64]):
            assert secret not in tunnel.head + tunnel.up + tunnel.down
    shown = caplog.text + site.log() + repr(client) + repr(route_through(site, proxy))
    assert "hunter2" not in shown


def test_the_environments_proxy_is_used_with_the_password_in_its_url(
    site: LinkSite, firm: str, proxy: ConnectProxy, tmp_path: Path
) -> None:
    proxy.credentials = "kim:simple"
    environment = {"https_proxy": f"http://kim:simple@{HOST}:{proxy.port}", "no_proxy": "other.test"}
    found = proxy_for(NAME, AgentHomeSettings(), environment)
    work(site, firm, site.client(firm, route=Route(f"{NAME}:{site.port}", NAME, found)), tmp_path)
    assert len(proxy.tunnels) >= 1


class AgentHomeSettings:
    """agent.toml without a word about proxies."""

    proxy = None
    proxy_credentials_file = None


def test_grpc_takes_no_proxy_from_the_environment_behind_our_back(
    site: LinkSite, firm: str, proxy: ConnectProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, proxy.url)
    work(site, firm, site.client(firm), tmp_path)
    assert proxy.heads == []


@pytest.mark.parametrize(
    ("status", "says"),
    [(403, "does not allow a tunnel to the server"), (407, "refuses the user name and password"), (502, "could not")],
)
def test_a_proxy_that_refuses_is_told_with_what_to_do_and_is_not_asked_again_at_once(
    site: LinkSite, firm: str, proxy: ConnectProxy, status: int, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.refuses = status
    message = site.message(firm)
    client = site.client(firm, route=route_through(site, proxy))
    with pytest.raises(LinkTimeoutError, match=says) as caught:
        client.reply(message.reply(b"x", created_at=time.time()), RecordKind.JOIN, patience_seconds=2)
    assert f"({status})" in str(caught.value)
    assert len(proxy.heads) == 1  # wrong passwords, again and again, would lock the account
    assert "hunter2" not in str(caught.value) + caplog.text


def test_a_proxy_without_a_password_for_it_says_that_it_wants_one(
    site: LinkSite, firm: str, proxy: ConnectProxy
) -> None:
    client = site.client(firm, route=route_through(site, proxy, "", ""))
    with pytest.raises(LinkTimeoutError, match="wants a user name"):
        client.reply(site.message(firm).reply(b"x", created_at=time.time()), RecordKind.JOIN, patience_seconds=1)


def test_a_tunnel_that_is_cut_is_opened_anew_and_a_transfer_goes_on(
    site: LinkSite, firm: str, proxy: ConnectProxy, tmp_path: Path
) -> None:
    array = blob(3 << 20, seed=22)
    message = site.message(firm, arrays=[array])
    site.push(firm, message)
    account = Account()
    client = site.client(firm, account=account, route=route_through(site, proxy))
    proxy.cut_after([("down", 1_500_000)])
    client.download(message.arrays[0], tmp_path / "down", patience_seconds=30)
    assert (tmp_path / "down").read_bytes() == array.tobytes()
    assert len(proxy.tunnels) > 1
    assert [entry.offset_bytes > 0 for entry in account.entries] == [False, True]
