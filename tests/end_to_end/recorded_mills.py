"""The tiny consortium with a recorder on one firm's wire, and the story that the recording tells."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import polars as pl
import psutil

from dure_client.home import AgentHome
from dure_client.ledger import read_records
from dure_lab.consortium import ACTOR, LocalConsortium
from dure_protocols.certificates import new_serial, read_certificate, signing_request
from dure_protocols.job import JobFile
from dure_protocols.ledger import LedgerRecord
from dure_server.enrolment.operator import Operator
from tests.end_to_end import tiny
from tests.end_to_end.recorder import HOST, Connection, Recorder

WATCHED = "alder"
CANARY_TEXT = "Zaunkoenig-Werke 4421"
CANARY_FILE = "heron-7741.parquet"
CANARY_NUMBER = 43.2198765
BIG_HIDDEN = 700  # 1.2 MB of masked vector: more than one chunk


@dataclass
class Recording:
    """What one firm sent from joining to the end of a job: every connection, and its ledger at that moment."""

    link: list[Connection]
    enrolment: list[Connection]
    records: list[LedgerRecord]
    job: JobFile
    sentences: list[str]
    addresses: set[tuple[str, int]]
    trainer_addresses: set[tuple[str, int]]
    num_looks: int

    @property
    def stream(self) -> bytes:
        return b"".join(connection.stream for connection in [*self.enrolment, *self.link])


class Watch:
    """Looks again and again whom a firm's processes are connected to."""

    def __init__(self, pid: int) -> None:
        self.addresses: set[tuple[str, int]] = set()
        self.trainer_addresses: set[tuple[str, int]] = set()
        self.num_looks = 0
        self._agent, self._ended = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.1):
            with suppress(psutil.Error):
                self.addresses |= _remote_addresses(self._agent)
                for child in self._agent.children(recursive=True):
                    self.trainer_addresses |= _remote_addresses(child)
                    self.num_looks += 1


@dataclass
class Mills:
    """The consortium and the recorders on the wire of `WATCHED`. Kept running for all tests of a session."""

    consortium: LocalConsortium
    enrolment: Recorder
    prefix: tuple[str, ...] = ()
    """A command that everything of the watched firm is an argument of."""
    link: Recorder = field(init=False)

    def __post_init__(self) -> None:
        consortium, keys = self.consortium, self.home.keys
        self.link = Recorder(consortium.home, consortium.settings.link_port, keys, consortium.host)

    @property
    def home(self) -> AgentHome:
        return AgentHome(self.consortium.folder / "firms" / WATCHED)

    @property
    def records(self) -> list[LedgerRecord]:
        return list(read_records(self.home.ledger_file))

    def agent_command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run `dure-agent` of the watched firm."""
        command = [*self.prefix, sys.executable, "-m", "dure_client.cli", *arguments, "--home", str(self.home.path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def join_over_the_recorder(self) -> None:
        """Join as a firm does, but with an invitation that names the recorder's port; then ask for the status."""
        consortium = self.consortium
        operator = Operator(consortium.store, f"https://{consortium.host}:{self.enrolment.port}", ACTOR)
        invitation = operator.invite(WATCHED)
        file = consortium.folder / "invitation.txt"
        file.write_text(invitation.to_text())
        joined = self.agent_command("join", "--invitation", str(file), "--fingerprint", invitation.root_fingerprint)
        assert joined.returncode == 0, joined.stderr
        operator.approve(WATCHED, self.home.identity().fingerprint)
        status = self.agent_command("status")
        assert "approved" in status.stdout, status.stdout + status.stderr
        config = self.home.config()
        self.home.write_config(config.model_copy(update={"link_port": self.link.port}))
        consortium.agents[WATCHED] = self.home

    def age_the_certificate(self) -> None:
        """Give the firm a certificate that is due for renewal, as it would have after some weeks."""
        authority = self.consortium.home.authority()
        issued_at = datetime.now(UTC) - timedelta(days=25)
        pem = authority.issue_client(WATCHED, signing_request(self.home.tls_key()), issued_at, serial=new_serial())
        with self.consortium.store.transaction() as at:
            at.certificates.add(read_certificate(pem), pem)
        self.home.tls_certificate_file.write_bytes(pem)


@contextmanager
def recorded_mills(host: str = HOST, prefix: tuple[str, ...] = ()) -> Iterator[Mills]:
    """Server and three enrolled firms, agents not started yet. prefix: see `Mills`."""
    with ExitStack() as stack:
        consortium = stack.enter_context(tiny.founded(host))
        enrolment = Recorder(consortium.home, consortium.settings.enrolment_port, host=host)
        mills = Mills(consortium, enrolment, prefix)
        stack.callback(mills.enrolment.close)
        stack.callback(mills.link.close)
        mills.join_over_the_recorder()
        for firm in tiny.ROWS:
            home = mills.home if firm == WATCHED else consortium.enrol(firm)
            tiny.give_data(home, tiny.rows_of(firm))
        consortium.introduce("tabular")
        consortium.set_policy(minimum_cohort=2)
        yield mills
        consortium.close()  # before the recorders, so that agents end as they do


def canary_rows() -> pl.DataFrame:
    """The watched firm's rows, with a text and a number in them that occur nowhere else."""
    torque = pl.when(pl.int_range(pl.len()) == 3).then(CANARY_NUMBER).otherwise(pl.col("torque"))
    return tiny.rows_of(WATCHED).with_columns(torque=torque, supplier=pl.lit(CANARY_TEXT))


def tell(mills: Mills) -> Recording:
    """The story: a renewal is due; the data lack a column at first; they are mended; the job runs to its end, and the
    firm leaves it."""
    consortium = mills.consortium
    file = tiny.give_data(mills.home, canary_rows().drop("tool_wear"), CANARY_FILE)
    mills.age_the_certificate()
    for firm in tiny.ROWS:
        consortium.start_agent(firm)
    watch = Watch(consortium.processes[WATCHED].popen.pid)
    job = consortium.propose(tiny.draft(consortium, "recorded", rounds=2, hidden=BIG_HIDDEN))
    tiny.approve(consortium, job)
    sentences: list[str] = []

    def is_refused() -> bool:
        sentences.append(tiny.sentence(consortium, job))
        return "data-contract" in sentences[-1]

    tiny.until(is_refused, consortium)
    canary_rows().write_parquet(file)
    tiny.until(lambda: tiny.is_finished(consortium, job), consortium)
    tiny.until(lambda: tiny.result(mills.home, job), consortium)
    left = mills.agent_command("leave", job.id, "--yes")
    assert "The server has receipted it" in left.stdout, left.stdout + left.stderr
    time.sleep(0.1)  # a last reply may be on its way
    watch.end()
    consortium.stop(WATCHED)
    tiny.until(lambda: all(connection.is_over for connection in mills.link.connections), consortium)
    recording = Recording(
        list(mills.link.connections),
        list(mills.enrolment.connections),
        mills.records,
        job,
        sentences,
        watch.addresses,
        watch.trainer_addresses,
        watch.num_looks,
    )
    consortium.start_agent(WATCHED)
    return recording


def _remote_addresses(process: psutil.Process) -> set[tuple[str, int]]:
    connections = [each.raddr for each in process.net_connections(kind="inet") if each.raddr]
    return {(address.ip.removeprefix("::ffff:"), address.port) for address in connections}
