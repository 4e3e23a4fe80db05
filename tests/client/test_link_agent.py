"""What the agent lets leave, what it drops, and what it keeps on disk."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from dure_client.agent import KEPT_ANSWERS, KEPT_SECONDS, Agent, Answer, ledger_kind, spool
from dure_client.link.client import LinkClient
from dure_protocols import messages
from dure_protocols.certificates import Authority, key_to_pem, new_serial, new_tls_key, signing_request
from dure_protocols.errors import MessageError, MisuseError, RefusalCode
from dure_protocols.frames import ArrayRef, Envelope, node_id
from dure_protocols.identity import SIGNATURE_BYTES
from dure_protocols.ledger import Entry, RecordKind

NODE = node_id("test", "mill-a")
NOW = 1_000_000.0


def request(**changes: object) -> Envelope:
    fields = {
        "run_id": 7,
        "dst_node": NODE,
        "group": "job/1/0/join",
        "message_type": "query.dure",
        "body": b"x",
        "arrays": (),
        "created_at": NOW,
        "ttl": 60.0,
    }
    return Envelope.request(**(fields | changes))  # type: ignore[arg-type]


MASKED = ArrayRef.of("masked", np.zeros(9000, np.uint64))
APPROVAL = messages.encode(messages.Approval("mill-a", bytes(32), bytes(SIGNATURE_BYTES)))
REFUSAL = messages.encode(messages.Refusal("mill-a", RefusalCode.DATA))


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (request().reply(APPROVAL, created_at=NOW), RecordKind.APPROVAL),
        (request().reply(REFUSAL, created_at=NOW), RecordKind.REFUSAL),
        (request().reply(error_code="internal", created_at=NOW), RecordKind.REFUSAL),
    ],
)
def test_a_reply_that_may_leave_is_named_for_the_ledger(reply: Envelope, kind: RecordKind) -> None:
    assert ledger_kind(reply) is kind


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        pytest.param(request().reply(b"", created_at=NOW), MessageError, id="no message at all"),
        pytest.param(request().reply(APPROVAL + b"row 17", created_at=NOW), MessageError, id="bytes behind a message"),
        pytest.param(
            request().reply(messages.encode(messages.Proposal(b"{}")), created_at=NOW), MisuseError, id="a request"
        ),
        pytest.param(request().reply(APPROVAL, (MASKED,), created_at=NOW), MisuseError, id="arrays beside an approval"),
        pytest.param(request().reply(error_code="row-seventeen", created_at=NOW), MisuseError, id="an unknown code"),
    ],
)
def test_nothing_else_may_leave(reply: Envelope, error: type[Exception]) -> None:
    with pytest.raises(error):
        ledger_kind(reply)


class NoEgress:
    def record(self, entry: Entry) -> None:
        pytest.fail(f"{entry.kind} was about to leave")


class Calls:
    """An app that counts and would answer."""

    def __init__(self) -> None:
        self.num = 0

    def __call__(self, message: Envelope, arrays: object) -> Answer:
        self.num += 1
        return Answer(APPROVAL)


@pytest.fixture
def link(tmp_path: Path) -> LinkClient:
    """A client of a link that nobody runs; what is dropped never asks for it."""
    keys, key, now = tmp_path / "keys", new_tls_key(), datetime.now(UTC)
    keys.mkdir()
    authority = Authority.create("test", now, key=new_tls_key(), serial=new_serial())
    (keys / "root.pem").write_bytes(authority.certificate_pem)
    (keys / "tls.key").write_bytes(key_to_pem(key))
    (keys / "tls.pem").write_bytes(authority.issue_client("mill-a", signing_request(key), now, serial=new_serial()))
    return LinkClient("127.0.0.1:1", keys, NoEgress())


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(request(created_at=NOW - 61), id="expired"),
        pytest.param(request(dst_node=node_id("test", "mill-b")), id="for another firm"),
        pytest.param(request().reply(b"x", created_at=NOW), id="a reply"),
    ],
)
def test_a_message_that_nobody_waits_for_or_that_is_not_ours_is_dropped(
    tmp_path: Path, link: LinkClient, message: Envelope
) -> None:
    app = Calls()
    Agent(tmp_path, NODE, link, app, clock=lambda: NOW).handle(message)
    assert app.num == 0
    assert not list((tmp_path / "answers").iterdir())


def test_old_answers_and_old_blobs_are_deleted_and_new_ones_stay(tmp_path: Path, link: LinkClient) -> None:
    agent = Agent(tmp_path, NODE, link, Calls(), clock=time.time)
    for folder in ("answers", "outbox"):
        for name in ("old", "new"):
            (tmp_path / folder / name).write_bytes(b"x")
        then = time.time() - KEPT_SECONDS - 60
        os.utime(tmp_path / folder / "old", (then, then))
    agent.prune()
    assert [file.name for folder in ("answers", "outbox") for file in (tmp_path / folder).iterdir()] == ["new", "new"]
    for number in range(KEPT_ANSWERS + 5):
        (tmp_path / "answers" / str(number)).touch()
    agent.prune()
    assert len(list((tmp_path / "answers").iterdir())) == KEPT_ANSWERS


def test_a_spooled_array_lies_under_the_digest_of_its_little_endian_bytes(tmp_path: Path) -> None:
    array = np.arange(9000, dtype=">u4").reshape(90, 100)
    digest = spool(array, tmp_path)
    assert (tmp_path / digest).read_bytes() == array.astype("<u4").tobytes()
    assert ArrayRef.of("a", array).sha256 == digest
