"""The same job and the same two apps on Dure's link, in one process, and on a stock SuperLink with SuperNodes."""

import os
import random
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from dure_client.jobs.results import JobResult
from dure_client.ledger import read_records, verify_file
from dure_lab.consortium import LocalConsortium
from dure_lab.in_process import run_in_process
from dure_protocols.global_state import model_digest
from dure_protocols.ledger import RecordKind
from dure_server.jobs import keep
from dure_server.operation import Operation
from dure_server.store import JobState, Store
from dure_server.superlink.bundle import PACKAGE, write_bundle
from tests.compatibility import three_firms
from tests.compatibility.stock_superlink import StockSuperLink
from tests.compatibility.three_firms import FIRMS, MODEL, ROUNDING_STEP, ROUNDS, Outcome

pytestmark = pytest.mark.timeout(600)

JOB_SECONDS = 400.0  # a SuperNode polls every 3 s and starts a process a message: 160 s on two busy cores
SUPERLINK = pytest.param("superlink", marks=pytest.mark.slow)  # two minutes
RUNTIMES = ("link", "in_process", SUPERLINK)
RECORDING_SERVER = '''
"""The bundle's server side, with a Grid that writes down what the operator of a SuperLink gets to see."""
import itertools, os
from pathlib import Path
import numpy as np
from flwr.serverapp import ServerApp
from dure_server.superlink.app import coordinate

app = ServerApp()

@app.main()
def main(grid, context):
    pull, numbers = grid.pull_messages, itertools.count()
    def pull_messages(ids):
        replies = list(pull(ids))
        for reply in replies:
            for name, array in (reply.content.get("arrays", {}) if reply.has_content() else {}).items():
                group = reply.metadata.group_id.replace("/", "_")
                np.save(Path(os.environ["DURE_TEST_SEEN"]) / f"{group}-{name}-{next(numbers)}.npy", array.numpy())
        return replies
    grid.pull_messages = pull_messages
    coordinate(grid, context)
'''


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows") / "data"
    three_firms.write_data(folder)
    return folder


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Outcome:
    """Dure's own link: real processes, enrolment, TLS. The firms' identity keys are there before they join."""
    with LocalConsortium(tmp_path_factory.mktemp("link"), three_firms.CONSORTIUM) as consortium:
        consortium.start_server()
        for firm in FIRMS:
            three_firms.make_home(
                consortium.folder / "firms" / firm, three_firms.CONSORTIUM, firm, three_firms.seed_of(firm)
            )
            (consortium.folder / "firms" / firm / "agent.toml").unlink()
            three_firms.connect_data(consortium.enrol(firm), data)
            consortium.start_agent(firm)
        consortium.introduce(MODEL)
        job, initial = three_firms.make_the_job()
        keep(consortium.home, consortium.store, job, initial, "test", Operation(keep_sums=True))
        with consortium.store.transaction() as at:
            at.jobs.set_state(job.id, JobState.RUNNING)
        three_firms.approve(consortium.agents, job)
        wait_for_end(consortium.store, job.id, consortium.check)
        wait_until(
            lambda: all(home.job_folder(job.id).joinpath("result.json").exists() for home in consortium.agents.values())
        )
        final = np.fromfile(consortium.home.job_folder(job.id) / "final.f32", "<f4")
        return three_firms.outcome_of(job, consortium.agents, final, consortium.store, consortium.home.released)


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Outcome:
    return run_here(tmp_path_factory.mktemp("here"), data)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every array that the SuperLink handed to the coordinator."""
    return tmp_path_factory.mktemp("seen")


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory, data: Path, seen: Path) -> Outcome:
    """A stock SuperLink with a SuperNode a firm, all as Flower ships them."""
    folder = tmp_path_factory.mktemp("superlink")
    server, job = three_firms.make_server(folder / "server")
    homes = three_firms.make_homes(folder / "firms", data)
    three_firms.approve(homes, job)
    bundle = write_bundle(folder / "bundle")
    (bundle / PACKAGE / "server.py").write_text(RECORDING_SERVER)
    environment = {"DURE_SERVER_HOME": str(server.path), "DURE_TEST_SEEN": str(seen)}
    store = Store.open(server.store_url(server.settings()))
    flower = StockSuperLink(folder, free_ports(4), environment)
    try:
        for firm, home in homes.items():
            flower.start_node(firm, {"DURE_AGENT_HOME": str(home.path)})
        flower.submit(bundle, 'dure-job="press"')
        try:
            wait_for_end(store, job.id, lambda: None)
        except AssertionError as error:
            raise AssertionError("\n".join(flower.log(name)[-3000:] for name in ("superlink", *FIRMS))) from error
        final = np.fromfile(server.job_folder(job.id) / "final.f32", "<f4")
        return three_firms.outcome_of(job, homes, final, store, server.released)
    finally:
        flower.close()
        store.close()


def run_here(folder: Path, data: Path, seed: int | None = None, *, in_turn: bool = False) -> Outcome:
    """The in-process runtime; with a seed, also the rounding is repeatable."""
    job, initial = three_firms.make_the_job()
    homes = three_firms.make_homes(folder / "firms", data)
    final = run_in_process(
        job,
        initial,
        homes,
        folder / "run",
        in_turn=in_turn,
        randomness=lambda firm: os.urandom if seed is None else random.Random(f"{seed}/{firm}").randbytes,
    )
    store = Store.open(f"sqlite:///{folder / 'run' / 'store.sqlite'}")
    try:
        return three_firms.outcome_of(job, homes, final, store, folder / "run" / "sums")
    finally:
        store.close()


def wait_for_end(store: Store, job_id: str, check) -> None:
    """Wait until the job is finished; fail with its reason if it ends otherwise."""
    deadline = time.monotonic() + JOB_SECONDS
    while True:
        with store.reading() as at:
            row, progress = at.jobs.get(job_id), at.progress.get(job_id)
        if row.state is JobState.FINISHED:
            return
        assert row.state in {JobState.RUNNING, JobState.PROPOSED}, f"{row.state}: {row.reason}"
        assert time.monotonic() < deadline, progress.sentence if progress else "the job was not begun"
        check()
        time.sleep(0.1)


def wait_until(holds, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(params=RUNTIMES)
def outcome(request: pytest.FixtureRequest) -> Outcome:
    return request.getfixturevalue(request.param)


def test_all_firms_and_the_server_end_with_one_model(outcome: Outcome) -> None:
    assert sorted(outcome.sums) == list(range(ROUNDS + 1))
    np.testing.assert_array_equal(outcome.server, outcome.state.final)
    for firm in FIRMS:
        state = outcome.firm_state(firm)
        assert (state.round, state.hash) == (outcome.state.round, outcome.state.hash)
        kept = np.fromfile(outcome.folder(firm).final_file, "<f4")
        assert model_digest(kept) == model_digest(outcome.server)


def test_each_firm_gets_its_result(outcome: Outcome) -> None:
    for number, firm in enumerate(FIRMS):
        result = JobResult.read(outcome.folder(firm).result_file)
        assert result.num_train + result.num_validation == 160 + 20 * number
        assert result.num_test == 60


@pytest.mark.parametrize("other", ["in_process", SUPERLINK])
def test_runtimes_agree_up_to_the_rounding_of_updates(
    link: Outcome, other: str, request: pytest.FixtureRequest
) -> None:
    outcome: Outcome = request.getfixturevalue(other)
    assert outcome.job.digest() == link.job.digest()
    np.testing.assert_array_equal(outcome.statistics, link.statistics)  # statistics are exact
    np.testing.assert_array_equal(outcome.state.normalisation, link.state.normalisation)
    allowed = ROUNDS * len(FIRMS) * ROUNDING_STEP
    np.testing.assert_allclose(outcome.state.model, link.state.model, rtol=0, atol=allowed)
    moved = np.abs(link.state.model - three_firms.make_the_job()[1]).max()
    assert moved > 20 * allowed


def test_with_the_same_randomness_a_job_repeats_bit_for_bit(tmp_path: Path, data: Path) -> None:
    first = run_here(tmp_path / "first", data, seed=1)
    again = run_here(tmp_path / "again", data, seed=1, in_turn=True)
    for number, words in first.sums.items():
        np.testing.assert_array_equal(words, again.sums[number])
    assert first.state.hash == again.state.hash


@pytest.mark.slow
def test_a_superlink_sees_no_update(superlink: Outcome, seen: Path) -> None:
    plain = {firm: three_firms.plaintext_statistics(superlink.job, superlink.homes[firm]) for firm in FIRMS}
    np.testing.assert_array_equal(superlink.statistics, sum(plain.values()))
    statistics = [three_firms.untagged(superlink.job, np.load(file)) for file in seen.glob("press_0_*")]
    assert len(statistics) == len(FIRMS)
    for vector in statistics:
        assert not any(np.array_equal(vector, firm) for firm in plain.values())
    assert not np.array_equal(sum(statistics), superlink.statistics)  # the self masks are still on
    for file in seen.glob("press_1_*"):
        bits = np.unpackbits(np.load(file).view(np.uint8))
        assert abs(bits.mean() - 0.5) < 4 * 0.5 / np.sqrt(bits.size)


@pytest.mark.slow
def test_on_a_supernode_the_ledger_tells_what_left(superlink: Outcome, seen: Path) -> None:
    for firm, home in superlink.homes.items():
        records = list(read_records(home.ledger_file))
        verify_file(home.ledger_file, home.identity().public_bytes)
        kinds = [record.entry.kind for record in records]
        assert kinds.count(RecordKind.MASKED_UPDATE) == kinds.count(RecordKind.BLOB) == ROUNDS + 1
        assert {RecordKind.APPROVAL, RecordKind.KEYS, RecordKind.RELEASE, RecordKind.FINISHED} < set(kinds)
        sizes = {record.entry.size_bytes for record in records if record.entry.kind is RecordKind.BLOB}
        assert sizes == {8 * words.size for words in superlink.sums.values()}, firm
