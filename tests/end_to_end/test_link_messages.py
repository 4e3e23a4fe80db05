"""Messages between a coordinator's desk and firms' agents over a real link process."""

import time

import pytest

from dure_client.link.client import LinkClient, LinkRefusedError
from dure_protocols.frames import ArrayRef, Envelope
from dure_protocols.ledger import RecordKind
from dure_server.link.errors import GridError
from tests.end_to_end.link_site import Account, LinkSite, blob


def answer(client: LinkClient, message: Envelope, body: bytes = b"answer") -> Envelope:
    reply = message.reply(body, created_at=time.time())
    client.reply(reply, RecordKind.JOIN, patience_seconds=10)
    return reply


def test_a_message_reaches_a_waiting_agent_at_once_and_the_reply_comes_back(site: LinkSite, firm: str) -> None:
    client = site.client(firm)
    incoming = client.messages()
    first = site.message(firm, "job/1/0/warm-up")
    site.push(firm, first)
    assert next(incoming) == first
    took = []
    for number in range(5):
        message = site.message(firm, f"job/1/{number}/join")
        began = time.monotonic()
        site.push(firm, message)
        assert next(incoming) == message
        sent = answer(client, message)
        assert site.replies(message) == [sent]
        took.append(time.monotonic() - began)
    assert min(took) < 0.2


def test_a_message_pushed_while_no_agent_was_there_is_delivered_when_one_comes(site: LinkSite, firm: str) -> None:
    messages = [site.message(firm, f"job/1/{number}/join") for number in range(3)]
    site.push(firm, *messages)
    incoming = site.client(firm).messages()
    assert [next(incoming) for _ in messages] == messages


def test_what_is_unanswered_comes_again_on_the_next_connection_and_what_is_answered_does_not(
    site: LinkSite, firm: str
) -> None:
    one, two, three = (site.message(firm, f"job/1/{number}/join") for number in range(3))
    site.push(firm, one, two)
    first = site.client(firm)
    incoming = first.messages()
    assert [next(incoming), next(incoming)] == [one, two]
    answer(first, one)
    first.close()
    site.push(firm, three)
    incoming = site.client(firm).messages()
    assert [next(incoming), next(incoming)] == [two, three]


def test_messages_survive_a_kill_of_the_link(site: LinkSite, firm: str) -> None:
    client = site.client(firm)
    incoming = client.messages()
    one, two = site.message(firm, "job/1/0/join"), site.message(firm, "job/2/0/join")
    site.push(firm, one)
    assert next(incoming) == one
    site.kill()
    site.start()
    site.push(firm, two)
    assert [next(incoming), next(incoming)] == [one, two]
    sent = [answer(client, message) for message in (one, two)]
    site.kill()
    site.start()
    assert sorted(site.replies(one, two), key=lambda reply: reply.group) == sent


def test_the_newest_connection_of_a_firm_takes_over(site: LinkSite, firm: str) -> None:
    older, newer = site.client(firm), site.client(firm)
    taken = older.messages()
    one, two = site.message(firm, "job/1/0/join"), site.message(firm, "job/2/0/join")
    site.push(firm, one)
    assert next(taken) == one
    incoming = newer.messages()
    assert next(incoming) == one
    older.close()
    site.push(firm, two)
    assert next(incoming) == two
    assert firm in site.desk.connected()


def test_a_reply_may_be_repeated_and_the_first_one_counts(site: LinkSite, firm: str) -> None:
    client = site.client(firm)
    message = site.message(firm)
    site.push(firm, message)
    first = answer(client, message, b"first")
    client.reply(first, RecordKind.JOIN, patience_seconds=10)
    answer(client, message, b"second")  # refused by the link, and quietly so: the first counts
    assert site.replies(message) == [first]


def test_a_reply_to_another_firms_message_is_refused(site: LinkSite, firm: str, other: str) -> None:
    message = site.message(firm)
    site.push(firm, message)
    thief = site.client(other)
    with pytest.raises(LinkRefusedError, match="no message to this firm"):
        answer(thief, message)
    assert site.replies(message, timeout=0.1) == []


def test_a_reply_that_claims_another_sender_or_run_is_refused(site: LinkSite, firm: str) -> None:
    message = site.message(firm)
    site.push(firm, message)
    sent = message.reply(b"x", created_at=time.time())
    for change in ({"src_node": 99}, {"run_id": 8}, {"group": "job/2/0/join"}, {"message_type": "train.dure"}):
        forged = Envelope(**(vars(sent) | change))
        with pytest.raises(LinkRefusedError, match="no message to this firm"):
            site.client(firm).reply(forged, RecordKind.JOIN, patience_seconds=10)


def test_a_reply_is_refused_while_its_blob_is_not_there(site: LinkSite, firm: str) -> None:
    client = site.client(firm)
    message = site.message(firm)
    site.push(firm, message)
    reply = message.reply(b"x", (ArrayRef.of("masked", blob(10_000)),), created_at=time.time())
    with pytest.raises(LinkRefusedError, match="upload blob"):
        client.reply(reply, RecordKind.MASKED_UPDATE, patience_seconds=10)
    assert site.replies(message, timeout=0.1) == []


def test_pushing_again_changes_nothing_and_finds_the_recorded_reply(site: LinkSite, firm: str) -> None:
    client = site.client(firm)
    message = site.message(firm)
    site.push(firm, message)
    sent = answer(client, message)
    again = site.message(firm)  # made by a coordinator that was started again, a moment later
    assert again.message_id == message.message_id
    site.push(firm, again)
    assert site.replies(again) == [sent]


def test_an_id_cannot_be_used_for_another_message(site: LinkSite, firm: str) -> None:
    fresh = site.message(firm, "job/9/0/join")
    site.push(firm, site.message(firm))
    with pytest.raises(GridError, match="another attempt"):
        site.push(firm, fresh, site.message(firm, body=b"something else"))
    site.push(firm, last := site.message(firm, "job/9/1/join"))
    incoming = site.client(firm).messages()
    assert [next(incoming).body, next(incoming)] == [b"x", last]  # nothing of the refused push was recorded


def test_an_expired_message_is_not_delivered(site: LinkSite, firm: str) -> None:
    stale = site.message(firm, "job/1/0/join", created_at=time.time() - 100, ttl=50.0)
    fresh = site.message(firm, "job/1/1/join")
    site.push(firm, stale, fresh)
    assert next(site.client(firm).messages()) == fresh


def test_a_forgotten_message_is_neither_delivered_nor_may_it_be_answered(site: LinkSite, firm: str) -> None:
    gone, kept = site.message(firm, "job/1/0/join"), site.message(firm, "job/1/1/join")
    site.push(firm, gone, kept)
    site.desk.forget([gone.message_id])
    client = site.client(firm)
    assert next(client.messages()) == kept
    with pytest.raises(LinkRefusedError, match="no message to this firm"):
        answer(client, gone)


def test_every_byte_of_every_request_is_on_record_before_it_leaves(site: LinkSite, firm: str) -> None:
    account = Account()
    client = site.client(firm, account=account)
    message = site.message(firm, "steel/3/1/cohort")
    site.push(firm, message)
    assert next(client.messages()) == message
    sent = answer(client, message)
    assert account.kinds == ["subscription", "join"]
    last = account.entries[-1]
    assert (last.size_bytes, last.job, last.round, last.attempt) == (len(sent.encode()), "steel", 3, 1)
    assert last.message_id == message.message_id


def test_nothing_leaves_when_it_cannot_be_recorded(site: LinkSite, firm: str) -> None:
    class FullDiskError(Exception):
        pass

    class Broken(Account):
        def record(self, entry: object) -> None:
            raise FullDiskError

    message = site.message(firm)
    site.push(firm, message)
    with pytest.raises(FullDiskError):
        answer(site.client(firm, account=Broken()), message)
    assert site.replies(message, timeout=0.1) == []
