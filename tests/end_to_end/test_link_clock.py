"""An agent whose clock is hours off, on a real link: it works all the same, and says by how much."""

import logging
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dure_client.agent import Agent, Answer
from dure_client.link.clock import ServerClock
from dure_protocols.certificates import Authority, new_serial, new_tls_key, read_certificate
from dure_protocols.errors import RefusalCode
from dure_protocols.frames import Envelope, node_id
from dure_protocols.ledger import RecordKind
from tests.end_to_end.link_site import CONSORTIUM, LinkSite, in_background


@pytest.mark.parametrize("hours", [-20, -5, 5, 24 * 40])
def test_an_agent_whose_clock_is_off_answers_messages_that_live_a_minute_and_says_by_how_much(
    site: LinkSite, firm: str, tmp_path: Path, hours: int, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ServerClock(lambda: time.time() + 3600 * hours)
    client = site.client(firm, clock=clock)

    def app(message: Envelope, arrays: object) -> Answer:
        return Answer(error_code=RefusalCode.DATA)

    agent = Agent(tmp_path, node_id(CONSORTIUM, firm), client, app, kind_of=lambda _: RecordKind.REFUSAL)
    with caplog.at_level(logging.INFO):
        in_background(agent.run)
        message = site.message(firm)  # created now, by the server's clock, for 60 s
        site.push(firm, message)
        (reply,) = site.replies(message)
        client.close()
    assert clock.ahead_seconds == pytest.approx(3600 * hours, abs=5)
    assert abs(reply.created_at - time.time()) < 20  # the server's time, not this machine's
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("this machine's clock is" in each and "timedatectl" in each for each in said)


def test_a_message_that_expired_by_the_servers_time_is_dropped_whatever_this_machine_says(
    site: LinkSite, firm: str, tmp_path: Path
) -> None:
    clock = ServerClock(lambda: time.time() - 7200)
    client = site.client(firm, clock=clock)
    fresh = site.message(firm)
    site.push(firm, fresh)
    assert next(client.messages()) == fresh
    calls: list[Envelope] = []

    def app(message: Envelope, arrays: object) -> Answer:
        calls.append(message)
        return Answer(error_code=RefusalCode.DATA)

    agent = Agent(tmp_path, node_id(CONSORTIUM, firm), client, app, kind_of=lambda _: RecordKind.REFUSAL)
    agent.handle(site.message(firm, "job/5/0/join", created_at=time.time() - 61, ttl=60.0))
    assert calls == []


def test_a_consortium_founded_a_moment_ago_is_believed_by_a_site_that_is_behind() -> None:
    """TLS looks at this machine's own clock, which no test can set: what it would see is looked at instead."""
    now, behind = datetime.now(UTC), timedelta(hours=20)
    authority = Authority.create("Mills", now + behind, key=new_tls_key(), serial=new_serial())
    pem = authority.issue_server(new_tls_key().public_key(), ["127.0.0.1"], now + behind, serial=new_serial())
    assert authority.facts.is_valid_at(now)
    assert read_certificate(pem).is_valid_at(now)
