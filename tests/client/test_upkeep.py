"""What the agent looks after beside its work: one thing that fails ends none of the others."""

import threading
from pathlib import Path

import pytest

from dure_client.home import AgentHome
from dure_client.link.client import LinkClient
from dure_client.upkeep import Upkeep
from dure_protocols.errors import DureError
from tests.client.test_link_agent import link  # noqa: F401  # a fixture


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), DureError("damaged")])
def test_an_errand_that_fails_is_not_the_end_of_upkeep(
    tmp_path: Path,
    link: LinkClient,  # noqa: F811
    error: Exception,
) -> None:
    stop, calls = threading.Event(), []

    def errand() -> None:
        calls.append(1)
        if len(calls) == 3:
            stop.set()
        raise error

    upkeep = Upkeep(AgentHome(tmp_path), link, stop, {}, errand=errand, look_seconds=0.0)
    upkeep._not_before = float("inf")  # no certificate here
    upkeep.run()
    assert len(calls) == 3
