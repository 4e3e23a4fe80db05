"""The product's coordinator with hooks."""

import sys

from dure_server.coordinator import __main__ as product
from dure_server.coordinator.conversation import Conversation
from dure_server.coordinator.record import JobRecord
from tests.chaos.points import Point, reach


def hook() -> None:
    """Make this process tell where it is."""
    push, ask, finish = Conversation._push, Conversation.ask, JobRecord.finish_round

    def at(job: str, phase: str, number: int | None, moment: str) -> None:
        reach(Point("coordinator", job, phase, number or 0, moment))

    def push_hooked(self, requests, situation, key, arrays):
        at(self._job, situation.phase, situation.round, "asking")
        ids = push(self, requests, situation, key, arrays)
        at(self._job, situation.phase, situation.round, "asked")
        return ids

    def ask_hooked(self, requests, situation, **more):
        for number, heard in enumerate(ask(self, requests, situation, **more)):
            if number == 0:
                at(self._job, situation.phase, situation.round, "heard")
            yield heard

    def finish_hooked(self, number, attempt, **outcome):
        at(self._job, "publish", number, "asking")
        finish(self, number, attempt, **outcome)
        at(self._job, "publish", number, "asked")

    Conversation._push, Conversation.ask, JobRecord.finish_round = push_hooked, ask_hooked, finish_hooked


if __name__ == "__main__":
    hook()
    sys.exit(product.main())
