"""The journal over every kind of store: durable, idempotent, and one bad write harms no other."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from sqlalchemy.exc import SQLAlchemyError

from dure_protocols.frames import ArrayRef, Envelope, node_id
from dure_server.link.blobs import PART, BlobFolder
from dure_server.link.errors import LinkRefusedError
from dure_server.link.journal import Journal, Pushed, Upload, metadata, open_engine
from dure_server.link.process import KEEP_UNUSED_SECONDS, sweep

NOW = 1_000_000.0


@pytest.fixture
def journal(empty_store_url: str) -> Iterator[Journal]:
    engine = open_engine(empty_store_url)
    metadata.create_all(engine)
    made = Journal(engine)
    yield made
    made.close()


def pushed(firm: str, attempt: int = 0, body: bytes = b"x", array: int | None = None, run: int = 7) -> Pushed:
    refs = () if array is None else (ArrayRef.of("sum", np.full(9000, array, np.uint16)),)
    group = f"job/1/{attempt}/join"
    envelope = Envelope.request(run, node_id("test", firm), group, "query.dure", body, refs, NOW, 60.0)
    return Pushed(firm, envelope, envelope.encode())


def run(work: Awaitable[object]) -> object:
    async def waited() -> object:
        return await work

    return asyncio.run(waited())


def test_messages_come_back_in_the_order_of_their_push_until_they_are_answered(journal: Journal) -> None:
    async def story() -> None:
        one, two, three = (pushed("mill-a", attempt) for attempt in range(3))
        assert await journal.push([one, two]) == [one, two]
        await journal.push([three, pushed("mill-b")])
        await journal.record_reply(two.envelope.message_id, b"answer", [])
        waiting = await journal.unanswered("mill-a", NOW)
        assert waiting == [(item.envelope.message_id, item.body) for item in (one, three)]
        assert await journal.unanswered("mill-a", NOW + 60) == []

    run(story())


def test_the_first_reply_counts_and_every_later_one_learns_it(journal: Journal) -> None:
    async def story() -> None:
        item = pushed("mill-a")
        await journal.push([item])
        replies = [b"%d" % number for number in range(20)]
        recorded = await asyncio.gather(
            *(journal.record_reply(item.envelope.message_id, reply, []) for reply in replies)
        )
        assert set(recorded) == {b"0"}
        assert [answer.reply for answer in await journal.answers([item.envelope.message_id])] == [b"0"]

    run(story())


def test_pushing_again_changes_nothing(journal: Journal) -> None:
    async def story() -> None:
        item = pushed("mill-a", array=3)
        await journal.push([item])
        assert await journal.push([item, pushed("mill-a", attempt=1)]) == [pushed("mill-a", attempt=1)]
        assert len(await journal.unanswered("mill-a", NOW)) == 2

    run(story())


def test_an_id_used_for_another_message_refuses_that_push_and_no_other_at_the_same_time(journal: Journal) -> None:
    async def story() -> None:
        await journal.push([pushed("mill-a")])
        good = [journal.push([pushed("mill-a", attempt)]) for attempt in range(1, 6)]
        bad = journal.push([pushed("mill-a", attempt=9), pushed("mill-a", body=b"other")])
        results = await asyncio.gather(*good[:3], bad, *good[3:], return_exceptions=True)
        refused = [result for result in results if isinstance(result, LinkRefusedError)]
        assert [error.status for error in refused] == [grpc.StatusCode.ALREADY_EXISTS]
        assert len(await journal.unanswered("mill-a", NOW)) == 6

    run(story())


def test_a_reply_to_a_message_that_was_forgotten_is_not_recorded(journal: Journal) -> None:
    async def story() -> None:
        item = pushed("mill-a")
        await journal.push([item])
        await journal.forget([item.envelope.message_id])
        assert await journal.record_reply(item.envelope.message_id, b"late", ["0" * 64]) is None
        assert not await journal.is_upload_used(Upload("mill-a", "0" * 64))

    run(story())


def test_a_message_is_known_to_its_own_firm_only(journal: Journal) -> None:
    async def story() -> None:
        item = pushed("mill-a")
        await journal.push([item])
        assert await journal.request(item.envelope.message_id, "mill-a") == (item.body, None)
        assert await journal.request(item.envelope.message_id, "mill-b") is None

    run(story())


def test_a_blob_may_be_fetched_by_the_firms_it_was_sent_to_while_a_message_brings_it(journal: Journal) -> None:
    async def story() -> None:
        items = [pushed("mill-a", 0, array=1), pushed("mill-a", 1, array=1), pushed("mill-b", 0, array=2)]
        await journal.push(items)
        digest = items[0].envelope.blobs[0].sha256
        assert await journal.may_fetch("mill-a", digest)
        assert not await journal.may_fetch("mill-b", digest)
        await journal.forget([items[0].envelope.message_id])
        assert await journal.may_fetch("mill-a", digest)
        await journal.forget([items[1].envelope.message_id])
        assert not await journal.is_released(digest)

    run(story())


def test_forgetting_names_the_uploads_that_no_other_reply_brought(journal: Journal) -> None:
    async def story() -> None:
        items = [pushed("mill-a", attempt) for attempt in range(2)]
        await journal.push(items)
        first, second = (item.envelope.message_id for item in items)
        await journal.record_reply(first, b"1", ["a" * 64, "b" * 64])
        await journal.record_reply(second, b"2", ["b" * 64])
        assert await journal.forget([first]) == [Upload("mill-a", "a" * 64)]
        assert await journal.is_upload_used(Upload("mill-a", "b" * 64))
        assert await journal.forget([first, second]) == [Upload("mill-a", "b" * 64)]

    run(story())


def test_a_whole_run_and_what_has_expired_are_forgotten(journal: Journal) -> None:
    async def story() -> None:
        mine, others = pushed("mill-a", run=7), pushed("mill-a", run=8)
        await journal.push([mine, others])
        await journal.forget_run(7)
        assert [number for number, _ in await journal.unanswered("mill-a", NOW)] == [others.envelope.message_id]
        await journal.forget_expired(NOW + 59)
        assert len(await journal.unanswered("mill-a", NOW)) == 1
        await journal.forget_expired(NOW + 61)
        assert await journal.unanswered("mill-a", NOW) == []

    run(story())


def test_what_was_acknowledged_is_there_when_the_store_is_opened_again(empty_store_url: str) -> None:
    async def keep(work: Callable[[Journal], Awaitable[object]]) -> object:
        engine = open_engine(empty_store_url)
        metadata.create_all(engine)
        journal = Journal(engine)
        try:
            return await work(journal)
        finally:
            journal.close()

    item = pushed("mill-a")
    asyncio.run(keep(lambda journal: journal.push([item])))
    assert asyncio.run(keep(lambda journal: journal.unanswered("mill-a", NOW))) == [
        (item.envelope.message_id, item.body)
    ]


def test_an_error_of_the_store_reaches_the_caller_and_the_journal_goes_on(journal: Journal) -> None:
    async def story() -> None:
        too_long = Pushed("x" * 100_000, pushed("mill-a").envelope, None)  # type: ignore[arg-type]  # breaks NOT NULL
        with pytest.raises(SQLAlchemyError):
            await journal.push([too_long])
        await journal.push([pushed("mill-a")])
        assert len(await journal.unanswered("mill-a", NOW)) == 1

    run(story())


def test_the_sweep_deletes_old_uploads_of_no_reply_and_nothing_else(journal: Journal, tmp_path: Path) -> None:
    async def story() -> None:
        blobs = BlobFolder(tmp_path / "uploads", tmp_path / "released")
        folder = tmp_path / "uploads" / "mill-a"
        folder.mkdir()
        for name in ("a" * 64, "b" * 64, "c" * 64 + PART):
            (folder / name).write_bytes(b"x")
        item = pushed("mill-a")
        await journal.push([item])
        await journal.record_reply(item.envelope.message_id, b"1", ["a" * 64])
        await sweep(journal, blobs, NOW)
        assert len(list(folder.iterdir())) == 3
        old = time.time() - KEEP_UNUSED_SECONDS - 60
        for file in folder.iterdir():
            os.utime(file, (old, old))
        await sweep(journal, blobs, NOW)
        assert [file.name for file in folder.iterdir()] == ["a" * 64]

    run(story())
