"""What a firm, an operator or a peer gets wrong while everything runs: who is told what, and that the rest goes on."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

import grpc
import numpy as np
import pytest

from dure_client.jobs.approvals import Verdict, decide, known_job
from dure_client.link.client import LinkClient
from dure_models.contract import DataContract
from dure_models.digest import model_digest
from dure_protocols.errors import RefusalCode
from dure_protocols.frames import DURE_MESSAGE_TYPE, Envelope, Welcome, node_id
from dure_protocols.job import JobFile
from dure_protocols.messages import AskKeys, Finished, Proposal, Refusal, decode, encode
from dure_server.jobs import INITIAL_MODEL_FILE, JobDraft, make_job, participating
from dure_server.link.desk_client import DeskClient
from dure_server.link.desk_frames import Parcel
from dure_server.store import JobState
from tests.end_to_end import tiny
from tests.end_to_end.link_site import Account
from tests.end_to_end.recorded_mills import WATCHED, Mills, Recording
from tests.end_to_end.tiny import until

# grpc's own thread may ask a channel for its state while the channel is being closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(autouse=True)
def runs(recording: Recording, mills: Mills) -> None:
    """The recording's end leaves all agents running."""
    for firm in tiny.ROWS:
        if firm not in mills.consortium.processes:
            mills.consortium.start_agent(firm)


def test_a_missing_column_is_told_to_the_operator_by_firm_and_code_and_to_the_firm_by_its_name(
    recording: Recording, mills: Mills
) -> None:
    why = "refused: data-contract, its data do not fit the contract: it runs `dure-agent data check`"
    assert recording.sentences[-1] == f"2 of at least 3 firms are ready; missing: alder ({why})"
    assert "run `dure-agent data check`" in (mills.home.logs / "agent.log").read_text()
    assert "the column 'tool_wear' (float, min) is missing" in (mills.home.logs / "trainer.log").read_text()


def test_a_firm_that_mended_its_data_takes_part_without_being_started_again(recording: Recording, mills: Mills) -> None:
    rounds = tiny.published(mills.consortium, recording.job)
    assert {row.number: tuple(row.members) for row in rounds} == dict.fromkeys(range(4), tuple(sorted(tiny.ROWS)))


def test_a_job_with_a_model_of_another_digest_fails_and_says_who_has_another(mills: Mills) -> None:
    job = propose_changed(mills, "foreign", lambda job: changed_digest(job, "0" * 64))
    until(lambda: tiny.state(mills.consortium, job)[0] is not JobState.RUNNING, mills.consortium)
    state, reason = tiny.state(mills.consortium, job)
    assert state is JobState.FAILED
    for firm in tiny.ROWS:
        assert f"{firm} refused the job (model-digest)" in reason
    assert "install the same version" in reason
    assert f"here {model_digest('tabular')[:16]}… is installed" in agent_log(mills)


def test_a_job_that_a_firm_rejects_fails_with_its_name(mills: Mills) -> None:
    consortium = mills.consortium
    job = consortium.propose(tiny.draft(consortium, "unwanted", rounds=2))
    until((mills.home.job_folder(job.id) / "job.json").exists, consortium)
    decide(mills.home, known_job(mills.home, job.id).job, Verdict.REJECTED, datetime.now(UTC))
    until(lambda: tiny.state(consortium, job)[0] is not JobState.RUNNING, consortium)
    state, reason = tiny.state(consortium, job)
    assert (state, reason.split(":")[0]) == (JobState.FAILED, "alder refused the job (rejected-by-firm)")


def test_while_a_firm_has_not_accepted_another_the_console_says_so_and_then_the_job_starts(mills: Mills) -> None:
    consortium, policy = mills.consortium, mills.home.policy_file
    text = policy.read_text()
    policy.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith("birch =")))
    job = consortium.propose(tiny.draft(consortium, "pins", rounds=1))
    tiny.approve(consortium, job)
    why = "refused: roster, it has not accepted every firm of the job"
    until(lambda: tiny.sentence(consortium, job) == f"waiting for alder ({why}) to approve the job", consortium)
    assert "run `dure-agent accept birch" in agent_log(mills)
    policy.write_text(text)
    until(lambda: tiny.stands_in(consortium, job)[0] not in {"", "proposal"}, consortium)
    stop(mills, job)


@pytest.fixture(scope="module")
def desk(mills: Mills) -> DeskClient:
    return DeskClient(mills.consortium.home.desk_socket)


def proposal(job: JobFile) -> bytes:
    return encode(Proposal(job.to_bytes()))


def with_other_bytes(job: JobFile) -> bytes:
    """The proposal, with a letter before a number in the job file."""
    return encode(Proposal(job.to_bytes().replace(b'"seed":', b'"seed":x')))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(lambda job: b"", RefusalCode.MALFORMED, id="nothing at all"),
        pytest.param(lambda job: b"\xff", RefusalCode.MALFORMED, id="an unknown kind"),
        pytest.param(lambda job: proposal(job)[:-1], RefusalCode.MALFORMED, id="the last byte is missing"),
        pytest.param(lambda job: proposal(job)[:5], RefusalCode.MALFORMED, id="all but the beginning is missing"),
        pytest.param(lambda job: proposal(job) + b"\0", RefusalCode.MALFORMED, id="a byte too many"),
        pytest.param(with_other_bytes, RefusalCode.MALFORMED, id="a job file that is none"),
        pytest.param(
            lambda job: encode(Finished(WATCHED, bytes(32))), RefusalCode.MALFORMED, id="a firm's own message"
        ),
        pytest.param(
            lambda job: encode(AskKeys(bytes(32), 1)), RefusalCode.UNKNOWN_JOB, id="a job that nobody proposed"
        ),
    ],
)
def test_a_damaged_or_foreign_message_gets_a_code_and_the_agent_goes_on(
    mills: Mills, recording: Recording, desk: DeskClient, body: Callable[[JobFile], bytes], code: RefusalCode
) -> None:
    before = mills.consortium.processes[WATCHED].popen.pid
    answer = decode(ask(mills, desk, body(recording.job)).body)
    assert isinstance(answer, Refusal)
    assert (answer.firm, answer.code) == (WATCHED, code), answer
    mills.consortium.check()
    assert mills.consortium.processes[WATCHED].popen.pid == before


@contextmanager
def a_link_that_says(mills: Mills, sayings: list[list[bytes]]) -> Iterator[int]:
    """A server with the consortium's certificate which has some things to say a subscription. Yields its port."""

    def subscribe(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from sayings.pop(0)

    home = mills.consortium.home
    pair = (home.server_key_file.read_bytes(), home.server_certificate_file.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], home.root_file.read_bytes(), require_client_auth=True)
    server = grpc.server(ThreadPoolExecutor(2))
    handlers = {"Subscribe": grpc.unary_stream_rpc_method_handler(subscribe)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("dure.link.Firm", handlers),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


def test_what_is_no_message_on_the_stream_is_dropped_and_the_agent_listens_on(mills: Mills) -> None:
    node = node_id(mills.consortium.name, WATCHED)
    whole = Envelope.request(7, node, "probe/1/0/probe", DURE_MESSAGE_TYPE, b"x", (), time.time(), 60.0).encode()
    welcome = Welcome("0.1.0", 2, time.time()).encode()
    damaged = [b"", whole[:-1], whole + b"\0", bytes([whole[0] ^ 1]) + whole[1:]]
    no_welcome = [[], [b""], [welcome[:-1]], [whole]]
    sayings = [*no_welcome, *([welcome, each] for each in damaged), [welcome, whole]]
    with a_link_that_says(mills, sayings) as port:
        client = LinkClient(f"127.0.0.1:{port}", mills.home.keys, Account())
        assert next(client.messages()).encode() == whole
        client.close()
    assert sayings == []


def test_after_all_that_a_job_runs_to_its_end(mills: Mills) -> None:
    consortium = mills.consortium
    job = consortium.propose(tiny.draft(consortium, "after-all", rounds=1))
    tiny.approve(consortium, job)
    until(lambda: tiny.is_finished(consortium, job), consortium)
    assert all(tuple(row.members) == tuple(sorted(tiny.ROWS)) for row in tiny.published(consortium, job))


def test_an_agent_killed_while_it_trains_its_own_model_does_so_when_it_is_started_again(mills: Mills) -> None:
    consortium = mills.consortium
    job = consortium.propose(tiny.draft(consortium, "own-model", rounds=4, hidden=700))
    tiny.approve(consortium, job)
    until((mills.home.job_folder(job.id) / "final.f32").exists, consortium)
    consortium.stop(WATCHED, kill=True)
    assert tiny.result(mills.home, job) is None
    consortium.start_agent(WATCHED)
    until(lambda: tiny.result(mills.home, job), consortium)


def ask(mills: Mills, desk: DeskClient, body: bytes) -> Envelope:
    """Ask the watched firm as a coordinator does; its answer."""
    node = node_id(mills.consortium.name, WATCHED)
    group = f"probe/{time.time_ns()}/0/probe"
    message = Envelope.request(7, node, group, DURE_MESSAGE_TYPE, body, (), time.time(), 60.0)
    desk.push([Parcel(WATCHED, message.encode())])
    return next(desk.replies([message.message_id], wait=True, timeout_seconds=30))[1]


def changed_digest(job: JobFile, digest: str) -> JobFile:
    return job.model_copy(update={"model": job.model.model_copy(update={"digest": digest})})


def propose_changed(mills: Mills, name: str, change: Callable[[JobFile], JobFile]) -> JobFile:
    """Propose what no honest server would: a job file that was changed after it was made."""
    consortium = mills.consortium
    made = JobDraft.read(tiny.draft(consortium, name, rounds=1))
    contract = DataContract.from_toml((consortium.folder / made.contract).read_text())
    job, initial = make_job(made, contract, consortium.name, participating(consortium.store, ()))
    job = change(job)
    folder = consortium.home.job_folder(job.id)
    folder.mkdir(parents=True)
    np.asarray(initial, "<f4").tofile(folder / INITIAL_MODEL_FILE)
    with consortium.store.transaction() as at:
        at.jobs.propose(job)
        at.jobs.set_state(job.id, JobState.RUNNING)
    return job


def stop(mills: Mills, job: JobFile) -> None:
    with mills.consortium.store.transaction() as at:
        at.jobs.set_state(job.id, JobState.STOPPED)


def agent_log(mills: Mills) -> str:
    return (mills.home.logs / "agent.log").read_text()
