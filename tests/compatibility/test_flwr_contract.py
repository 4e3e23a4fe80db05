"""What Dure relies on of Flower. When flwr is upgraded, each failure here says where to look."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import flwr
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from dure_client.flower import HeldArray as FirmsArray
from dure_lab.in_process import InProcessGrid
from dure_protocols.frames import DURE_MESSAGE_TYPE
from dure_server.flower import GrpcGrid, HeldArray

ROOT = Path(__file__).parents[2]
ADAPTERS = {
    "server/dure_server/flower/app.py",
    "server/dure_server/flower/content.py",
    "server/dure_server/flower/firms.py",
    "server/dure_server/flower/grid.py",
    "server/dure_server/superlink/app.py",
    "client/dure_client/flower.py",
    "client/dure_client/supernode_app.py",
    "lab/dure_lab/bench/secagg/flower.py",  # what `dure bench secagg` compares with
    "lab/dure_lab/in_process.py",
}
APPS = ("dure_server.flower", "dure_client.flower", "dure_lab.in_process", "dure_server.coordinator.__main__")


@pytest.fixture(autouse=True)
def run_of_this_process() -> None:
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 5, 5, 1


def test_the_version_is_the_one_that_was_tested() -> None:
    assert flwr.__version__ == "1.41.0", "another flwr: pin it in pyproject.toml after all tests in here pass"


def test_flwr_is_imported_by_the_adapters_only() -> None:
    importing = set()
    for package in ("server", "client", "models", "pages", "protocols", "lab"):
        for file in (ROOT / package).rglob("*.py"):
            names = [name for node in ast.walk(ast.parse(file.read_text())) for name in _imported(node)]
            if any(name.split(".")[0] == "flwr" for name in names):
                importing.add(file.relative_to(ROOT).as_posix())
    assert importing == ADAPTERS, "keep Flower in one place a role, or add the new adapter here with a reason"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_a_message_takes_run_and_sender_from_the_process() -> None:
    message = Message(RecordDict(), 7, DURE_MESSAGE_TYPE, group_id="job/1/1/join", ttl=60.0)
    assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.dst_node_id) == (5, 1, 7), (
        "Message(...) no longer reads TaskIdentity: see GrpcGrid.__init__ and InProcessGrid.__init__"
    )
    assert (message.metadata.group_id, message.metadata.ttl) == ("job/1/1/join", 60.0)
    assert message.metadata.message_id == "", "ids are given by the runtime: see Envelope.request, InProcessGrid"


def test_a_message_that_arrived_is_rebuilt_from_its_metadata() -> None:
    metadata = Metadata(
        run_id=5,
        message_id="a" * 32,
        src_node_id=7,
        dst_node_id=1,
        reply_to_message_id="b" * 32,
        group_id="g",
        created_at=1.0,
        ttl=60.0,
        message_type=DURE_MESSAGE_TYPE,
    )
    for message in (
        Message(content=RecordDict(), metadata=metadata),  # type: ignore[call-overload]
        Message(error=Error(2, "internal"), metadata=metadata),  # type: ignore[call-overload]
    ):
        assert message.metadata.message_id == "a" * 32, "Message(metadata=…): see to_message and GrpcGrid._message"
        assert message.metadata.reply_to_message_id == "b" * 32


def test_a_reply_goes_back_to_who_asked() -> None:
    request = Message(RecordDict(), 7, DURE_MESSAGE_TYPE, group_id="g")
    request.metadata.__dict__["_message_id"] = "c" * 32
    reply = Message(RecordDict(), reply_to=request)
    found = (reply.metadata.src_node_id, reply.metadata.dst_node_id, reply.metadata.reply_to_message_id)
    assert found == (7, 1, "c" * 32), "Message(reply_to=…) changed: see client_app and InProcessGrid.push_messages"
    assert (reply.metadata.group_id, reply.metadata.message_type) == ("g", DURE_MESSAGE_TYPE)


def test_an_error_keeps_code_and_reason_and_has_no_content() -> None:
    request = Message(RecordDict(), 7, DURE_MESSAGE_TYPE)
    reply = Message(Error(2, "data"), reply_to=request)
    assert reply.has_error(), "Error replies changed: see client_app, FlowerApp and GridFirms"
    assert not reply.has_content()
    assert (reply.error.code, reply.error.reason) == (2, "data")


@pytest.mark.parametrize("held", [HeldArray, FirmsArray])
def test_an_array_of_ours_stays_itself_until_a_runtime_wants_bytes(held: type[HeldArray]) -> None:
    ndarray = np.arange(4, dtype=np.uint64)
    record = ArrayRecord()
    record["masked"] = held(ndarray, "ab" * 32)
    kept = RecordDict({"arrays": record, "dure": ConfigRecord({"body": b"x"})})["arrays"]["masked"]
    assert isinstance(kept, held), "ArrayRecord copies arrays on assignment now: large vectors would be copied"
    assert kept.numpy() is ndarray
    carried = Array.inflate(kept.deflate(), {chunk.object_id: chunk for chunk in kept.children.values()})  # type: ignore[union-attr]
    assert isinstance(carried, Array), "Flower's runtimes no longer carry our Array: see HeldArray.data, __qualname__"
    np.testing.assert_array_equal(carried.numpy(), ndarray)
    assert carried.numpy().dtype == np.uint64


def test_a_client_app_finds_its_query_by_the_message_type() -> None:
    app = ClientApp()
    app.query(DURE_MESSAGE_TYPE.removeprefix("query."))(
        lambda message, context: Message(RecordDict(), reply_to=message)
    )
    reply = app(Message(RecordDict(), 7, DURE_MESSAGE_TYPE), Context(5, 7, {}, RecordDict(), {}))
    assert reply.has_content(), "ClientApp.query's names of actions changed: see client_app"
    with pytest.raises(ValueError, match="other"):
        app(Message(RecordDict(), 7, "query.other"), Context(5, 7, {}, RecordDict(), {}))


def test_a_server_app_is_called_with_grid_and_context() -> None:
    came: list[tuple[object, object]] = []
    app = ServerApp()
    app.main()(lambda grid, context: came.append((grid, context)))
    context = Context(5, 1, {}, RecordDict(), {"dure-job": "press"})
    with InProcessGrid({}) as grid:
        app(grid, context)
        assert came == [(grid, context)], "how a ServerApp is run changed: see run_app and superlink.app.coordinate"
    assert context.run_config["dure-job"] == "press"


@pytest.mark.parametrize("grid", [GrpcGrid, InProcessGrid])
def test_our_grids_offer_all_that_flwr_asks_of_a_grid(grid: type[Grid]) -> None:
    asked = {"set_run", "run", "create_message", "get_node_ids", "push_messages", "pull_messages", "send_and_receive"}
    assert Grid.__abstractmethods__ == asked, "flwr's Grid asks for other methods now"
    assert not grid.__abstractmethods__
    for name in asked - {"run"}:
        theirs = list(inspect.signature(getattr(Grid, name)).parameters)
        assert list(inspect.signature(getattr(grid, name)).parameters) == theirs, f"Grid.{name} takes other arguments"


WATCH = """
import os, sys
WATCHED = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen"}
def watch(event, arguments):
    if event in WATCHED and arguments[0] not in ("uname", "file"):  # the platform module asks these
        sys.stderr.write(f"{event} {arguments}"); sys.stderr.flush(); os._exit(3)
sys.addaudithook(watch)
"""
IS_SILENT = "from flwr.supercore.telemetry import FLWR_TELEMETRY_ENABLED as enabled; assert enabled == '0', enabled\n"
TALK = """
from flwr.supercore.telemetry import EventType, event
from flwr.supercore.update_check import warn_if_flwr_update_available
event(EventType.RUN_SUPERNODE_ENTER).result(10)
warn_if_flwr_update_available(process_name="flower-supernode")
"""


def run_watched(program: str, home: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a program that ends with status 3 before it would talk to anyone."""
    own = {"HOME": str(home), "FLWR_HOME": str(home), **environment}
    command = [sys.executable, "-c", WATCH + program]
    return subprocess.run(command, env=own, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("module", APPS)
def test_importing_an_app_sends_nothing_and_silences_flower(module: str, tmp_path: Path) -> None:
    done = run_watched(f"import {module}\n{IS_SILENT}{TALK}", tmp_path)
    assert done.returncode == 0, done.stderr.decode()


def test_flower_would_talk_if_it_were_not_silenced(tmp_path: Path) -> None:
    done = run_watched(TALK, tmp_path, FLWR_TELEMETRY_ENABLED="1")
    assert done.returncode == 3, "how flwr talks home changed: see what the test above watches, and the variables"
