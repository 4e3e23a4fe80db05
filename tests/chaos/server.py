"""The product's server whose link and coordinators have hooks: `python -m tests.chaos.server --home HOME`.

What died is started again at once, so that many faults fit into one job.
"""

import sys
from dataclasses import dataclass

from dure_server import cli, supervise
from dure_server.settings import ServerHome
from dure_server.store import Store
from dure_server.supervise import ChildSpec

HOOKED = {"dure_server.link": "tests.chaos.link", "dure_server.coordinator": "tests.chaos.coordinator"}
QUICK_PAUSE_SECONDS = 0.1


@dataclass
class QuickChild(supervise._Child):
    """A child that is started again at once."""

    pause_seconds: float = QUICK_PAUSE_SECONDS


def hook() -> None:
    """Let the supervisor start the hooked processes."""
    module, coordinators = supervise._module, supervise._coordinators

    def hooked(spec: ChildSpec) -> ChildSpec:
        return ChildSpec(spec.name, [HOOKED.get(word, word) for word in spec.argv], spec.log_file)

    def hooked_module(home: ServerHome, name: str, json_logs: bool) -> ChildSpec:
        return hooked(module(home, name, json_logs))

    def hooked_coordinators(home: ServerHome, store: Store, json_logs: bool) -> list[ChildSpec]:
        return [hooked(spec) for spec in coordinators(home, store, json_logs)]

    supervise._module, supervise._coordinators = hooked_module, hooked_coordinators
    supervise._Child, supervise.LONGEST_PAUSE_SECONDS = QuickChild, QUICK_PAUSE_SECONDS


if __name__ == "__main__":
    hook()
    sys.argv[1:1] = ["run", "--json"]
    sys.exit(cli.main())
