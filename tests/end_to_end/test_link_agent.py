"""Flower's Grid on one end, a Flower ClientApp in an agent process on the other, and kills in between."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from dure_protocols.errors import MisuseError
from dure_server.flower import GrpcGrid, HeldArray, arrays_of, body_of, content
from dure_server.link.errors import GridError, LinkAwayError
from tests.end_to_end.link_agent import CALLS, LENGTH
from tests.end_to_end.link_site import CONSORTIUM, LinkSite, eventually

REPOSITORY = Path(__file__).parents[2]


class AgentProcess:
    def __init__(self, site: LinkSite, firm: str) -> None:
        self._site, self._firm = site, firm
        self.state = site.folder / firm / "state"
        self._process: subprocess.Popen[bytes] | None = None

    def slow_start(self) -> None:
        """Start with an app that takes half a second to answer."""
        self.start("0.5")

    def start(self, delay_seconds: str = "0") -> None:
        keys, address = self._site.folder / self._firm / "keys", f"127.0.0.1:{self._site.port}"
        arguments = [str(keys), str(self.state), address, self._firm, delay_seconds]
        command = [sys.executable, "-m", "tests.end_to_end.link_agent", *arguments]
        with (self._site.folder / self._firm / "agent.log").open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, cwd=REPOSITORY)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def num_calls(self) -> int:
        calls = self.state / CALLS
        return len(calls.read_text().splitlines()) if calls.exists() else 0

    @property
    def num_answers(self) -> int:
        return len([file for file in self.state.glob("answers/*") if not file.suffix])


@pytest.fixture
def agent(site: LinkSite, firm: str) -> Iterator[AgentProcess]:
    made = AgentProcess(site, firm)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def grid(site: LinkSite) -> Iterator[GrpcGrid]:
    made = GrpcGrid(site.home.desk_socket, site.home.uploads, site.home.released, 7, CONSORTIUM)
    yield made
    made.desk.close()


def ask(grid: GrpcGrid, firm: str, group: str, body: bytes = b"go", **arrays: Array) -> Message:
    return Message(content(body, arrays), grid.node_of(firm), "query.dure", group_id=group, ttl=60.0)


def check_right(reply: Message) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    """The reply's vector is mapped, not copied, and is the one its body names."""
    vector = arrays_of(reply)["masked"].numpy()
    assert isinstance(vector, np.memmap)
    drawn = list(body_of(reply))
    assert np.array_equal(vector, np.random.default_rng(drawn).integers(0, 1 << 63, LENGTH, dtype=np.uint64))
    return vector.view(np.uint64)


def test_a_message_with_a_shared_array_comes_back_with_a_mapped_one(
    grid: GrpcGrid, agent: AgentProcess, firm: str
) -> None:
    shared = grid.share(np.arange(9000, dtype=np.uint64))
    (reply,) = grid.send_and_stream([ask(grid, firm, "job/1/0/a", sum=shared)], timeout=20)
    check_right(reply)
    held = arrays_of(reply)["masked"]
    assert isinstance(held, HeldArray)
    assert hashlib.sha256(held.numpy().tobytes()).hexdigest() == held.sha256
    grid.forget([reply])
    assert list(grid.pull_messages([reply.metadata.reply_to_message_id])) == []


def test_a_grid_that_was_started_again_finds_the_recorded_reply(
    site: LinkSite, grid: GrpcGrid, agent: AgentProcess, firm: str
) -> None:
    (first,) = grid.send_and_receive([ask(grid, firm, "job/1/0/a")], timeout=20)
    again = GrpcGrid(site.home.desk_socket, site.home.uploads, site.home.released, 7, CONSORTIUM)
    (second,) = again.send_and_receive([ask(again, firm, "job/1/0/a")], timeout=20)
    again.desk.close()
    assert body_of(first) == body_of(second)
    check_right(second)
    assert agent.num_calls == 1


def test_nothing_but_a_code_leaves_when_the_app_refuses_or_fails(
    site: LinkSite, grid: GrpcGrid, agent: AgentProcess, firm: str
) -> None:
    orders = {b"refuse": "cohort-too-small", b"fail": "internal", b"other form": "internal"}
    for order, code in orders.items():
        group = f"job/1/0/{order.decode().replace(' ', '-')}"
        (reply,) = grid.send_and_receive([ask(grid, firm, group, order)], timeout=20)
        assert reply.has_error()
        assert reply.error.reason == code
    recorded = b"".join(answer.read_bytes() for answer in agent.state.glob("answers/*"))
    assert b"row 17" not in recorded
    assert b"policy" not in recorded
    assert "row 17" in (site.folder / firm / "agent.log").read_text()


def test_an_agent_killed_before_its_answer_left_sends_the_identical_answer(
    site: LinkSite, grid: GrpcGrid, agent: AgentProcess, firm: str
) -> None:
    eventually(lambda: firm in grid.connected())
    # The desk's message is delivered, then the link dies: the answer is made and cannot leave.
    (message_id,) = grid.push_messages([ask(grid, firm, "job/1/0/a")])
    eventually(lambda: agent.num_calls == 1)
    site.kill()
    eventually(lambda: agent.num_answers == 1)
    stored = (agent.state / "answers" / message_id).read_bytes()
    agent.kill()
    site.start()
    agent.start()
    (reply,) = grid.receive([message_id], timeout=20)
    check_right(reply)
    assert agent.num_calls == 1
    assert (agent.state / "answers" / message_id).read_bytes() == stored
    eventually(lambda: not list(agent.state.glob("outbox/*")))


@pytest.mark.parametrize("victim", ["agent", "link"])
@pytest.mark.parametrize("after_ms", [5, 60])
def test_kills_at_any_moment_lose_nothing_and_answer_once(
    site: LinkSite, grid: GrpcGrid, agent: AgentProcess, firm: str, victim: str, after_ms: int
) -> None:
    eventually(lambda: firm in grid.connected())
    ids = list(grid.push_messages([ask(grid, firm, f"job/{number}/0/a") for number in range(4)]))
    eventually(lambda: agent.num_calls >= 1)
    eventually(lambda: True, after_ms / 1000)
    kill_and_restart = {"agent": (agent.kill, agent.start), "link": (site.kill, site.start)}[victim]
    for step in kill_and_restart:
        step()
    replies = list(grid.receive(ids, timeout=30))
    assert {reply.metadata.reply_to_message_id for reply in replies} == set(ids)
    for reply in replies:
        check_right(reply)


def test_a_firm_that_does_not_answer_in_time_is_missing_and_the_others_are_there(
    site: LinkSite, grid: GrpcGrid, agent: AgentProcess, firm: str, other: str
) -> None:
    eventually(lambda: firm in grid.connected())
    messages = [ask(grid, name, "job/1/0/a") for name in (firm, other)]
    replies = list(grid.send_and_stream(messages, timeout=2))
    assert [reply.metadata.src_node_id for reply in replies] == [grid.node_of(firm)]


@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        RecordDict({"dure": ConfigRecord({"body": "text"})}),
        RecordDict({"dure": ConfigRecord({"body": b"x", "more": 1})}),
        RecordDict({"dure": ConfigRecord({"body": b"x"}), "else": ConfigRecord()}),
        RecordDict({"dure": ConfigRecord({"body": b"x"}), "arrays": ConfigRecord()}),
        RecordDict({"dure": ArrayRecord()}),
    ],
)
def test_a_message_of_another_form_is_not_sent(grid: GrpcGrid, firm: str, records: RecordDict) -> None:
    message = Message(records, grid.node_of(firm), "query.dure", group_id="job/1/0/a")
    with pytest.raises(MisuseError, match="message of Dure"):
        grid.push_messages([message])


def test_a_message_to_an_unknown_node_is_not_sent(grid: GrpcGrid) -> None:
    with pytest.raises(MisuseError, match="no connected firm"):
        grid.push_messages([Message(content(b"x"), 12345, "query.dure", group_id="job/1/0/a")])


def test_the_same_id_with_another_content_is_refused_with_what_to_do(grid: GrpcGrid, firm: str) -> None:
    grid.push_messages([ask(grid, firm, "job/1/0/a", b"one")])
    with pytest.raises(GridError, match="another attempt"):
        grid.push_messages([ask(grid, firm, "job/1/0/a", b"two")])


def test_a_coordinator_hears_that_no_link_runs(site: LinkSite, tmp_path: Path) -> None:
    from dure_server.link.desk_client import DeskClient

    desk = DeskClient(tmp_path / "no.sock", patience_seconds=0.2)
    with pytest.raises(LinkAwayError, match="dure-server run"):
        desk.connected()
    desk.close()


@pytest.mark.parametrize("kind", ["server", "client"])
def test_a_held_array_passes_through_flowers_own_encoding_as_a_plain_array(kind: str) -> None:
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    import dure_client.flower

    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    made = {"server": HeldArray, "client": dure_client.flower.HeldArray}[kind](array)
    assert made.numpy() is array
    record = ArrayRecord()
    record["a"] = made
    contents = {number: item.deflate() for number, item in get_all_nested_objects(record).items()}
    back = inflate_object_from_contents(record.object_id, contents)
    assert isinstance(back, ArrayRecord)
    assert np.array_equal(back["a"].numpy(), array)


def cut(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def alter(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(b"\xff" * 4096)


@pytest.mark.parametrize(("what", "damage"), [("answers/*", cut), ("outbox/*", cut), ("outbox/*", alter)])
def test_an_answer_that_a_power_cut_damaged_becomes_state_lost_and_is_not_made_anew(
    site: LinkSite, grid: GrpcGrid, agent: AgentProcess, firm: str, what: str, damage: Callable[[Path], None]
) -> None:
    agent.kill()
    group = f"job/1/0/{what[0]}{damage.__name__}"
    (message_id,) = grid.push_messages([ask(grid, firm, group)])
    agent.slow_start()  # so that the link can be gone before the answer is
    eventually(lambda: agent.num_calls == 1)
    site.kill()
    eventually(lambda: agent.num_answers == 1)
    agent.kill()
    files = list(agent.state.glob(what))
    assert len(files) == 1
    damage(files[0])
    site.start()
    agent.start()
    (reply,) = grid.receive([message_id], timeout=20)
    assert reply.has_error()
    assert reply.error.reason == "state-lost"
    assert agent.num_calls == 1
