"""What tests of several packages need: parts that a machine may lack, and how their absence is told."""

import os
from collections.abc import Iterator

import pytest

from tests.postgres import MISSING, POSTGRES_VARIABLE, private_server, programs


def lacking(reason: str) -> None:
    """Skip a test for want of a part; in CI, where every part is installed, fail."""
    if os.environ.get("DURE_NO_SKIP") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a PostgreSQL server: the one that the environment names, or one of the tests' own."""
    if named := os.environ.get(POSTGRES_VARIABLE):
        yield named
        return
    binaries = programs()
    if binaries is None:
        lacking(MISSING)
        return
    with private_server(binaries) as url:
        yield url
