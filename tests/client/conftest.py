"""What several tests of the firm's side need of this host."""

import pytest

from dure_client.trainer.sandbox import Sandbox, SandboxError
from dure_client.trainer.sandbox.bubblewrap import Bubblewrap
from tests.conftest import lacking


@pytest.fixture(scope="session")
def bubblewrap() -> Sandbox:
    """The full sandbox, tried on this host."""
    try:
        return Bubblewrap.find()
    except SandboxError as error:
        lacking(f"the sandbox: {error}")
        raise
