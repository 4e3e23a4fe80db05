"""The product's link with hooks, and with a way to deliver messages twice, late and in another order."""

import argparse
import asyncio
import sys
from pathlib import Path

from dure_protocols.frames import Envelope, Place
from dure_server.link import blobs, process
from dure_server.link.exchange import Exchange
from dure_server.link.journal import Journal, Pushed
from tests.chaos.points import Point, reach


def at(place: Place, moment: str) -> str:
    return reach(Point("link", place.job, place.phase.partition(".")[0], place.round, moment))


def hook() -> None:
    """Make this process tell where it is."""
    push, record, deliver = Journal.push, Journal.record_reply, Exchange.deliver
    append, receive = blobs._append, blobs._receive
    last: list[Place] = [Place("")]
    earlier: list[Pushed] = []

    async def push_hooked(self, pushed):
        new = await push(self, pushed)
        if pushed:
            last[0] = Place.of(pushed[0].envelope.group)
            at(last[0], "pushed")
        return new

    async def record_hooked(self, message_id, reply, digests):
        recorded = await record(self, message_id, reply, digests)
        at(Place.of(Envelope.decode(reply).group), "answered")
        return recorded

    def append_hooked(file, chunk, running):
        append(file, chunk, running)
        at(last[0], "storing")

    async def receive_hooked(*arguments):
        await receive(*arguments)
        at(last[0], "stored")

    def deliver_hooked(self, pushed):
        messages = fresh = list(pushed)
        word = at(Place.of(messages[0].envelope.group), "delivering") if messages else ""
        order, _, seconds = word.partition(" ")
        if order == "duplicate":
            messages = [*messages, *messages]
        if order == "reorder":  # those of the phase before come once more, and behind these
            messages = [*messages, *earlier]
        earlier[:] = fresh
        if order == "delay":
            asyncio.get_running_loop().call_later(float(seconds), deliver, self, messages)
            return
        deliver(self, messages)

    Journal.push, Journal.record_reply, Exchange.deliver = push_hooked, record_hooked, deliver_hooked
    blobs._append, blobs._receive = append_hooked, receive_hooked


if __name__ == "__main__":
    hook()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sys.exit(process.main(arguments.home, as_json=arguments.json))
