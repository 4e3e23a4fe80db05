"""A firm leaves a job or the consortium: at once, by its own files, and the server hears of it when it can."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dure_client.agent import Agent
from dure_client.cli import app
from dure_client.commands.leave import leave_job
from dure_client.departure import Departure
from dure_client.home import AgentHome, HomeError, write_file
from dure_client.jobs.approvals import APPROVAL_FILE, ApprovalError, Verdict, approved_by_people, decide, known_job
from dure_client.jobs.firm import Firm
from dure_client.jobs.folder import JobFolder
from dure_client.jobs.side import Given
from dure_client.leaving import (
    LeavingError,
    Remains,
    check_is_member,
    conclude,
    declare,
    erase_job,
    leave_file,
    receipt_file,
    stored_receipt,
    untold,
    what_remains,
)
from dure_client.ledger import Ledger
from dure_client.ledger_export import LAST_EXPORT, verify_export
from dure_client.link.client import LinkClient
from dure_client.link.errors import LinkTimeoutError
from dure_protocols.certificates import Authority, key_to_pem, new_tls_key, signing_request
from dure_protocols.errors import RefusalCode
from dure_protocols.frames import ArrayRef, Envelope
from dure_protocols.job import JobFile
from dure_protocols.leaving import Leave, LeaveReceipt
from dure_protocols.ledger import Entry, RecordKind
from dure_protocols.messages import Approval, AskKeys, Finish, KeyAdvertisement, Proposal, Refusal, encode
from tests.client.test_link_agent import NODE, NOW, Calls, link  # noqa: F401  # a fixture
from tests.compatibility import three_firms
from tests.protocols.test_messages import SAMPLES

NAME = "firm-a"
AUTHORITY = Authority.create("valley", datetime(2026, 1, 1, tzinfo=UTC), key=new_tls_key(), serial=7)


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def jobs() -> list[JobFile]:
    """Two jobs."""
    job, _ = three_firms.make_the_job()
    return [job, JobFile.model_validate(job.model_dump() | {"id": "other"})]


@pytest.fixture
def home(tmp_path: Path, jobs: list[JobFile]) -> AgentHome:
    three_firms.write_data(tmp_path / "data")
    made = three_firms.make_homes(tmp_path / "firms", tmp_path / "data")[NAME]
    write_file(made.root_file, AUTHORITY.certificate_pem)
    for job in jobs:
        JobFolder(made.job_folder(job.id)).save_job(job)
        decide(made, job, Verdict.APPROVED, now())
    return made


@pytest.fixture
def certificate(home: AgentHome) -> None:
    """A certificate of the link, as `dure-agent join` gets one."""
    key = new_tls_key()
    write_file(home.tls_key_file, key_to_pem(key))
    issued = AUTHORITY.issue_client(NAME, signing_request(key), now(), serial=8)
    write_file(home.tls_certificate_file, issued)


@pytest.fixture
def firm(home: AgentHome, jobs: list[JobFile]) -> Iterator[Firm]:
    """A firm that has keys of both jobs."""
    with closing(Firm(home)) as made:
        for job in jobs:
            assert isinstance(made.answer(encode(Proposal(job.to_bytes())), Given()).message, Approval)
            assert has_keys(made, job, 1)
        yield made


def has_keys(firm: Firm, job: JobFile, epoch: int) -> bool:
    return isinstance(firm.answer(encode(AskKeys(job.digest(), epoch)), Given()).message, KeyAdvertisement)


def requests(job: JobFile) -> list[bytes]:
    digest = job.digest()
    return [encode(each) for each in (Proposal(job.to_bytes()), AskKeys(digest, 2), Finish(digest, ()))]


def receipt_for(statement: bytes) -> bytes:
    return LeaveReceipt.make(Leave.decode(statement), 1_800_000_000, (), AUTHORITY).encode()


def test_a_firm_that_left_a_job_answers_nothing_of_it_and_goes_on_with_the_others(
    firm: Firm, home: AgentHome, jobs: list[JobFile]
) -> None:
    declare(home, "press", now())
    for body in requests(jobs[0]):
        assert firm.answer(body, Given()).message == Refusal(NAME, RefusalCode.LEFT)
    assert known_job(home, "press").state == "left"
    assert has_keys(firm, jobs[1], 2)
    with closing(Firm(home)) as restarted:
        for body in requests(jobs[0]):
            assert restarted.answer(body, Given()).message == Refusal(NAME, RefusalCode.LEFT)
        assert has_keys(restarted, jobs[1], 3)


def test_leaving_is_for_good(home: AgentHome, jobs: list[JobFile]) -> None:
    first = declare(home, "press", now())
    assert declare(home, "press", now()) == first
    first.check(home.identity().public_bytes)
    for verdict in (Verdict.APPROVED, Verdict.REJECTED):
        with pytest.raises(ApprovalError, match="left job 'press'"):
            decide(home, jobs[0], verdict, now())


def test_only_a_known_job_can_be_left(home: AgentHome) -> None:
    with pytest.raises(ApprovalError, match="no job"):
        declare(home, "../state", now())


def test_who_left_the_consortium_answers_nothing_even_of_jobs_that_come_later(
    firm: Firm, home: AgentHome, jobs: list[JobFile]
) -> None:
    declare(home, "", now())
    later = JobFile.model_validate(jobs[0].model_dump() | {"id": "later"})
    for job in (*jobs, later):
        assert firm.answer(requests(job)[0], Given()).message == Refusal(NAME, RefusalCode.LEFT)


def test_giving_up_ends_the_trainer_and_erases_keys_while_nobody_is_at_work(
    firm: Firm, home: AgentHome, jobs: list[JobFile]
) -> None:
    declare(home, "press", now())
    opened = firm._jobs[jobs[0].digest()]
    memory = home.state / "released.bin"
    write_file(memory, b"what guards later jobs")
    looks = []

    def erase() -> None:
        looks.append((opened.trainer._is_shut, opened.side._lock.locked()))
        erase_job(home, "press")

    firm.give_up("press", erase)
    assert looks == [(True, True)]
    assert not (home.job_folder("press") / "session.bin").exists()
    assert (home.job_folder("other") / "session.bin").exists()
    assert memory.exists()
    assert (home.job_folder("press") / "job.json").exists()


class Server:
    """Takes statements once it is reachable."""

    def __init__(self) -> None:
        self.heard: list[Leave] = []
        self.is_there = False

    def __call__(self, statement: bytes, _: float) -> bytes:
        if not self.is_there:
            raise LinkTimeoutError("nobody is there")
        self.heard.append(Leave.decode(statement))
        return receipt_for(statement)


@pytest.mark.parametrize("job", ["press", ""])
def test_keys_of_a_job_go_at_once_and_the_server_hears_of_it_when_it_is_there(
    firm: Firm, home: AgentHome, job: str
) -> None:
    statement, server, gone = declare(home, job, now()), Server(), threading.Event()
    with Ledger(home.ledger_file, home.identity()) as ledger:
        ledger.record(Entry(RecordKind.APPROVAL, 1, bytes(32), "press"))
    identity = home.identity()

    def departure() -> Departure:
        return Departure(home, server, threading.Event(), give_up=firm.give_up, gone=gone.set)

    with pytest.raises(LinkTimeoutError):
        departure()._look()
    assert not (home.job_folder("press") / "session.bin").exists()
    assert untold(home) == [statement]
    assert stored_receipt(home, job) is None
    server.is_there = True
    assert departure()._look() is (job == "")  # another process, after a restart
    assert server.heard == [statement]
    assert untold(home) == []
    kept = stored_receipt(home, job)
    assert kept is not None
    assert kept.leave == statement
    assert gone.is_set() is (job == "")
    assert home.identity_key_file.exists() is (job != "")
    if job == "":
        verify_export(home.ledger_file.with_name(LAST_EXPORT), identity.fingerprint)
        with pytest.raises(HomeError, match="left the consortium"):
            check_is_member(home)
        for words in (["verify"], ["export", str(home.path.parent / "left.jsonl")]):
            told = CliRunner().invoke(app, ["ledger", *words, "--home", str(home.path)])
            assert (told.exit_code, LAST_EXPORT in "".join(told.stderr.split())) == (1, True)


def test_keys_that_could_not_be_erased_are_erased_later(home: AgentHome, firm: Firm) -> None:
    """Found by hand: the last export failed on a full disk, the receipt was kept, and the identity key for ever."""
    declare(home, "", now())
    server, gone = Server(), threading.Event()
    server.is_there = True
    with Ledger(home.ledger_file, home.identity()) as ledger:
        ledger.record(Entry(RecordKind.APPROVAL, 1, bytes(32), "press"))
    in_the_way = home.ledger_file.with_name(LAST_EXPORT)
    in_the_way.mkdir()

    def look() -> bool:
        return Departure(home, server, threading.Event(), give_up=firm.give_up, gone=gone.set)._look()

    for _ in range(2):  # at the receipt, and again after a restart
        with pytest.raises(LeavingError, match="not erased yet"):
            look()
        assert stored_receipt(home, "") is not None
        assert home.identity_key_file.exists()
        assert not gone.is_set()
    in_the_way.rmdir()
    assert look()
    assert gone.is_set()
    assert not list(home.keys.glob("*.key"))
    assert in_the_way.is_file()
    assert len(server.heard) == 1


def test_repeating_the_command_erases_what_was_left_of_the_keys(home: AgentHome) -> None:
    leave = declare(home, "", now())
    in_the_way = home.ledger_file.with_name(LAST_EXPORT)
    in_the_way.parent.mkdir(exist_ok=True)
    in_the_way.mkdir()
    with pytest.raises(LeavingError):
        conclude(home, leave, receipt_for(leave.encode()))
    command = ["leave", "--consortium", "--home", str(home.path)]
    failed = CliRunner().invoke(app, command)
    assert (failed.exit_code, "not erased yet" in " ".join(failed.stderr.split())) == (1, True)
    assert home.identity_key_file.exists()
    in_the_way.rmdir()
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "its keys are erased here" in done.output.lower()
    assert not home.identity_key_file.exists()


def test_a_full_disk_does_not_end_the_thread_that_tells_the_server(
    home: AgentHome, firm: Firm, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement, server, gone, stop = declare(home, "", now()), Server(), threading.Event(), threading.Event()
    monkeypatch.setattr("dure_client.departure.RETRY_SECONDS", 0.0)
    tries = iter([OSError(28, "No space left on device")])

    def send(data: bytes, seconds: float) -> bytes:
        for error in tries:
            raise error
        server.is_there = True
        return server(data, seconds)

    Departure(home, send, stop, give_up=firm.give_up, gone=gone.set).run()
    assert gone.is_set()
    assert server.heard == [statement]


def test_an_agent_of_a_firm_that_left_ends_with_the_status_that_starts_nothing_again(home: AgentHome) -> None:
    leave = declare(home, "", now())
    home.ledger_file.parent.mkdir(exist_ok=True)
    conclude(home, leave, receipt_for(leave.encode()))
    command = [sys.executable, "-m", "dure_client.cli", "run", "--home", str(home.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "erased its keys" in done.stderr
    assert done.returncode == 78


@pytest.mark.parametrize("command", ["doctor", "ui", "status"])
def test_what_is_asked_for_after_leaving_is_answered_with_what_is_kept_and_where(home: AgentHome, command: str) -> None:
    leave = declare(home, "", now())
    home.ledger_file.parent.mkdir(exist_ok=True)
    conclude(home, leave, receipt_for(leave.encode()))
    done = CliRunner().invoke(app, [command, "--home", str(home.path)], env={"COLUMNS": "1000"})
    said = " ".join((done.stdout + done.stderr).split())
    for expected in ("this firm left the consortium", str(home.ledger_file.with_name(LAST_EXPORT)), "another folder"):
        assert expected in said
    assert "dure-agent join" not in said
    assert "private keys" not in said
    assert done.exit_code == 1 or command == "doctor"


@pytest.mark.usefixtures("certificate")
def test_a_departure_that_the_server_has_not_heard_of_is_told_by_status_and_doctor(home: AgentHome) -> None:
    declare(home, "", now())
    for command in ("status", "doctor"):
        done = CliRunner().invoke(app, [command, "--home", str(home.path)], env={"COLUMNS": "1000"})
        said = " ".join(done.stdout.split())
        assert "left" in said
        assert "the server has not heard of it yet" in said
        assert "`dure-agent leave --consortium`" in said


def test_a_receipt_of_another_root_is_not_kept_and_erases_nothing(home: AgentHome) -> None:
    statement = declare(home, "", now())
    other = Authority.create("valley", datetime(2026, 1, 1, tzinfo=UTC), key=new_tls_key(), serial=7)
    with pytest.raises(LeavingError, match="not the consortium root's"):
        conclude(home, statement, LeaveReceipt.make(statement, 1, (), other).encode())
    assert not receipt_file(home, "").exists()
    assert home.identity_key_file.exists()


@pytest.mark.parametrize("damage", [b"", b"\x01", b"\xff" * 300])
def test_a_damaged_statement_still_keeps_the_firm_out(home: AgentHome, firm: Firm, jobs: list, damage: bytes) -> None:
    declare(home, "press", now())
    leave_file(home, "press").write_bytes(damage)
    assert firm.answer(requests(jobs[0])[0], Given()).message == Refusal(NAME, RefusalCode.LEFT)
    with pytest.raises(LeavingError, match="leave again"):
        untold(home)


def test_who_left_stays_out_though_the_decision_is_damaged(home: AgentHome, firm: Firm, jobs: list[JobFile]) -> None:
    declare(home, "press", now())
    (home.job_folder("press") / APPROVAL_FILE).write_bytes(b"{")
    with pytest.raises(ApprovalError, match="left job 'press'"):
        decide(home, jobs[0], Verdict.APPROVED, now())
    for body in requests(jobs[0]):
        assert firm.answer(body, Given()).message == Refusal(NAME, RefusalCode.LEFT)


@pytest.mark.parametrize("damage", [b"", b'{"job": "press", "verdict": "appro', b"\xff" * 40, b"{}"])
def test_a_damaged_decision_is_no_yes(home: AgentHome, firm: Firm, jobs: list[JobFile], damage: bytes) -> None:
    file = home.job_folder("press") / APPROVAL_FILE
    file.write_bytes(damage)
    for body in requests(jobs[0]):
        assert firm.answer(body, Given()).message == Refusal(NAME, RefusalCode.NOT_APPROVED)
    assert file.read_bytes() == damage
    assert approved_by_people(home) == [jobs[1]]


@pytest.mark.parametrize("job", ["press", ""])
@pytest.mark.parametrize("damaged", ["ledger", "another job", "decision"])
def test_damaged_files_keep_nobody_from_leaving(home: AgentHome, job: str, damaged: str) -> None:
    """A power cut tears the ledger's last line, and only an agent's start repairs it."""
    with Ledger(home.ledger_file, home.identity()) as ledger:
        ledger.record(Entry(RecordKind.RELEASE, 1, bytes(32), "press", 1, 1))
    if damaged == "ledger":
        with home.ledger_file.open("ab") as file:
            file.write(b'{"torn')
    elif damaged == "decision":
        (home.job_folder("press") / APPROVAL_FILE).write_bytes(b'{"job": "pre')
    else:
        (other := home.job_folder("another")).mkdir()
        (other / "job.json").write_bytes(b"{")
    named = [job] if job else ["--consortium"]
    done = CliRunner().invoke(app, ["leave", *named, "--yes", "--seconds", "0.2", "--home", str(home.path)])
    assert done.exit_code == 0, done.output
    assert leave_file(home, job).exists()
    assert ("cannot be told" in done.output) is (damaged == "ledger")


def test_what_remains_is_what_the_ledger_says_was_released(home: AgentHome) -> None:
    with Ledger(home.ledger_file, home.identity()) as ledger:
        for number, kind in (
            (0, "release"),
            (1, "release"),
            (2, "masked-update"),
            (1, "masked-update"),
            (4, "release"),
        ):
            ledger.record(Entry(RecordKind(kind), 10, bytes(32), "press", number, 1))
        ledger.record(Entry(RecordKind.RELEASE, 10, bytes(32), "other", 9, 1))
    assert what_remains(home, ["press"]) == [Remains("press", "retry", ((0, 1), (4, 4)), ((2, 2),))]


class Sent:
    """Takes the place of the link: notes what would leave."""

    def __init__(self) -> None:
        self.replies: list[Envelope] = []
        self.blobs: list[str] = []

    def upload(self, _file: Path, ref: ArrayRef, _reply: Envelope, _seconds: float) -> None:
        self.blobs.append(ref.sha256)

    def reply(self, reply: Envelope, _kind: RecordKind, _seconds: float) -> None:
        self.replies.append(reply)


def test_an_answer_that_was_made_before_does_not_leave_any_more(
    tmp_path: Path,
    link: LinkClient,  # noqa: F811
) -> None:
    left: set[str] = set()
    agent = Agent(tmp_path, NODE, link, Calls(), clock=lambda: NOW, has_left=left.__contains__)
    sent = agent._link = Sent()
    message = Envelope.request(1, NODE, "press/1/1/update", "query.dure", b"", (), NOW, 60.0)
    vector = np.arange(2_000, dtype=np.uint64)
    blob = vector.tobytes()
    (tmp_path / "outbox" / hashlib.sha256(blob).hexdigest()).write_bytes(blob)
    receipt = next(each for each in SAMPLES if type(each).__name__ == "MaskedUpdate")
    made = message.reply(encode(receipt), (ArrayRef.of("masked", vector),), created_at=NOW)
    agent._keep(tmp_path / "answers" / message.message_id, made)
    left.add("press")
    agent.handle(message)
    assert sent.blobs == []
    assert [reply.error_code for reply in sent.replies] == [RefusalCode.LEFT]
    left.clear()
    agent.handle(message)
    assert [reply.error_code for reply in sent.replies] == [RefusalCode.LEFT] * 2, "what was said once is said again"


@pytest.mark.usefixtures("firm")
def test_the_page_leaves_a_job_as_the_command_does_though_nobody_hears_it(home: AgentHome) -> None:
    write_file(home.tls_certificate_file, AUTHORITY.certificate_pem)
    said = leave_job(home, "press", seconds=0.2)
    assert said == "This firm left press. The server hears of it once it is reachable and the agent runs."
    assert known_job(home, "press").state == "left"
    assert [statement.job for statement in untold(home)] == ["press"]
