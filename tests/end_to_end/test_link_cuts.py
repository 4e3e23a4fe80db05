"""A link that is cut at any byte, goes away and comes back: transfers go on where they were, messages come again."""

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from dure_client.agent import Agent, Answer, spool
from dure_client.link.client import LinkClient
from dure_protocols.errors import RefusalCode
from dure_protocols.frames import ArrayRef, Envelope, node_id
from dure_protocols.ledger import RecordKind
from tests.end_to_end.link_site import CONSORTIUM, Account, LinkSite, blob, eventually, in_background
from tests.end_to_end.wires import Wire

SIZE_BYTES = 6 << 20
SLACK_BYTES = 1 << 20
"""What may travel twice for one cut: in flight when it came, and the handshake of a new connection."""

CUTS = [2_000, 100_000, 1_500_000, 2_000_000]
"""Bytes after which one connection after the other is cut: in the handshake, at the begin, in the middle."""


def messages_of(client: LinkClient) -> list[Envelope]:
    """A list that grows with every message."""
    got: list[Envelope] = []

    def listen() -> None:
        for message in client.messages():
            got.append(message)  # noqa: PERF402

    in_background(listen)
    return got


def test_an_upload_that_is_cut_again_and_again_goes_on_each_time_where_it_was(
    site: LinkSite, firm: str, tmp_path: Path
) -> None:
    array, account = blob(SIZE_BYTES), Account()
    message = site.message(firm, "steel/3/1/cohort")
    site.push(firm, message)
    path = tmp_path / spool(array, tmp_path)
    ref = ArrayRef.of("masked", array, path.name)
    reply = message.reply(b"x", (ref,), created_at=time.time())
    with Wire(site.port, cuts=[("up", num_bytes) for num_bytes in CUTS]) as wire:
        client = site.client(firm, account=account, port=wire.port)
        client.upload(path, ref, reply, patience_seconds=60)
        client.reply(reply, RecordKind.MASKED_UPDATE, patience_seconds=20)
        assert len(wire.tunnels) > len(CUTS)
        assert SIZE_BYTES < wire.num_up < SIZE_BYTES + len(CUTS) * SLACK_BYTES
    assert (site.home.uploads / firm / ref.sha256).read_bytes() == array.tobytes()
    assert site.replies(message) == [reply]
    offsets = [entry.offset_bytes for entry in account.entries if entry.kind is RecordKind.BLOB]
    assert offsets == sorted(offsets)
    assert offsets[-1] > 1_000_000


def test_a_download_that_is_cut_again_and_again_goes_on_each_time_where_it_was(
    site: LinkSite, firm: str, tmp_path: Path
) -> None:
    array, account = blob(SIZE_BYTES, seed=11), Account()
    message = site.message(firm, arrays=[array])
    site.push(firm, message)
    target = tmp_path / message.arrays[0].sha256
    with Wire(site.port, cuts=[("down", num_bytes) for num_bytes in CUTS]) as wire:
        site.client(firm, account=account, port=wire.port).download(message.arrays[0], target, patience_seconds=60)
        assert len(wire.tunnels) > len(CUTS)
        assert SIZE_BYTES < wire.num_down < SIZE_BYTES + len(CUTS) * SLACK_BYTES
    assert target.read_bytes() == array.tobytes()
    assert [file.name for file in tmp_path.iterdir()] == [target.name]
    offsets = [entry.offset_bytes for entry in account.entries]
    assert offsets == sorted(offsets)
    assert offsets[-1] > 1_000_000


@pytest.mark.parametrize("seed", range(3))
def test_cuts_at_random_bytes_in_both_directions_lose_nothing_and_count_nothing_twice(
    site: LinkSite, firm: str, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    cuts = [(chance.choice(["up", "down"]), chance.randrange(1, 400_000)) for _ in range(8)]
    state, answers = tmp_path / "state", []

    def app(message: Envelope, arrays: object) -> Answer:
        drawn = np.frombuffer(chance.randbytes(400_000), np.uint64)
        answers.append(message.message_id)
        return Answer(message.message_id.encode(), {"masked": drawn})

    messages = [site.message(firm, f"job/{number}/{seed}/join", arrays=[blob(300_000, number)]) for number in range(4)]
    with Wire(site.port, cuts=cuts) as wire:
        client = site.client(firm, port=wire.port)
        agent = Agent(state, node_id(CONSORTIUM, firm), client, app, kind_of=lambda _: RecordKind.MASKED_UPDATE)
        running = in_background(agent.run)
        site.push(firm, *messages)
        replies = site.replies(*messages, timeout=60)
        client.close()
        running.join(20)
    assert {reply.reply_to for reply in replies} == {message.message_id for message in messages}
    assert sorted(answers) == sorted(message.message_id for message in messages)
    for reply in replies:
        uploaded = (site.home.uploads / firm / reply.arrays[0].sha256).read_bytes()
        assert len(uploaded) == 400_000


def test_a_download_goes_on_after_the_agent_was_started_again_and_old_parts_are_cleared_away(
    site: LinkSite, firm: str, tmp_path: Path
) -> None:
    array, seen = blob(SIZE_BYTES, seed=12), []
    message = site.message(firm, arrays=[array])
    site.push(firm, message)

    def app(_: Envelope, arrays: object) -> Answer:
        seen.append(dict(arrays))  # type: ignore[call-overload]
        return Answer(error_code=RefusalCode.DATA)

    def agent_on(client: LinkClient) -> Agent:
        return Agent(tmp_path, node_id(CONSORTIUM, firm), client, app, kind_of=lambda _: RecordKind.REFUSAL)

    part = tmp_path / "inbox" / f"{message.arrays[0].sha256}.part"
    with Wire(site.port, cuts=[("down", 2_000_000)]) as wire:
        first = site.client(firm, port=wire.port)
        running = in_background(agent_on(first).run)
        eventually(lambda: wire.num_down >= 2_000_000)
        wire.down()
        first.close()
        running.join(15)  # until then it may still write what has arrived
    kept = part.stat().st_size
    assert kept
    for name in ("old.part", "torn.new"):
        (tmp_path / "inbox" / name).write_bytes(b"x")
    age(tmp_path / "inbox" / "old.part", days=2)
    account = Account()
    second = site.client(firm, account=account)
    in_background(agent_on(second).run)
    eventually(lambda: seen)
    assert np.array_equal(seen[0]["a0"], array)
    assert [entry.offset_bytes for entry in account.entries if entry.kind is RecordKind.BLOB_CONTROL] == [kept]
    assert [file.name for file in (tmp_path / "inbox").iterdir()] == [message.arrays[0].sha256]


def age(file: Path, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(file, (then, then))


@pytest.mark.parametrize("how", ["down", "freeze"])
def test_a_message_that_comes_while_the_link_is_away_is_there_when_it_is_back(
    site: LinkSite, firm: str, how: str
) -> None:
    one, two = site.message(firm, "job/1/0/join"), site.message(firm, "job/2/0/join")
    with Wire(site.port) as wire:
        client = site.client(firm, port=wire.port)
        got = messages_of(client)
        site.push(firm, one)
        eventually(lambda: got == [one])
        getattr(wire, how)()
        site.push(firm, two)
        time.sleep(3)
        assert got == [one]
        wire.up()
        eventually(lambda: got[-1] == two)
        client.close()


def test_an_upload_through_a_cut_of_three_seconds_goes_on_and_its_reply_counts_once(
    site: LinkSite, firm: str, tmp_path: Path
) -> None:
    array = blob(SIZE_BYTES, seed=13)
    message = site.message(firm, "steel/4/0/cohort")
    site.push(firm, message)
    path = tmp_path / spool(array, tmp_path)
    ref = ArrayRef.of("masked", array, path.name)
    reply = message.reply(b"x", (ref,), created_at=time.time())
    with Wire(site.port, cuts=[("up", 2_000_000)]) as wire:
        client = site.client(firm, port=wire.port)
        uploading = in_background(lambda: client.upload(path, ref, reply, patience_seconds=60))
        eventually(lambda: wire.num_up >= 2_000_000)
        wire.down()
        time.sleep(3)
        wire.up()
        uploading.join(30)
        client.reply(reply, RecordKind.MASKED_UPDATE, patience_seconds=20)
        assert wire.num_up < SIZE_BYTES + 2 * SLACK_BYTES
    assert site.replies(message) == [reply]


def test_a_server_that_comes_back_is_found_within_the_longest_pause(site: LinkSite, firm: str) -> None:
    client, message = site.client(firm), site.message(firm)
    got = messages_of(client)
    eventually(lambda: firm in site.desk.connected())
    site.stop()
    site.start()
    site.push(firm, message)
    eventually(lambda: got == [message])


def test_closing_the_client_ends_it_at_once_while_it_looks_for_its_server(site: LinkSite, firm: str) -> None:
    with Wire(site.port) as wire:
        wire.down()
        client = site.client(firm, port=wire.port)
        listening = in_background(lambda: list(client.messages()))
        time.sleep(0.5)
        client.close()
        listening.join(5)
        assert not listening.is_alive()
