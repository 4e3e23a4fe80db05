"""The egress proof on the wire: agent and trainer in a network namespace of their own, and every packet captured.

What TCP carried is TLS, what TLS carried is what the ledger accounts for and the framing around it, and no value of the
data, of its names or of an exception's text is in it. test_egress.py shows the same of the plaintext, in more ways.
"""

import subprocess
import sys
import time
from dataclasses import dataclass

import polars as pl
import pytest

from dure_client.home import write_file
from dure_client.ledger_export import verify_own
from dure_protocols import ledger as chain
from dure_protocols.certificates import certificate_der
from dure_protocols.errors import RefusalCode
from dure_protocols.ledger import LedgerRecord, RecordKind
from tests.conftest import lacking
from tests.end_to_end import tiny
from tests.end_to_end.canaries import finds, forms_of_number, forms_of_text, raw_deflate
from tests.end_to_end.capture import Captured, capturing, read, tls_records
from tests.end_to_end.raising_trainer import SAID
from tests.end_to_end.recorded_mills import WATCHED, Mills, recorded_mills
from tests.end_to_end.recorder import Connection
from tests.end_to_end.sealed import HOST, sealed, why_not
from tests.end_to_end.wire_account import Departure, Overhead, departures_over_https, departures_over_link, reconcile

SUPPLIER = "Zaunkoenig-Werke 4421"
COLUMN = "Drehmoment Nebelkraehe [Nm]"
FILE = "heron-7741.parquet"
NUMBER = 43.2198765
TLS_RECORD_BYTES = 5 + 1 + 16
"""What TLS 1.3 adds to a record: its header, its inner kind, and the tag of AES-GCM or ChaCha20-Poly1305."""
HANDSHAKE_BYTES = 4096
"""More than a client says in a handshake: hello, certificate, proof, finished."""
APPLICATION_DATA = 23


@dataclass
class Told:
    """A firm's story from joining to the end of a job, as packets, as plaintext and as its ledger."""

    captured: Captured
    link: list[Connection]
    enrolment: list[Connection]
    records: list[LedgerRecord]
    trainer_log: str
    mapping: str
    control: Captured

    @property
    def connections(self) -> list[Connection]:
        return [*self.enrolment, *self.link]

    @property
    def plain(self) -> bytes:
        return b"".join(each.stream for each in self.connections)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    if reason := why_not():
        lacking(reason)
    folder = tmp_path_factory.mktemp("packets")
    with sealed() as prefix:
        with capturing(prefix, folder / "story"), recorded_mills(HOST, prefix) as mills:
            run_a_job(mills)
            log, mapping = (mills.home.logs / "trainer.log").read_text(), mills.home.data_file.read_text()
            records = mills.records
        with capturing(prefix, folder / "control"):
            speak_up(prefix)
    link, enrolment = mills.link.connections, mills.enrolment.connections
    return Told(read(folder / "story"), link, enrolment, records, log, mapping, read(folder / "control"))


def run_a_job(mills: Mills) -> None:
    """A job to its end; the firm's model raises with its rows in the first round that trains."""
    consortium = mills.consortium
    torque = pl.when(pl.int_range(pl.len()) < 9).then(NUMBER).otherwise(pl.col("torque"))
    rows = tiny.rows_of(WATCHED).with_columns(torque=torque, supplier=pl.lit(SUPPLIER)).rename({"torque": COLUMN})
    tiny.give_data(mills.home, rows, FILE)
    mapping = f'{mills.home.data_file.read_text()}\n[columns]\ntorque = "{COLUMN}"\n'
    write_file(mills.home.data_file, mapping.encode())
    consortium.start_agent(WATCHED, module="tests.end_to_end.raising_agent", prefix=mills.prefix)
    for firm in set(tiny.ROWS) - {WATCHED}:
        consortium.start_agent(firm)
    job = consortium.propose(tiny.draft(consortium, "captured", rounds=2, hidden=64))
    tiny.approve(consortium, job)
    tiny.until(lambda: tiny.is_finished(consortium, job), consortium)
    tiny.until(lambda: tiny.result(mills.home, job), consortium)

    def is_witnessed() -> bool:
        root = certificate_der(mills.home.root_file.read_bytes())
        return verify_own(mills.home.ledger_file, WATCHED, mills.home.identity(), root).countersigned is not None

    tiny.until(is_witnessed, consortium)
    time.sleep(0.1)  # a last reply may be on its way
    consortium.stop(WATCHED)
    tiny.until(lambda: all(connection.is_over for connection in mills.link.connections), consortium)


def speak_up(prefix: tuple[str, ...]) -> None:
    """What a leak would do, from the same namespace: ask a name server, call elsewhere, whisper on the loopback."""
    program = """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"who is?", ("198.18.77.1", 53))
elsewhere = socket.socket()
elsewhere.setblocking(False)
elsewhere.connect_ex(("203.0.113.9", 443))
listener = socket.create_server(("127.0.0.1", 0))
socket.create_connection(listener.getsockname()).sendall(b"psst")
"""
    subprocess.run([*prefix, sys.executable, "-c", program], check=True, timeout=30)
    time.sleep(0.2)


def test_the_capture_hears_what_a_leak_would_do(told: Told) -> None:
    assert told.control.others == [f"ethertype 0x0800, protocol 17, to {HOST}:53"]
    assert {stream.target for stream in told.control.streams.values()} == {("203.0.113.9", 443)}
    assert told.control.num_local > 0


def test_agent_and_trainer_spoke_over_tcp_with_the_server_alone_and_with_no_name_server(told: Told) -> None:
    assert told.captured.others == []
    assert told.captured.num_local == 0  # nor with each other, but over a Unix socket
    assert {address for (_, address, _) in told.captured.streams} == {HOST}


def test_every_connection_is_the_agents_own_so_the_trainer_made_none(told: Told) -> None:
    on_the_wire = {source_port for (source_port, _, _) in told.captured.streams}
    assert on_the_wire == {each.source_port for each in told.connections}
    assert {each.caller for each in told.link} == {WATCHED}  # by a key that the trainer is not given
    assert {each.caller for each in told.enrolment} == {None}


def test_every_captured_byte_is_accounted_for(told: Told) -> None:
    """TCP's payload is TLS records; what is in them is what the ledger says left, and HTTP/2 and gRPC around it."""
    streams = {key[0]: stream.content for key, stream in told.captured.streams.items()}
    overhead, departures = Overhead(), list[Departure]()
    num_records, handshakes = 0, list[int]()
    for connection in told.connections:
        stream = streams[connection.source_port]
        assert len(stream) == connection.raw_bytes
        records = tls_records(stream)
        num_records += len(records)
        # What is left when every record of application data has held plaintext: handshakes, and a goodbye.
        data = [length for kind, length in records if kind == APPLICATION_DATA]
        handshakes.append(len(stream) - len(connection.stream) - TLS_RECORD_BYTES * len(data))
        assert 0 <= handshakes[-1] <= HANDSHAKE_BYTES
    for connection in told.link:
        departures += departures_over_link(connection, overhead)
    for connection in told.enrolment:
        departures += departures_over_https(connection)
    reconcile(departures, told.records)
    tcp, ledger, plain = sum(map(len, streams.values())), chain.sent_bytes(told.records), len(told.plain)
    assert plain == ledger + overhead.num_bytes
    print(
        f"\n{told.captured.frame_bytes} B in {told.captured.num_frames} frames = {tcp} B of TCP payload and headers; "
        f"{tcp} B = {ledger} B in the ledger + {overhead.num_bytes} B of HTTP/2 and gRPC + {tcp - plain} B of TLS "
        f"({num_records} records in {len(streams)} connections, {sum(handshakes)} B of it handshakes)"
    )
    assert tcp - plain <= TLS_RECORD_BYTES * num_records + HANDSHAKE_BYTES * len(streams)
    assert told.captured.frame_bytes - tcp <= 100 * told.captured.num_frames


def test_the_end_of_the_ledger_was_stated_on_the_wire(told: Told) -> None:
    assert RecordKind.HEAD in {record.entry.kind for record in told.records}


CANARIES = {
    "a text of a column outside the contract": forms_of_text(SUPPLIER),
    "a column's name in the mapping": forms_of_text(COLUMN),
    "the data file's name": forms_of_text(FILE),
    "a number in the rows": forms_of_number(NUMBER),
    "the exception's text": forms_of_text(SAID),
}


@pytest.mark.parametrize("canary", CANARIES)
def test_no_canary_left_in_any_form(told: Told, canary: str) -> None:
    forms = CANARIES[canary]
    assert finds(told.plain, forms) == []
    assert finds(b"".join(stream.content for stream in told.captured.streams.values()), forms) == []
    for departure in departures_of(told):
        assert not [name for name, form in forms.items() if form in raw_deflate(departure.content)]


@pytest.mark.parametrize("canary", CANARIES)
def test_a_canary_that_one_message_had_carried_would_be_found(told: Told, canary: str) -> None:
    middle = len(told.plain) // 2
    for name, form in CANARIES[canary].items():
        assert name in finds(told.plain[middle : middle + 20_000] + form + told.plain[:20_000], CANARIES[canary])


def test_the_canaries_were_where_a_leak_would_find_them(told: Told) -> None:
    assert FILE in told.mapping
    assert COLUMN in told.mapping
    assert f"{SAID}: [(" in told.trainer_log
    assert str(NUMBER) in told.trainer_log.partition(SAID)[2]
    codes = [each.content for each in departures_of(told) if each.kind is RecordKind.REFUSAL]
    assert any(RefusalCode.TRAINING.value.encode() in content for content in codes)  # the code left, and nothing more


def departures_of(told: Told) -> list[Departure]:
    over_link = [each for connection in told.link for each in departures_over_link(connection, Overhead())]
    return [*over_link, *(each for connection in told.enrolment for each in departures_over_https(connection))]
