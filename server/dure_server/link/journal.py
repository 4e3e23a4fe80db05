"""The journal: every message and its reply, in the server's store. What is acknowledged is on disk.

One thread commits. Writes that arrive while a commit runs share the next one, so a hundred replies at once cost a few
disk flushes and not a hundred. Another thread reads; it sees what is committed, and so what was acknowledged.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar, cast

import grpc
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    exists,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.engine import make_url

from dure_protocols.frames import Envelope
from dure_server.link.errors import LinkRefusedError

T = TypeVar("T")

metadata = MetaData()

messages = Table(
    "link_messages",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("run_id", BigInteger, nullable=False, index=True),
    Column("firm", String(63), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("reply", LargeBinary, nullable=True),
    Column("created_at", Float(53), nullable=False),
    Column("expires_at", Float(53), nullable=False),
    Index("ix_link_messages_firm_number", "firm", "number"),
)

# Which blobs a message brings a firm ("down") and which its reply brought ("up"): the right to fetch, and to be kept.
message_blobs = Table(
    "link_blobs",
    metadata,
    Column("message_id", String(32), primary_key=True),
    Column("direction", String(4), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("firm", String(63), nullable=False),
    Index("ix_link_blobs_firm_digest", "firm", "digest"),
)

_DOWN: Final = "down"
_UP: Final = "up"
_IDS_A_QUERY: Final = 500  # below every database's limit of parameters
_READ_ONLY: Final = "dure_read_only"


class Pushed(NamedTuple):
    """One message on its way to a firm, with its encoding."""

    firm: str
    envelope: Envelope
    body: bytes


class Answered(NamedTuple):
    """One recorded reply."""

    message_id: str
    firm: str
    reply: bytes


class Upload(NamedTuple):
    """A blob in a firm's upload folder."""

    firm: str
    digest: str


@dataclass(frozen=True)
class _Write:
    """One caller's part of a transaction, and where to tell it the result once that is durable."""

    work: Callable[[Connection], object]
    done: "Future[object]"


def open_engine(url: str) -> Engine:
    """An engine for the journal: SQLite flushes every commit and takes the write lock at a transaction's start."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        if parsed.drivername in {"postgresql", "postgres"}:
            parsed = parsed.set(drivername="postgresql+psycopg")
        return create_engine(parsed, pool_pre_ping=True)
    engine = create_engine(parsed)

    @event.listens_for(engine, "connect")
    def _prepare(connection: object, _record: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]  # transactions are begun below, not by sqlite3
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=20000"):
            connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that reads and then writes could not be upgraded once another process has written between.
        reads = connection.get_execution_options().get(_READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


class Journal:
    """Messages and replies. Methods may be awaited from one event loop; each returns when its effect is durable."""

    def __init__(self, engine: Engine, committed: Callable[[float], None] = lambda _: None) -> None:
        """`committed` is told how many seconds each transaction took, from the thread that commits."""
        self._engine = engine
        self._committed = committed
        self._reader = ThreadPoolExecutor(1, "journal-reader")
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_for_ever, name="journal-writer", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Finish what was begun and let go of the database."""
        self._writes.put(None)
        self._writer.join()
        self._reader.shutdown()
        self._engine.dispose()

    async def push(self, pushed: Sequence[Pushed]) -> list[Pushed]:
        """Record messages for their firms. One that is there already stays as it is. Returns those that are new.

        Raises LinkRefusedError, and records nothing, if an id was used before for a message that says something else.
        """
        return await self._write(lambda connection: _push(connection, pushed))

    async def record_reply(self, message_id: str, reply: bytes, digests: Sequence[str]) -> bytes | None:
        """Record a message's reply and the blobs it brought. The first one counts: returns what is recorded now."""
        return await self._write(lambda connection: _record_reply(connection, message_id, reply, digests))

    async def forget(self, ids: Sequence[str]) -> list[Upload]:
        """Drop messages and replies. Returns the uploads that no message needs any more."""
        return await self._write(lambda connection: _forget(connection, ids))

    async def forget_run(self, run_id: int) -> list[Upload]:
        """Drop every message of a run. Returns the uploads that no message needs any more."""
        chosen = select(messages.c.id).where(messages.c.run_id == run_id)
        return await self._write(lambda connection: _forget(connection, list(connection.scalars(chosen))))

    async def forget_expired(self, before: float) -> list[Upload]:
        """Drop every message that expired before a Unix time. Returns the uploads that no message needs any more."""
        chosen = select(messages.c.id).where(messages.c.expires_at < before)
        return await self._write(lambda connection: _forget(connection, list(connection.scalars(chosen))))

    async def unanswered(self, firm: str, now: float) -> list[tuple[str, bytes]]:
        """(id, body) of each message to a firm that has no reply and has not expired, oldest first."""
        chosen = select(messages.c.id, messages.c.body).where(
            messages.c.firm == firm, messages.c.reply.is_(None), messages.c.expires_at > now
        )
        query = chosen.order_by(messages.c.number)
        return await self._read(lambda connection: [(row.id, row.body) for row in connection.execute(query)])

    async def request(self, message_id: str, firm: str) -> tuple[bytes, bytes | None] | None:
        """(body, recorded reply or None) of a message, if it exists and is addressed to this firm."""
        query = select(messages.c.body, messages.c.reply).where(messages.c.id == message_id, messages.c.firm == firm)

        def read(connection: Connection) -> tuple[bytes, bytes | None] | None:
            row = connection.execute(query).one_or_none()
            return None if row is None else (row.body, row.reply)

        return await self._read(read)

    async def answers(self, ids: Sequence[str]) -> list[Answered]:
        """The recorded replies to these messages."""

        def read(connection: Connection) -> list[Answered]:
            found = []
            for part in _parts(ids):
                query = select(messages.c.id, messages.c.firm, messages.c.reply).where(
                    messages.c.id.in_(part), messages.c.reply.is_not(None)
                )
                found += [Answered(*row) for row in connection.execute(query)]
            return found

        return await self._read(read)

    async def may_fetch(self, firm: str, digest: str) -> bool:
        """Whether some message released this blob to this firm."""
        return await self._read(lambda connection: _is_used(connection, _DOWN, digest, firm))

    async def is_released(self, digest: str) -> bool:
        """Whether some message still releases this blob to anybody."""
        return await self._read(lambda connection: _is_used(connection, _DOWN, digest))

    async def is_upload_used(self, upload: Upload) -> bool:
        """Whether a recorded reply brought this blob."""
        return await self._read(lambda connection: _is_used(connection, _UP, upload.digest, upload.firm))

    async def _read(self, work: Callable[[Connection], T]) -> T:
        def read() -> T:
            with self._engine.connect().execution_options(**{_READ_ONLY: True}) as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._reader, read)

    async def _write(self, work: Callable[[Connection], T]) -> T:
        done: Future[object] = Future()
        self._writes.put(_Write(work, done))
        # A caller that goes away must not cancel a write that may be half done.
        return cast("T", await asyncio.shield(asyncio.wrap_future(done)))

    def _write_for_ever(self) -> None:
        while (first := self._writes.get()) is not None:
            batch, is_last = [first], False
            while not self._writes.empty():
                if (following := self._writes.get()) is None:
                    is_last = True
                    break
                batch.append(following)
            self._commit(batch)
            if is_last:
                return

    def _commit(self, batch: Sequence[_Write]) -> None:
        began = time.monotonic()
        try:
            with self._engine.begin() as connection:
                results = [write.work(connection) for write in batch]
        except Exception as error:  # noqa: BLE001  # the one who waits raises it; this thread must go on
            if len(batch) == 1:
                batch[0].done.set_exception(error)
                return
            for write in batch:  # one bad write must not take the others with it
                self._commit([write])
            return
        self._committed(time.monotonic() - began)
        for write, result in zip(batch, results, strict=True):
            write.done.set_result(result)


def _push(connection: Connection, pushed: Sequence[Pushed]) -> list[Pushed]:
    there: dict[str, bytes] = {}
    for part in _parts([push.envelope.message_id for push in pushed]):
        query = select(messages.c.id, messages.c.body).where(messages.c.id.in_(part))
        there |= {row.id: row.body for row in connection.execute(query)}
    new: dict[str, Pushed] = {}
    for push in pushed:
        recorded = there.get(push.envelope.message_id)
        if recorded is None:
            new[push.envelope.message_id] = push
        elif not Envelope.decode(recorded).same_content(push.envelope):
            raise LinkRefusedError(
                grpc.StatusCode.ALREADY_EXISTS,
                f"{push.envelope!r} to {push.firm} differs from the one recorded under its id before; "
                "give it a group of its own (another attempt)",
            )
    if new:
        connection.execute(insert(messages), [_message_row(push) for push in new.values()])
    if released := [
        {"message_id": push.envelope.message_id, "direction": _DOWN, "digest": digest, "firm": push.firm}
        for push in new.values()
        for digest in sorted({ref.sha256 for ref in push.envelope.blobs})
    ]:
        connection.execute(insert(message_blobs), released)
    return list(new.values())


def _message_row(push: Pushed) -> dict[str, object]:
    return {
        "id": push.envelope.message_id,
        "run_id": push.envelope.run_id,
        "firm": push.firm,
        "body": push.body,
        "created_at": push.envelope.created_at,
        "expires_at": push.envelope.expires_at,
    }


def _record_reply(connection: Connection, message_id: str, reply: bytes, digests: Sequence[str]) -> bytes | None:
    open_message = (messages.c.id == message_id) & messages.c.reply.is_(None)
    changed = connection.execute(update(messages).where(open_message).values(reply=reply)).rowcount
    row = connection.execute(select(messages.c.firm, messages.c.reply).where(messages.c.id == message_id)).one_or_none()
    if row is None:  # forgotten meanwhile
        return None
    if changed and digests:
        fields = {"message_id": message_id, "direction": _UP, "firm": row.firm}
        connection.execute(insert(message_blobs), [fields | {"digest": digest} for digest in sorted(set(digests))])
    return bytes(row.reply)


def _forget(connection: Connection, ids: Sequence[str]) -> list[Upload]:
    lost: set[Upload] = set()
    for part in _parts(ids):
        of_these = message_blobs.c.message_id.in_(part)
        chosen = select(message_blobs.c.firm, message_blobs.c.digest).where(of_these, message_blobs.c.direction == _UP)
        lost |= {Upload(*row) for row in connection.execute(chosen)}
        connection.execute(delete(message_blobs).where(of_these))
        connection.execute(delete(messages).where(messages.c.id.in_(part)))
    kept: set[Upload] = set()
    pair = tuple_(message_blobs.c.firm, message_blobs.c.digest)
    for some in _parts(sorted(lost)):
        still = select(message_blobs.c.firm, message_blobs.c.digest).where(
            pair.in_(some), message_blobs.c.direction == _UP
        )
        kept |= {Upload(*row) for row in connection.execute(still)}
    return sorted(lost - kept)


def _is_used(connection: Connection, direction: str, digest: str, firm: str | None = None) -> bool:
    use = (message_blobs.c.direction == direction) & (message_blobs.c.digest == digest)
    if firm is not None:
        use &= message_blobs.c.firm == firm
    return bool(connection.scalar(select(exists().where(use))))


def _parts(values: Sequence[T]) -> list[Sequence[T]]:
    return [values[start : start + _IDS_A_QUERY] for start in range(0, len(values), _IDS_A_QUERY)]
