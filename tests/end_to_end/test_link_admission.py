"""Who may speak to a real link process, and how it starts and stops."""

import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from dure_client.link.client import LinkClient, LinkTimeoutError, NotAdmittedError
from dure_protocols.certificates import (
    Authority,
    key_to_pem,
    new_serial,
    new_tls_key,
    read_certificate,
    signing_request,
)
from dure_protocols.frames import MAX_ENVELOPE_BYTES, Subscribe
from dure_protocols.ledger import RecordKind
from tests.end_to_end.link_site import Account, LinkSite, eventually, in_background

OVER_LIMIT = MAX_ENVELOPE_BYTES + 5000


def revoke(site: LinkSite, firm: str) -> None:
    with site.store.transaction() as tx:
        tx.firms.revoke(firm)
        tx.certificates.revoke_all(firm)


def reply_once(client: LinkClient, site: LinkSite, firm: str) -> None:
    message = site.message(firm)
    client.reply(message.reply(b"x", created_at=time.time()), RecordKind.JOIN, patience_seconds=1)


def other_authority() -> Authority:
    return Authority.create("test", datetime.now(UTC), key=new_tls_key(), serial=new_serial())


def test_a_stranger_with_another_roots_certificate_is_not_connected(site: LinkSite) -> None:
    keys = site.admit(f"stranger-{time.time_ns()}", authority=other_authority())
    with pytest.raises(LinkTimeoutError):
        reply_once(site.client("stranger", keys), site, "stranger")


def test_a_caller_without_a_certificate_is_not_connected(site: LinkSite) -> None:
    credentials = grpc.ssl_channel_credentials(site.authority.certificate_pem)
    with grpc.secure_channel(f"127.0.0.1:{site.port}", credentials) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/dure.link.Firm/Reply")(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_an_agent_does_not_speak_to_a_server_of_another_root(site: LinkSite, firm: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    shutil.copytree(site.folder / firm / "keys", keys)
    (keys / "root.pem").write_bytes(other_authority().certificate_pem)
    with pytest.raises(LinkTimeoutError):
        reply_once(site.client(firm, keys), site, firm)


def test_a_certificate_of_our_root_that_the_store_does_not_know_is_refused(site: LinkSite, firm: str) -> None:
    name = f"unknown-{time.time_ns()}"
    keys = site.admit(name, authority=site.authority)
    with pytest.raises(NotAdmittedError, match="unknown to the consortium"):
        reply_once(site.client(name, keys), site, name)


def test_the_servers_own_certificate_is_no_firms(site: LinkSite, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    shutil.copy(site.home.server_key_file, keys / "tls.key")
    shutil.copy(site.home.server_certificate_file, keys / "tls.pem")
    shutil.copy(site.home.root_file, keys / "root.pem")
    with pytest.raises((NotAdmittedError, LinkTimeoutError)):
        reply_once(site.client("x", keys), site, "x")


def test_an_expired_certificate_is_refused(site: LinkSite) -> None:
    name = f"late-{time.time_ns()}"
    keys = site.admit(name, now=datetime.now(UTC) - timedelta(days=40))
    with pytest.raises((NotAdmittedError, LinkTimeoutError)):
        reply_once(site.client(name, keys), site, name)


def test_a_revoked_firm_is_refused_at_its_next_request(site: LinkSite, firm: str) -> None:
    client = site.client(firm)
    message = site.message(firm)
    site.push(firm, message)
    assert next(client.messages()) == message
    revoke(site, firm)
    with pytest.raises(NotAdmittedError, match="revoked"):
        client.reply(message.reply(b"x", created_at=time.time()), RecordKind.JOIN, patience_seconds=5)
    assert site.replies(message, timeout=0.1) == []


def test_a_revoked_firms_open_stream_is_closed_within_about_a_second(site: LinkSite, firm: str) -> None:
    client = site.client(firm)
    ended: list[tuple[str, float]] = []

    def listen() -> None:
        try:
            next(client.messages())
        except NotAdmittedError as error:
            ended.append((str(error), time.monotonic()))

    listening = in_background(listen)
    eventually(lambda: firm in site.desk.connected())
    revoke(site, firm)
    began = time.monotonic()
    listening.join(10)
    (reason, at) = ended[0]
    assert "revoked" in reason
    assert at - began < 2.0
    eventually(lambda: firm not in site.desk.connected())


def test_a_firm_renews_its_certificate_and_goes_on_with_the_new_key(site: LinkSite, firm: str) -> None:
    account = Account()
    client, keys = site.client(firm, account=account), site.folder / firm / "keys"
    key = new_tls_key()
    pem = client.renew(signing_request(key))
    assert read_certificate(pem).name == firm
    assert account.kinds == ["renewal"]
    (keys / "tls.key").write_bytes(key_to_pem(key))
    (keys / "tls.pem").write_bytes(pem)
    first, second = site.message(firm, "job/1/0/join"), site.message(firm, "job/2/0/join")
    site.push(firm, first)
    incoming = client.messages()
    assert next(incoming) == first
    client.reload()
    client.reply(first.reply(b"x", created_at=time.time()), RecordKind.JOIN, patience_seconds=10)
    site.push(firm, second)
    assert next(incoming) == second


def test_a_bad_signing_request_is_refused(site: LinkSite, firm: str) -> None:
    with pytest.raises(Exception, match="signing request"):
        site.client(firm).renew(b"no request at all")


@pytest.mark.parametrize(
    ("method", "request_bytes", "status"),
    [
        pytest.param("Reply", b"", grpc.StatusCode.INVALID_ARGUMENT, id="an empty reply"),
        pytest.param("Reply", bytes(100), grpc.StatusCode.INVALID_ARGUMENT, id="a reply of zeros"),
        pytest.param("Reply", bytes(OVER_LIMIT), grpc.StatusCode.RESOURCE_EXHAUSTED, id="an oversized reply"),
        pytest.param("Renew", bytes(20_000), grpc.StatusCode.INVALID_ARGUMENT, id="an oversized signing request"),
        pytest.param("Push", b"", grpc.StatusCode.UNIMPLEMENTED, id="the desk's methods, on the firms' port"),
    ],
)
def test_a_bad_request_is_refused(
    site: LinkSite, firm: str, method: str, request_bytes: bytes, status: grpc.StatusCode
) -> None:
    service = "Desk" if method == "Push" else "Firm"
    with site.raw_channel(firm) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/dure.link.{service}/{method}")(request_bytes, timeout=10, wait_for_ready=True)
    assert caught.value.code() is status


@pytest.mark.parametrize("request_bytes", [b"", bytes(2000), Subscribe("1").encode() + b"x", b"\x02\0\0\0\x011"])
def test_a_malformed_subscription_is_refused(site: LinkSite, firm: str, request_bytes: bytes) -> None:
    with site.raw_channel(firm) as channel, pytest.raises(grpc.RpcError) as caught:
        next(channel.unary_stream("/dure.link.Firm/Subscribe")(request_bytes, timeout=10, wait_for_ready=True))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_desk_is_for_this_user_only(site: LinkSite) -> None:
    assert site.home.desk_socket.stat().st_mode & 0o077 == 0


def run_link(home: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "dure_server.link", "--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_second_link_on_one_home_is_refused(site: LinkSite) -> None:
    result = run_link(site.home.path)
    assert result.returncode == 1
    assert "another link runs on this server home" in result.stderr


def test_a_busy_port_is_named_with_what_to_do(site: LinkSite) -> None:
    second = LinkSite()
    try:
        text = second.home.settings_file.read_text().replace(str(second.port), str(site.port))
        second.home.settings_file.write_text(text)
        result = run_link(second.home.path)
    finally:
        second.close()
    assert result.returncode == 1
    assert f"port {site.port}" in result.stderr
    assert "link_port in server.toml" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_link_stops_soon_while_agents_and_coordinators_wait(site: LinkSite, firm: str) -> None:
    client = site.client(firm)
    in_background(lambda: list(client.messages()))
    waiting = threading.Thread(target=lambda: site.replies(site.message(firm), timeout=2), daemon=True)
    waiting.start()
    eventually(lambda: firm in site.desk.connected())
    assert site.stop() < 3.0  # half a second where nobody else uses the machine
    site.start()
    waiting.join(10)


def test_the_log_holds_no_body_and_no_key(site: LinkSite, firm: str) -> None:
    client = site.client(firm)
    message = site.message(firm, body=b"very-secret-body")
    site.push(firm, message)
    assert next(client.messages()) == message
    client.reply(message.reply(b"very-secret-body", created_at=time.time()), RecordKind.JOIN, patience_seconds=5)
    log = site.log()
    assert "very-secret" not in log
    assert "PRIVATE KEY" not in log
