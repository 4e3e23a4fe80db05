"""Nothing but the design's section 7 leaves a firm: every byte that an agent sent, held against its ledger."""

import math
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from dure_client.ledger import verify_file
from dure_client.link.client import LinkClient, LinkRefusedError
from dure_protocols import ledger as chain
from dure_protocols.errors import MessageError, RefusalCode
from dure_protocols.frames import ArrayRef, Envelope, node_id
from dure_protocols.identity import Identity
from dure_protocols.ledger import Entry, RecordKind
from dure_protocols.messages import Present, Proposal, Refusal, encode
from tests.end_to_end.recorded_mills import (
    CANARY_FILE,
    CANARY_NUMBER,
    CANARY_TEXT,
    WATCHED,
    Mills,
    Recording,
    canary_rows,
)
from tests.end_to_end.recorder import HOST, Connection, Recorder
from tests.end_to_end.tiny import TRAINED_ROWS, published
from tests.end_to_end.wire_account import (
    VERSION,
    Departure,
    NotAllowedError,
    Overhead,
    UnaccountedError,
    departures_over_https,
    departures_over_link,
    reconcile,
)

REPLY = "/dure.link.Firm/Reply"
Speak = Callable[[bytes, grpc.Channel], None]
NEVER_HERE = {RecordKind.ACKNOWLEDGEMENT, RecordKind.VOTE, RecordKind.NOT_SENT, RecordKind.REPAIR}
"""Kinds that an undisturbed agent in retry mode has no reason to write."""


@pytest.fixture(scope="module")
def departures(recording: Recording) -> list[Departure]:
    """All that left, in whatever order."""
    over_link = [each for connection in recording.link for each in departures_over_link(connection, Overhead())]
    return [*over_link, *(each for connection in recording.enrolment for each in departures_over_https(connection))]


def test_all_that_left_is_in_the_ledger_before_it_left_and_the_ledger_names_nothing_else(
    recording: Recording, departures: list[Departure]
) -> None:
    reconcile(departures, recording.records)


def test_the_ledger_holds_and_its_sum_is_the_bytes_on_the_wire(
    recording: Recording, departures: list[Departure], mills: Mills
) -> None:
    key = mills.home.identity().public_bytes
    chain.verify_chain(recording.records, key)
    assert chain.sent_bytes(recording.records) == sum(len(departure.content) for departure in departures)
    assert verify_file(mills.home.ledger_file, key).sent_bytes >= chain.sent_bytes(recording.records)


def test_every_kind_that_section_7_names_was_seen_on_the_wire(departures: list[Departure]) -> None:
    seen = Counter(departure.kind for departure in departures)
    assert set(seen) == set(RecordKind) - NEVER_HERE
    assert seen[RecordKind.MASKED_UPDATE] == 4  # statistics, two rounds of training, a last look at the model


def test_a_masked_vector_takes_two_bytes_a_parameter(recording: Recording, departures: list[Departure]) -> None:
    sizes = sorted(len(departure.content) for departure in departures if departure.kind is RecordKind.BLOB)
    assert [size / recording.job.model.parameters for size in sizes[-2:]] == pytest.approx([2.0, 2.0], abs=0.01)


def test_what_http2_and_tls_add_is_little_and_all_accounted_for(
    recording: Recording, departures: list[Departure]
) -> None:
    overhead = Overhead()
    for connection in recording.link:
        departures_over_link(connection, overhead)
    over_link = [each for each in departures if each.kind is not RecordKind.ENROLMENT]
    payload, plain = sum(len(each.content) for each in over_link), sum(len(each.stream) for each in recording.link)
    raw = sum(each.raw_bytes for each in recording.link)
    print(f"\npayload {payload} B; HTTP/2 and gRPC {overhead.num_bytes} B ({overhead}); TLS {raw - plain} B")
    assert payload + overhead.num_bytes == plain  # no byte of the stream is anything else
    assert overhead.by_part["cut off in mid-frame"] == overhead.by_part["cut off in mid-message"] == 0
    assert overhead.num_bytes < 0.01 * payload + 200 * len(over_link)
    assert raw - plain < 0.01 * plain + 8192 * len(recording.link)


@pytest.mark.parametrize(
    "canary",
    [
        pytest.param(CANARY_TEXT.encode(), id="a text of a column outside the contract"),
        pytest.param(CANARY_FILE.encode(), id="the data file's name"),
        pytest.param(b".parquet", id="any data file's name"),
        pytest.param(str(CANARY_NUMBER).encode(), id="a number as text"),
        pytest.param(struct.pack("<d", CANARY_NUMBER), id="a number as float64"),
        pytest.param(struct.pack(">d", CANARY_NUMBER), id="a number as float64, big-endian"),
        pytest.param(b"tool_wear", id="a column's name"),
        pytest.param(b"/firms/", id="a path of the home"),
    ],
)
def test_nothing_of_the_data_is_in_the_stream(recording: Recording, mills: Mills, canary: bytes) -> None:
    assert WATCHED.encode() in recording.stream  # what is there is found
    assert canary not in recording.stream


def test_the_canaries_were_where_a_leak_would_find_them(recording: Recording, mills: Mills) -> None:
    assert CANARY_NUMBER in canary_rows()["torque"]
    log = (mills.home.logs / "trainer.log").read_text()
    assert "tool_wear" in log  # the reason of the refusal that left as a code
    assert CANARY_FILE in mills.home.data_file.read_text()


def test_no_firms_own_count_or_metric_is_a_message_of_its_own(recording: Recording, mills: Mills) -> None:
    rounds = published(mills.consortium, recording.job)
    assert [row.count for row in rounds[1:-1]] == [sum(TRAINED_ROWS.values())] * 2
    assert struct.pack("<d", rounds[1].metrics["validation_loss"]) not in recording.stream


def test_the_agent_spoke_to_one_address_and_the_trainer_to_none(recording: Recording, mills: Mills) -> None:
    assert recording.addresses == {(HOST, mills.link.port)}
    assert recording.num_looks > 20
    assert recording.trainer_addresses == set()


def test_the_link_had_the_firms_certificate_and_joining_needed_none(recording: Recording) -> None:
    assert {(each.caller, each.protocol) for each in recording.link} == {(WATCHED, "h2")}
    assert {each.caller for each in recording.enrolment} == {None}
    assert len(recording.link) >= 2  # before and after the renewal


# What follows shows that the account would not pass if something else left: the same wire, other senders.


@pytest.mark.parametrize("kind", sorted(set(RecordKind) - NEVER_HERE))
def test_a_departure_of_any_kind_without_a_record_is_found(
    recording: Recording, departures: list[Departure], kind: RecordKind
) -> None:
    first = next(record for record in recording.records if record.entry.kind is kind)
    with pytest.raises(UnaccountedError, match=f"^{kind.value} of .* (is not in the ledger|after it arrived)$"):
        reconcile(departures, [record for record in recording.records if record is not first])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"size_bytes": 1}, id="size"),
        pytest.param({"sha256": bytes(32)}, id="digest"),
        pytest.param({"kind": RecordKind.FINISHED}, id="kind"),
        pytest.param({"round": 7}, id="round"),
        pytest.param({"message_id": "0" * 32}, id="message"),
    ],
)
def test_a_record_that_says_something_else_than_left_is_found(
    recording: Recording, departures: list[Departure], change: dict[str, object]
) -> None:
    at, first = next((at, each) for at, each in enumerate(recording.records) if each.entry.kind is RecordKind.JOIN)
    changed = replace(first, entry=replace(first.entry, **change))  # type: ignore[arg-type]
    with pytest.raises(UnaccountedError, match=r"join of .* is not in the ledger"):
        reconcile(departures, [*recording.records[:at], changed, *recording.records[at + 1 :]])


def test_a_record_of_what_did_not_leave_is_found(recording: Recording, departures: list[Departure]) -> None:
    with pytest.raises(UnaccountedError, match="did not leave"):
        reconcile(departures[1:], recording.records)


def test_a_record_written_after_the_fact_is_found(recording: Recording, departures: list[Departure]) -> None:
    late = [replace(record, time="2100-01-01T00:00:00.000000Z") for record in recording.records]
    with pytest.raises(UnaccountedError, match="after it arrived"):
        reconcile(departures, late)


class Forgetful:
    """An egress recorder that forgets one kind."""

    def __init__(self, forgets: RecordKind | None = None) -> None:
        self.forgets = forgets
        self.records: list[chain.LedgerRecord] = []
        self._identity = Identity.from_seed(bytes(32))

    def record(self, entry: Entry) -> None:
        if entry.kind is not self.forgets:
            number, time = len(self.records) + 1, "2026-01-01T00:00:00.000000Z"
            self.records.append(
                chain.append(entry, number=number, time=time, previous=bytes(32), identity=self._identity)
            )


@pytest.fixture
def wire(mills: Mills, recording: Recording) -> Iterator[Recorder]:
    """A recorder of its own before the same link."""
    recorder = Recorder(mills.consortium.home, mills.consortium.settings.link_port, mills.home.keys)
    yield recorder
    recorder.close()


def a_reply(mills: Mills) -> Envelope:
    """A reply that nobody waits for: the link refuses it, having heard it."""
    node = node_id(mills.consortium.name, WATCHED)
    asked = Envelope.request(7, node, "probe/1/0/join", "query.dure", b"", (), 1e9, 60.0)
    return asked.reply(encode(Refusal(WATCHED, RefusalCode.INTERNAL)), created_at=1e9)


def sent_over(wire: Recorder) -> list[Departure]:
    return [each for connection in wire.connections for each in departures_over_link(connection, Overhead())]


@pytest.mark.parametrize("forgets", [None, RecordKind.REFUSAL])
def test_a_recorder_that_forgets_a_kind_is_found_on_the_same_wire(
    mills: Mills, wire: Recorder, forgets: RecordKind | None
) -> None:
    recorder = Forgetful(forgets)
    client = LinkClient(f"{HOST}:{wire.port}", mills.home.keys, recorder)
    with pytest.raises(LinkRefusedError):
        client.reply(a_reply(mills), RecordKind.REFUSAL, 10)
    client.close()
    if forgets is None:
        assert reconcile(sent_over(wire), recorder.records) > 0
    else:
        with pytest.raises(UnaccountedError, match=r"refusal of .* is not in the ledger"):
            reconcile(sent_over(wire), recorder.records)


def test_a_blob_that_is_not_masked_is_found(mills: Mills, wire: Recorder, tmp_path: Path) -> None:
    file = tmp_path / "plain"
    file.write_bytes(struct.pack("<f", math.pi) * 2000)
    ref = ArrayRef.of("masked", np.fromfile(file, "<f4"))
    client = LinkClient(f"{HOST}:{wire.port}", mills.home.keys, Forgetful())
    client.upload(file, ref, a_reply(mills), 10)
    client.close()
    with pytest.raises(NotAllowedError, match="not masked"):
        sent_over(wire)


def a_header(content: bytes, channel: grpc.Channel) -> None:
    channel.unary_unary(REPLY)(content, timeout=10, metadata=(("x-note", "by the way"),))


def a_byte_behind(content: bytes, channel: grpc.Channel) -> None:
    channel.unary_unary(REPLY)(content + b"\0", timeout=10)


def compressed(content: bytes, channel: grpc.Channel) -> None:
    channel.unary_unary(REPLY)(content, timeout=10, compression=grpc.Compression.Gzip)


def twice(content: bytes, channel: grpc.Channel) -> None:
    channel.stream_unary(REPLY)(iter([content, content]), timeout=10)


def to_another_method(content: bytes, channel: grpc.Channel) -> None:
    channel.unary_unary("/dure.link.Firm/Tell")(content, timeout=10)


@pytest.mark.parametrize(
    ("speak", "error", "says"),
    [
        pytest.param(a_header, NotAllowedError, "a header 'x-note' came", id="a header"),
        pytest.param(a_byte_behind, MessageError, "1 byte", id="a byte behind a message"),
        pytest.param(compressed, NotAllowedError, "header 'grpc-encoding' came|is compressed", id="compression"),
        pytest.param(twice, NotAllowedError, "takes one message, 2 came", id="a message twice"),
        pytest.param(to_another_method, NotAllowedError, "/dure.link.Firm/Tell", id="another method"),
    ],
)
def test_what_travels_beside_a_message_is_found(
    mills: Mills, wire: Recorder, speak: Speak, error: type[Exception], says: str
) -> None:
    send(mills, wire, a_reply(mills).encode(), speak)
    with pytest.raises(error, match=says):
        sent_over(wire)


def test_another_user_agent_is_found(mills: Mills, wire: Recorder) -> None:
    send(mills, wire, a_reply(mills).encode(), options=[("grpc.primary_user_agent", CANARY_TEXT)])
    with pytest.raises(NotAllowedError, match="a header user-agent: 'Zaunkoenig"):
        sent_over(wire)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        pytest.param(b"\r\n\r\n", b"\r\nx-host: mill-7\r\n\r\n", "a header x-host", id="a header"),
        pytest.param(b"dure-agent/", b"dure-agent on mill-7/", "a header user-agent", id="a known header"),
        pytest.param(b"POST /api", b"POST /mill-7/api", "the request", id="a path"),
        pytest.param(f'"{VERSION}"'.encode(), f'"{"9" * len(VERSION)}"'.encode(), "version is", id="a field"),
    ],
)
def test_what_is_added_to_a_request_to_join_is_found(recording: Recording, old: bytes, new: bytes, says: str) -> None:
    plain = next(each for each in recording.enrolment if each.stream.startswith(b"POST"))
    assert old in plain.stream
    with pytest.raises(NotAllowedError, match=says):
        departures_over_https(Connection([(0.0, plain.stream.replace(old, new, 1))]))


@pytest.mark.parametrize("message", [Present(WATCHED), Proposal(b"{}")], ids=lambda message: type(message).__name__)
def test_a_message_that_section_7_does_not_name_is_found(
    mills: Mills, wire: Recorder, message: Present | Proposal
) -> None:
    send(mills, wire, replace(a_reply(mills), body=encode(message)).encode())
    with pytest.raises(NotAllowedError, match=f"an agent sent a {type(message).__name__}"):
        sent_over(wire)


def test_an_error_that_is_no_code_is_found(mills: Mills, wire: Recorder) -> None:
    send(mills, wire, replace(a_reply(mills), body=b"", error_code="torque-is-forty-three").encode())
    with pytest.raises(ValueError, match="torque-is-forty-three"):
        sent_over(wire)


def as_it_should(content: bytes, channel: grpc.Channel) -> None:
    channel.unary_unary(REPLY)(content, timeout=10)


def send(
    mills: Mills,
    wire: Recorder,
    content: bytes,
    speak: Speak = as_it_should,
    options: Sequence[tuple[str, object]] = (),
) -> None:
    """Say something to the link with the firm's certificate and none of its agent's manners; the link refuses it."""
    files = ((mills.home.keys / name).read_bytes() for name in ("root.pem", "tls.key", "tls.pem"))
    credentials = grpc.ssl_channel_credentials(*files)
    with grpc.secure_channel(f"{HOST}:{wire.port}", credentials, options) as channel, pytest.raises(grpc.RpcError):
        speak(content, channel)
