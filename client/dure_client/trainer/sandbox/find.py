"""Which sandbox this host has, found by trying."""

import functools
import os

from dure_client.trainer.sandbox.bubblewrap import Bubblewrap
from dure_client.trainer.sandbox.interface import Sandbox, SandboxError
from dure_client.trainer.sandbox.limits import LimitsOnly, Unconfined


@functools.cache
def find_sandbox() -> Sandbox:
    """The strongest that works here. Tried once a process: an agent that is to find another is started again."""
    try:
        return Bubblewrap.find()
    except SandboxError as error:
        return LimitsOnly(str(error)) if os.name == "posix" else Unconfined(str(error))
