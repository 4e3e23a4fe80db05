"""A server that moves is found by address, by name, and stays the same server: the consortium's, of the name it had."""

import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dure_client.link.channel import Route
from dure_client.link.errors import LinkTimeoutError
from dure_protocols.certificates import Authority, key_to_pem, new_serial, new_tls_key
from dure_protocols.ledger import RecordKind
from tests.conftest import lacking
from tests.end_to_end.link_site import NAME, LinkSite, eventually, in_background
from tests.end_to_end.wires import HOST, Wire, loopback_takes

ELSEWHERE = "127.0.0.2"


@pytest.fixture
def elsewhere(site: LinkSite) -> Iterator[Wire]:
    """The same server at another address, which its certificate does not name."""
    if not loopback_takes(ELSEWHERE):
        lacking(f"this machine does not listen on {ELSEWHERE}: run `ip address add {ELSEWHERE}/8 dev lo`")
    with Wire(site.port, listen_host=ELSEWHERE) as made:
        yield made


def test_at_a_new_address_the_server_is_known_by_the_name_it_had(site: LinkSite, firm: str, elsewhere: Wire) -> None:
    message = site.message(firm)
    site.push(firm, message)
    client = site.client(firm, route=Route(f"{ELSEWHERE}:{elsewhere.port}", HOST))
    assert next(client.messages()) == message


def test_a_server_without_that_name_is_not_spoken_to_and_the_reason_is_told(
    site: LinkSite, firm: str, elsewhere: Wire
) -> None:
    client = site.client(firm, route=Route(f"{ELSEWHERE}:{elsewhere.port}"))
    reply = site.message(firm).reply(b"x", created_at=time.time())
    with pytest.raises(LinkTimeoutError, match=r"does not have the name .* --name NAME"):
        client.reply(reply, RecordKind.JOIN, patience_seconds=1)


def test_whoever_answers_at_the_new_address_without_the_consortiums_root_hears_nothing(
    site: LinkSite, firm: str, tmp_path: Path
) -> None:
    key, now = new_tls_key(), datetime.now(UTC)
    authority = Authority.create("test", now, key=new_tls_key(), serial=1)
    (tmp_path / "key").write_bytes(key_to_pem(key))
    (tmp_path / "pem").write_bytes(authority.issue_server(key.public_key(), [HOST], now, serial=new_serial()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem", tmp_path / "key")
    context.set_alpn_protocols(["h2"])
    heard: list[bytes] = []
    with socket.create_server((HOST, 0)) as listener:

        def listen() -> None:
            while True:
                raw, _ = listener.accept()
                try:
                    with context.wrap_socket(raw, server_side=True) as connection:
                        heard.append(connection.recv(100))
                except OSError:
                    continue

        in_background(listen)
        client = site.client(firm, port=listener.getsockname()[1])
        reply = site.message(firm).reply(b"x", created_at=time.time())
        with pytest.raises(LinkTimeoutError, match="consortium's root signed"):
            client.reply(reply, RecordKind.JOIN, patience_seconds=1)
    assert b"".join(heard) == b""


class NameServer:
    """Answers every question for an IPv4 address with one, and any other with none; nothing may be kept."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.num_questions = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((HOST, 0))
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                query, asker = self._socket.recvfrom(512)
            except OSError:
                return
            end = query.index(b"\0", 12) + 5
            question, is_ipv4 = query[12:end], query[end - 4 : end - 2] == b"\0\1"
            self.num_questions += is_ipv4
            answer = b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 0, 4) + socket.inet_aton(self.address)
            head = query[:2] + b"\x81\x80" + struct.pack(">HHHH", 1, int(is_ipv4), 0, 0)
            self._socket.sendto(head + question + (answer if is_ipv4 else b""), asker)

    def close(self) -> None:
        self._socket.close()


def test_a_change_in_dns_is_followed_when_the_old_address_is_gone(site: LinkSite, firm: str) -> None:
    if not loopback_takes(ELSEWHERE):
        lacking(f"this machine does not listen on {ELSEWHERE}: run `ip address add {ELSEWHERE}/8 dev lo`")
    names = NameServer(HOST)
    one, two = site.message(firm, "job/1/0/join"), site.message(firm, "job/2/0/join")
    with Wire(site.port) as old, Wire(site.port, listen_host=ELSEWHERE, port=old.port) as new:
        client = site.client(firm, route=Route(f"dns://{HOST}:{names.port}/{NAME}:{old.port}", NAME))
        incoming = client.messages()
        site.push(firm, one)
        assert next(incoming) == one
        assert (len(old.tunnels), len(new.tunnels)) == (1, 0)
        names.address = ELSEWHERE
        old.down()
        site.push(firm, two)
        eventually(lambda: next(incoming) == two)
        assert new.tunnels
        client.close()
    names.close()
