"""Agents of other versions at a real link: what they send is spelled out here in bytes, without any of our encoders."""

import hashlib
import struct
from importlib.metadata import version
from pathlib import Path

import grpc
import pytest

from dure_client.link.errors import LinkRefusedError, VersionRefusedError
from dure_protocols.certificates import certificate_der
from dure_protocols.frames import Envelope
from dure_protocols.heads import NOTHING_BEFORE, Statement, Witnessed
from dure_protocols.ledger import Head, RecordKind
from dure_protocols.versions import SPOKEN, ProtocolRange
from tests.end_to_end.link_site import LinkSite, blob, eventually
from tests.server.samples import identity

MINOR = ".".join(version("dure").split(".")[:2])
OLD_SUBSCRIPTION = b"\x01" + b"\0\0\0\x05" + b"0.1.0"
"""Format 1, then the agent's version: all that an agent says that knows protocol 1 alone."""


def text(value: str) -> bytes:
    return struct.pack(">I", len(value)) + value.encode()


def announced(content: bytes) -> bytes:
    return b"\x01" + hashlib.sha256(content).digest() + struct.pack(">Q", len(content))


def fetched(digest: str, offset: int) -> bytes:
    return b"\x01" + bytes.fromhex(digest) + struct.pack(">Q", offset)


def old_reply(request: bytes, body: bytes, content: bytes) -> bytes:
    """The envelope of a reply with one array that travels beside it, made from the request's own bytes."""
    message_id, run, node = request[5:37], request[41:49], request[57:65]
    length = struct.unpack(">I", request[65:69])[0]
    group = request[65 : 69 + length]
    own_id = hashlib.sha256(text("dure/link/reply") + text(message_id.decode())).digest()[:16].hex()
    array = text("masked") + text("uint64") + b"\0\0\0\x01" + struct.pack(">Q", len(content) // 8)
    array += hashlib.sha256(content).digest() + b"\0"
    return b"".join(
        [
            b"\x01",
            text(own_id),
            text(message_id.decode()),
            run,
            node,
            struct.pack(">Q", 1),  # to the coordinator
            group,
            struct.pack(">dd", 1e9, 60.0),
            text("query.dure"),
            text(""),
            b"\0\0\0\x01" + array,
            struct.pack(">I", len(body)) + body,
        ]
    )


def ask(channel: grpc.Channel, method: str, request: bytes) -> bytes:
    return bytes(channel.unary_unary(f"/dure.link.Firm/{method}")(request, timeout=20, wait_for_ready=True))


def test_an_agent_of_the_previous_minor_version_takes_part(site: LinkSite, firm: str) -> None:
    down, up = blob(50_000, seed=31), blob(80_000, seed=32).tobytes()
    message = site.message(firm, "steel/2/0/cohort", arrays=[down])
    site.push(firm, message)
    with site.raw_channel(firm) as channel:
        stream = channel.unary_stream("/dure.link.Firm/Subscribe")(OLD_SUBSCRIPTION, timeout=30, wait_for_ready=True)
        request = bytes(next(stream))  # the message itself: no word before it that an old agent would not understand
        assert request == message.encode()
        assert request[0] == 1
        eventually(lambda: site.desk.connected().get(firm) == "0.1.0")
        digest = message.arrays[0].sha256
        parts = channel.unary_stream("/dure.link.Firm/Download")(fetched(digest, 1000), timeout=20)
        assert b"".join(bytes(part) for part in parts) == down.tobytes()[1000:]
        answers = channel.stream_stream("/dure.link.Firm/Upload")(iter([announced(up), up]), timeout=20)
        size = struct.pack(">Q", len(up))
        assert [bytes(answer) for answer in answers] == [b"\x01" + bytes(8) + b"\0", b"\x01" + size + b"\x01"]
        assert ask(channel, "Reply", old_reply(request, b"old and well", up)) == b""
        stream.cancel()
    (reply,) = site.replies(message)
    assert reply.body == b"old and well"
    assert (site.home.uploads / firm / reply.arrays[0].sha256).read_bytes() == up


@pytest.mark.parametrize(
    ("range_bytes", "says"),
    [
        pytest.param("00000004 00000005", "protocols 4 to 5 and the server", id="only later protocols"),
        pytest.param("0000ffff 0000ffff", "speaks protocol 65535", id="only one far away"),
    ],
)
def test_an_agent_without_a_common_protocol_is_told_in_one_sentence_what_to_install_and_so_is_the_operator(
    site: LinkSite, firm: str, range_bytes: str, says: str
) -> None:
    asked = b"\x02" + b"\0\0\0\x05" + b"0.9.1" + bytes.fromhex(range_bytes)
    with site.raw_channel(firm) as channel, pytest.raises(grpc.RpcError) as caught:
        next(channel.unary_stream("/dure.link.Firm/Subscribe")(asked, timeout=20, wait_for_ready=True))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    sentence = str(caught.value.details())
    assert says in sentence
    assert "(Dure 0.9.1)" in sentence
    assert f"install Dure {MINOR} at the firm (`pip install 'dure[agent]=={MINOR}.*'`)" in sentence
    with site.store.reading() as at:
        row = at.firms.get(firm)
        assert (row.link_refusal, row.agent_version, row.connected_since) == (sentence, "0.9.1", None)
    assert sentence in site.log()


def test_the_refusal_ends_our_own_agent_with_that_sentence_and_is_forgotten_once_it_connects(
    site: LinkSite, firm: str
) -> None:
    newer = site.client(firm, protocols=ProtocolRange(7, 8))
    with pytest.raises(VersionRefusedError, match=f"install Dure {MINOR} at the firm"):
        next(newer.messages())
    newer.close()
    message = site.message(firm)
    site.push(firm, message)
    assert next(site.client(firm).messages()) == message

    def is_forgotten() -> bool:
        with site.store.reading() as at:
            return at.firms.get(firm).link_refusal is None

    eventually(is_forgotten)


def test_an_agent_that_speaks_more_than_the_link_gets_what_both_speak(site: LinkSite, firm: str) -> None:
    welcomes: list[int] = []
    client = site.client(
        firm, protocols=ProtocolRange(2, 9), on_welcome=lambda welcome: welcomes.append(welcome.protocol)
    )
    message = site.message(firm)
    site.push(firm, message)
    assert next(client.messages()) == message
    assert welcomes == [SPOKEN.highest]


@pytest.mark.parametrize(("highest", "takes"), [(2, False), (3, True)])
def test_an_agent_of_the_protocol_before_takes_part_and_states_no_heads(
    site: LinkSite, firm: str, highest: int, takes: bool
) -> None:
    client = site.client(firm, protocols=ProtocolRange(1, highest))
    assert not client.takes_heads  # nothing is known of the server yet
    message = site.message(firm)
    site.push(firm, message)
    assert next(client.messages()) == message
    assert client.takes_heads is takes
    client.reply(message.reply(b"well", created_at=1e9), RecordKind.JOIN, 10)
    assert site.replies(message)[0].body == b"well"


def test_a_statement_is_countersigned_over_the_link_and_one_by_another_key_is_not(site: LinkSite, firm: str) -> None:
    own, other = identity(firm), identity("somebody")
    with site.store.transaction() as at:
        at.firms.get(firm).identity_key = own.public_bytes
    client = site.client(firm)
    statement = Statement.make(Head(7, bytes(32)), NOTHING_BEFORE, own)
    answer = Witnessed.decode(client.deposit(statement.encode()))
    answer.own.verify(certificate_der(site.authority.certificate_pem))
    assert (answer.own.firm, answer.own.statement, answer.own.num_breaks) == (firm, statement, 0)
    assert (answer.replaced, answer.others) == (None, ())
    with pytest.raises(LinkRefusedError, match="did not sign this statement"):
        client.deposit(Statement.make(Head(8, bytes(32)), statement.digest, other).encode())


def test_the_bytes_of_an_old_reply_are_what_todays_decoder_reads(tmp_path: Path) -> None:
    request = Envelope.request(7, 99, "steel/2/0/cohort", "query.dure", b"x", (), 1e9, 60.0)
    reply = Envelope.decode(old_reply(request.encode(), b"body", bytes(8000)))
    assert reply.answers(request)
    assert (reply.body, reply.arrays[0].shape) == (b"body", (1000,))
