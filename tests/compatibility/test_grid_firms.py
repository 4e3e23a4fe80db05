"""The coordinator's view of firms over any flwr Grid, with ClientApps of this process that may misbehave."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from dure_client.flower import client_app
from dure_client.jobs.side import Given, Reaction
from dure_lab.in_process import InProcessGrid
from dure_protocols.errors import MisuseError, RefusalCode, RefusedError
from dure_protocols.frames import Place
from dure_protocols.messages import Hello, Present, encode
from dure_server.coordinator.firms import Ask
from dure_server.flower import GridFirms

HELLO = encode(Hello())


def named(firm: str) -> ClientApp:
    return client_app(lambda body, given: Reaction(Present(firm)))


def raw(answer: Callable[[], RecordDict]) -> ClientApp:
    app = ClientApp()
    app.query("dure")(lambda message, context: Message(answer(), reply_to=message))
    return app


def known(firms: GridFirms, names: set[str]) -> None:
    deadline = time.monotonic() + 5
    while firms.connected() != names:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(firms: GridFirms, firm: str, group: str = "update", **arrays: bytes) -> Ask:
    node = firms.node_of(firm)
    assert node is not None
    return Ask(node, Place("job", 1, 1, group), HELLO, arrays)


def test_each_node_is_asked_for_its_name_once(tmp_path: Path) -> None:
    asked: list[bytes] = []

    def answer(body: bytes, given: Given) -> Reaction:
        asked.append(body)
        return Reaction(Present("firm-a"))

    with InProcessGrid({"firm-a": client_app(answer), "firm-b": named("firm-b")}) as grid:
        firms = GridFirms(grid, tmp_path)
        known(firms, {"firm-a", "firm-b"})
        known(firms, {"firm-a", "firm-b"})
        assert asked == [HELLO]


def test_a_node_that_does_not_say_its_name_keeps_nobody_waiting(tmp_path: Path) -> None:
    release = threading.Event()

    def sleep() -> RecordDict:
        release.wait(10)
        return RecordDict()

    with InProcessGrid({"firm-a": named("firm-a"), "stranger": raw(sleep)}) as grid:
        firms = GridFirms(grid, tmp_path, hello_seconds=0.3)
        started = time.monotonic()
        known(firms, {"firm-a"})
        assert time.monotonic() - started < 5
        assert firms.node_of("stranger") is None
        release.set()


@pytest.mark.parametrize(
    ("case", "content"),
    [
        ("no body", RecordDict()),
        ("a record too many", RecordDict({"dure": ConfigRecord({"body": HELLO}), "more": ConfigRecord()})),
        ("an array that is no array", None),
    ],
)
def test_what_a_node_sends_becomes_an_error_of_that_firm(tmp_path: Path, case: str, content: RecordDict | None) -> None:
    def broken() -> RecordDict:
        if content is not None:
            return content
        record = ArrayRecord([np.zeros(3)])
        next(iter(record.values())).data = b"\x93NUMPY garbage"
        return RecordDict({"dure": ConfigRecord({"body": HELLO}), "arrays": record})

    answers = iter([encode(Present("firm-a"))])

    def first_name_then_broken() -> RecordDict:
        body = next(answers, None)
        return broken() if body is None else RecordDict({"dure": ConfigRecord({"body": body})})

    with InProcessGrid({"firm-a": raw(first_name_then_broken)}) as grid:
        firms = GridFirms(grid, tmp_path)
        ids = firms.push([ask(firms, "firm-a")])
        assert [answer.error for answer in firms.receive(ids, 5)] == ["malformed"], case


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (RefusedError(RefusalCode.DATA, "row 17 is 4.2"), RefusalCode.DATA),
        (ValueError("row 17 is 4.2"), RefusalCode.INTERNAL),
    ],
)
def test_no_text_of_what_a_firm_raises_leaves_it(raised: Exception, code: RefusalCode) -> None:
    def fail(body: bytes, given: Given) -> Reaction:
        raise raised

    with InProcessGrid({"firm-a": client_app(fail)}) as grid:
        message = Message(
            RecordDict({"dure": ConfigRecord({"body": HELLO})}), next(iter(grid.get_node_ids())), "query.dure"
        )
        (reply,) = grid.send_and_receive([message], timeout=5)
        assert reply.error.reason == code.value


def test_a_request_is_sent_once_until_it_is_forgotten(tmp_path: Path) -> None:
    with InProcessGrid({"firm-a": named("firm-a")}) as grid:
        firms = GridFirms(grid, tmp_path)
        request = ask(firms, "firm-a")
        (first,) = firms.push([request])
        assert firms.push([request]) == [first]
        assert len(list(firms.receive([first], 5))) == 1
        firms.forget([first])
        (second,) = firms.push([request])
        assert second != first
        assert len(list(firms.receive([second], 5))) == 1


def test_shared_vectors_outlive_the_coordinator(tmp_path: Path) -> None:
    vector = np.arange(5, dtype=np.uint64)
    with InProcessGrid({"firm-a": named("firm-a")}) as grid:
        digest = GridFirms(grid, tmp_path).share(vector)
        np.testing.assert_array_equal(GridFirms(grid, tmp_path).load(digest, 5), vector)
        with pytest.raises(MisuseError, match="cannot go on"):
            GridFirms(grid, tmp_path).load(digest, 4)
