"""What keeps a trainer from everything but its job's data and its scratch folder (docs/sandbox.md).

`find_sandbox` gives the best that this host has; `process.start` puts the trainer into it. Nothing here reads data.
"""

from dure_client.trainer.sandbox.find import find_sandbox
from dure_client.trainer.sandbox.interface import Confined, Grants, Limits, Sandbox, SandboxError, SandboxLevel

__all__ = ["Confined", "Grants", "Limits", "Sandbox", "SandboxError", "SandboxLevel", "find_sandbox"]
