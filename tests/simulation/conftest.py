"""What all simulations share."""

import pytest

from dure_server.coordinator import conversation


@pytest.fixture(autouse=True)
def undivided(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator hears all simulated firms before it looks at the clock: a busy machine must not make drop-outs."""
    monkeypatch.setattr(conversation, "LOOK_UP_SECONDS", 60.0)
