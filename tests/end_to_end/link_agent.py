"""An agent process for the link's tests: `python -m tests.end_to_end.link_agent KEYS STATE ADDRESS FIRM DELAY`.

Its app answers with bytes from the operating system's randomness, so two answers are the same only if one was kept.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from dure_client import flower
from dure_client.agent import Agent
from dure_client.link.client import LinkClient
from dure_protocols.errors import RefusalCode, RefusedError
from dure_protocols.frames import node_id
from dure_protocols.ledger import RecordKind
from tests.end_to_end.link_site import CONSORTIUM, Account

LENGTH = 1 << 20
CALLS = "calls"


def make_app(state: Path, delay_seconds: float) -> ClientApp:
    app = ClientApp()

    @app.query("dure")
    def answer(message: Message, context: Context) -> Message:
        with (state / CALLS).open("a") as calls:
            calls.write(f"{message.metadata.message_id}\n")
        time.sleep(delay_seconds)
        order = flower.body_of(message)
        if order == b"refuse":
            raise RefusedError(RefusalCode.COHORT_TOO_SMALL, "only two firms, says our policy of 2026-01-07")
        if order == b"fail":
            raise ValueError("row 17: temperature 1e99 of machine 4 is out of range")
        if order == b"other form":
            return Message(message.content.__class__(), reply_to=message)
        arrays = flower.arrays_of(message)
        assert all(isinstance(array, np.memmap) for array in arrays.values())
        drawn = os.urandom(16)
        vector = np.random.default_rng(list(drawn)).integers(0, 1 << 63, LENGTH, dtype=np.uint64)
        return Message(flower.content(drawn, {"masked": vector}), reply_to=message)

    return app


def main(keys: Path, state: Path, address: str, firm: str, delay_seconds: str) -> None:
    state.mkdir(parents=True, exist_ok=True)
    link = LinkClient(address, keys, Account())
    app = flower.FlowerApp(make_app(state, float(delay_seconds)))
    Agent(state, node_id(CONSORTIUM, firm), link, app, kind_of=lambda reply: RecordKind.MASKED_UPDATE).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
