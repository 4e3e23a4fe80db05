"""One coordinator a job, over both stores: who comes second is refused, and a holder that is gone holds nothing."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from dure_server.store import LeaseTakenError, Store


def never() -> None:
    raise AssertionError("the lease was not lost")


@pytest.fixture
def other(store: Store, empty_store_url: str, clock: Callable, open_stores: list[Store]) -> Store:
    """The same store, as another process has it open."""
    opened = Store.open(empty_store_url, clock)
    open_stores.append(opened)
    return opened


def test_who_comes_second_is_refused_until_the_first_has_ended(store: Store, other: Store, tmp_path: Path) -> None:
    with store.lease("coordinator of a", tmp_path / "a.lock", never):
        with pytest.raises(LeaseTakenError, match="another process is the coordinator of a"):
            other.lease("coordinator of a", tmp_path / "a.lock", never).__enter__()
        with other.lease("coordinator of b", tmp_path / "b.lock", never):
            pass
    with other.lease("coordinator of a", tmp_path / "a.lock", never):
        pass


def test_a_holder_that_fails_gives_the_lease_back(store: Store, other: Store, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), store.lease("coordinator of a", tmp_path / "a.lock", never):
        1 / 0  # noqa: B018
    with other.lease("coordinator of a", tmp_path / "a.lock", never):
        pass


@pytest.mark.parametrize("empty_store_url", ["postgresql"], indirect=True)
def test_a_holder_is_told_when_the_store_has_ended_its_connection(store: Store, other: Store, tmp_path: Path) -> None:
    told = threading.Event()
    with store.lease("coordinator of a", tmp_path / "a.lock", told.set):
        with other.transaction() as at:
            at.session.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
                    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                )
            )
        assert told.wait(20)
