"""Stores to test over: SQLite always, PostgreSQL where it is installed or named (tests/postgres.py)."""

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from dure_server.store import Store


class Clock:
    """A clock that stands still until it is told to go."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        self.now += timedelta(**by)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.sqlite'}"
        return
    server = str(request.getfixturevalue("postgres_url"))
    # A schema a test, not a database: making a database copies some 30 MB and waits for the disk.
    name = f"dure_test_{uuid.uuid4().hex[:12]}"
    plain = make_url(server).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as admin:
        admin.execute(f'CREATE SCHEMA "{name}"')  # type: ignore[arg-type,unused-ignore]
        try:
            url = make_url(server).set(drivername="postgresql+psycopg")
            yield url.update_query_dict({"options": f"-csearch_path={name}"}).render_as_string(hide_password=False)
        finally:
            admin.execute(f'DROP SCHEMA "{name}" CASCADE')  # type: ignore[arg-type,unused-ignore]


@pytest.fixture
def open_stores() -> Iterator[list[Store]]:
    opened: list[Store] = []
    yield opened
    for store in opened:
        store.close()


@pytest.fixture
def store(empty_store_url: str, clock: Callable[[], datetime], open_stores: list[Store]) -> Store:
    """A store of this version, of consortium "Millers"."""
    made = Store.create(empty_store_url, clock)
    open_stores.append(made)
    with made.transaction() as tx:
        tx.consortium.create("Millers", "ab" * 32)
    return made
