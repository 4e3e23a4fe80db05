"""At most one coordinator a job: a lock that is given back when its holder dies, however that happens.

On SQLite the store is a file of this machine, and so is the lock. On PostgreSQL it is an advisory lock of one
connection that is kept for nothing else: the server takes it back when that connection ends.
"""

import fcntl
import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from dure_server.store.errors import LeaseTakenError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
_KEEPALIVE = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
"""So that PostgreSQL notices within half a minute when the holder's whole machine is gone."""


@contextmanager
def lease(engine: Engine, name: str, lock_file: Path, lost: Callable[[], None]) -> Iterator[None]:
    """Hold what `name` stands for while the block runs. `lock_file` is used where the store is SQLite.

    `lost` is called, from a thread of its own, when the store cannot say any more that it is held: the holder MUST end
    at once. Raises LeaseTakenError if another process holds it.
    """
    if engine.dialect.name == "sqlite":
        with _locked_file(lock_file, name):
            yield
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(_KEEPALIVE))
        key = int.from_bytes(hashlib.sha256(f"dure lease {name}".encode()).digest()[:8], "big", signed=True)
        if not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}):
            raise _taken(name)
        ended = threading.Event()
        watch = threading.Thread(target=_watch, args=(connection, ended, lost), name="lease", daemon=True)
        watch.start()
        try:
            yield
        finally:
            ended.set()
            watch.join()
            connection.invalidate()  # not back into the pool, where the lock would live on


@contextmanager
def _locked_file(lock_file: Path, name: str) -> Iterator[None]:
    with lock_file.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _taken(name) from error
        yield


def _watch(connection: Connection, ended: threading.Event, lost: Callable[[], None]) -> None:
    while not ended.wait(LOOK_SECONDS):
        try:
            connection.execute(text("SELECT 1"))
        except DBAPIError as error:
            logger.warning("the store ended the connection that held the lease (%s)", type(error.orig).__name__)
            lost()
            return


def _taken(name: str) -> LeaseTakenError:
    return LeaseTakenError(f"another process is the {name}: there may be only one; end that one first")
