"""Opening the store, its schema's version, and the transaction that hands out repositories."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from dure_server.store.audit import Audit
from dure_server.store.certificates import Certificates
from dure_server.store.consortium import Consortia
from dure_server.store.departures import Departures
from dure_server.store.errors import SchemaError, StoreError
from dure_server.store.firms import Firms
from dure_server.store.heads import LedgerHeads
from dure_server.store.invitations import Invitations
from dure_server.store.jobs import Jobs
from dure_server.store.lease import lease
from dure_server.store.progress import ProgressBoard
from dure_server.store.rounds import Rounds
from dure_server.store.signoffs import Signoffs
from dure_server.store.timeline import Timeline

BUSY_TIMEOUT_SECONDS = 10
SCHEMA_VERSION = "0006"
"""The newest migration; a test holds it against them."""
_WRITES = "dure_writes"


# Alembic announces each step on a logger of its own; an operator's terminal and logs have no use for that.
logging.getLogger("alembic").setLevel(logging.WARNING)


def utc_now() -> datetime:
    """The operating system's clock, in UTC."""
    return datetime.now(UTC)


class Transaction:
    """One transaction: its time, its session (for queries of the link) and a repository a resource."""

    def __init__(self, session: Session, now: datetime) -> None:
        self.session = session
        self.now = now

    @cached_property
    def consortium(self) -> Consortia:
        """Whose store this is."""
        return Consortia(self.session, self.now)

    @cached_property
    def firms(self) -> Firms:
        """Firms and where they stand."""
        return Firms(self.session, self.now)

    @cached_property
    def invitations(self) -> Invitations:
        """Invitations, hashed."""
        return Invitations(self.session, self.now)

    @cached_property
    def certificates(self) -> Certificates:
        """Client certificates, and whether one may be used."""
        return Certificates(self.session, self.now)

    @cached_property
    def departures(self) -> Departures:
        """Firms that left."""
        return Departures(self.session, self.now)

    @cached_property
    def jobs(self) -> Jobs:
        """Jobs and their states."""
        return Jobs(self.session, self.now)

    @cached_property
    def signoffs(self) -> Signoffs:
        """What firms said to a job."""
        return Signoffs(self.session, self.now)

    @cached_property
    def rounds(self) -> Rounds:
        """Attempts at rounds."""
        return Rounds(self.session, self.now)

    @cached_property
    def progress(self) -> ProgressBoard:
        """Where a job is right now."""
        return ProgressBoard(self.session, self.now)

    @cached_property
    def timeline(self) -> Timeline:
        """What happened in each job."""
        return Timeline(self.session, self.now)

    @cached_property
    def ledger_heads(self) -> LedgerHeads:
        """Where each firm's ledger ends, countersigned."""
        return LedgerHeads(self.session, self.now)

    @cached_property
    def audit(self) -> Audit:
        """The hash-chained log of acts."""
        return Audit(self.session, self.now)


class Store:
    """The opened store. One a process; threads may share it."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime] = utc_now) -> None:
        self._engine = engine
        self._writing = engine.execution_options(**{_WRITES: True})
        self._clock = clock
        self.observe: Callable[[str, float], None] = lambda _, __: None
        """Told after each transaction its kind (read, write) and its seconds."""

    @classmethod
    def open(cls, url: str, clock: Callable[[], datetime] = utc_now) -> "Store":
        """Open a store whose tables are there and of this program's version. Raises SchemaError or StoreError."""
        store = cls(_engine(url), clock)
        store.check_schema()
        return store

    @classmethod
    def create(cls, url: str, clock: Callable[[], datetime] = utc_now) -> "Store":
        """Open a store and bring its tables to this program's version: `dure-server init` and `upgrade`."""
        store = cls(_engine(url), clock)
        store.upgrade()
        return store

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction that may write. Commits at the end; an exception rolls everything back.

        On SQLite it takes the write lock at once (BEGIN IMMEDIATE): a transaction that reads first and asks for the
        lock later would fail at once, without waiting, where another has written in between.
        """
        with self._timed("write"), Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield Transaction(session, self._clock())

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """A transaction that sees one state of the store and never writes: whatever was changed is rolled back."""
        with self._timed("read"), Session(self._engine, expire_on_commit=False) as session:
            try:
                yield Transaction(session, self._clock())
            finally:
                session.expunge_all()
                session.rollback()

    def lease(self, name: str, lock_file: Path, lost: Callable[[], None]) -> AbstractContextManager[None]:
        """Be the only process that is `name` while the block runs; see `lease.lease`. Raises LeaseTakenError."""
        return lease(self._engine, name, lock_file, lost)

    def check_schema(self) -> None:
        """Raise SchemaError unless the tables are exactly of this program's version."""
        found = self._version()
        if found == SCHEMA_VERSION:
            return
        if found is None:
            raise SchemaError("the store is empty: run `dure-server init` first, or restore a backup")
        from dure_server.store.schema import known_versions  # noqa: PLC0415  # slow to load, rarely needed

        if found in known_versions():
            raise SchemaError(
                f"the store is of version {found}, this dure-server needs {SCHEMA_VERSION}: "
                "make a backup, then run `dure-server upgrade`"
            )
        raise SchemaError(
            f"the store is of version {found}, which is newer than this dure-server ({SCHEMA_VERSION}): "
            "install the dure-server that wrote it, or restore an older backup"
        )

    def upgrade(self) -> None:
        """Apply the migrations that are missing. Raises SchemaError if the store is newer than this program."""
        from dure_server.store.schema import known_versions, upgrade  # noqa: PLC0415  # slow to load, rarely needed

        found = self._version()
        if found is not None and found not in known_versions():
            self.check_schema()
        with self._writing.begin() as connection:
            upgrade(connection)

    def close(self) -> None:
        """Give back all connections."""
        self._engine.dispose()

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.observe(kind, time.monotonic() - began)

    def _version(self) -> str | None:
        try:
            with self._engine.connect() as connection:
                if not inspect(connection).has_table("alembic_version"):
                    return None
                found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
                return found
        except OperationalError as error:
            where = self._engine.url.render_as_string(hide_password=True)
            raise StoreError(f"the store {where} cannot be opened: {_reason(error)}") from error

    def __repr__(self) -> str:
        return f"Store({self._engine.url.render_as_string(hide_password=True)})"


def _engine(url: str) -> Engine:
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(parsed, pool_pre_ping=True)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        # `from None`: the message of the library quotes the URL, which may hold a password.
        raise StoreError(
            "the store's URL is malformed; postgresql+psycopg://user:password@host/name was expected"
        ) from None
    if parsed.drivername in {"postgresql", "postgres"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
        raise StoreError(f"a store of kind {parsed.get_backend_name()!r} is not supported: use PostgreSQL or SQLite")
    return parsed


def _prepare_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    # sqlite3 would begin transactions by its own rules, and only before the first write: we begin them ourselves.
    connection.isolation_level = None
    cursor = connection.cursor()
    # Readers and the one writer do not wait for each other. FULL: what is acknowledged to a firm survives a power cut.
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _reason(error: OperationalError) -> str:
    return str(error.orig).strip().splitlines()[0] if error.orig else "no reason given"
