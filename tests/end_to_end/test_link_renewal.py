"""Certificates that live seconds, renewed again and again in mid-job: no message is lost and none answered twice."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from dure_client.agent import Agent, Answer
from dure_client.home import AgentConfig, AgentHome
from dure_client.upkeep import Upkeep
from dure_protocols.certificates import new_serial, read_certificate, signing_request
from dure_protocols.frames import Envelope, node_id
from dure_protocols.ledger import RecordKind
from tests.end_to_end.link_site import CONSORTIUM, Account, LinkSite, blob, eventually, in_background
from tests.end_to_end.wires import Wire

LIFE_SECONDS = 6.0
NUM_RENEWALS = 3
FIRM = "mill"


@pytest.fixture
def brief() -> Iterator[LinkSite]:
    """A link whose certificates live seconds."""
    made = LinkSite()
    try:
        made.start("tests.end_to_end.short_lived_link", str(made.home.path), str(LIFE_SECONDS))
        yield made
    finally:
        made.close()


def home_of(site: LinkSite, port: int) -> AgentHome:
    """A joined firm's home whose first certificate is due at once."""
    site.admit(FIRM)
    home = AgentHome(site.folder / FIRM)
    home.create()
    home.write_config(
        AgentConfig(
            consortium=CONSORTIUM,
            firm=FIRM,
            server_host="127.0.0.1",
            enrolment_port=1,
            link_port=port,
            root_fingerprint=site.authority.fingerprint,
        )
    )
    for file in home.keys.iterdir():
        file.chmod(0o600)
    return home


def age(site: LinkSite, home: AgentHome) -> None:
    """Shorten the certificate's life to what the link gives."""
    csr, now = signing_request(home.tls_key()), datetime.now(UTC)
    pem = site.authority.issue_client(FIRM, csr, now, serial=new_serial(), days=LIFE_SECONDS / 86_400)
    with site.store.transaction() as at:
        at.certificates.add(read_certificate(pem), pem)
    home.tls_certificate_file.write_bytes(pem)


def test_the_stream_and_transfers_go_on_under_one_certificate_after_the_other(brief: LinkSite, tmp_path: Path) -> None:
    account, seen, calls = Account(), set(), []
    with Wire(brief.port) as wire:
        home = home_of(brief, wire.port)
        age(brief, home)
        client = brief.client(FIRM, home.keys, account, port=wire.port)

        def app(message: Envelope, arrays: object) -> Answer:
            calls.append(message.message_id)
            return Answer(b"x", {"masked": np.arange(200_000, dtype=np.uint64) + len(calls)})

        agent = Agent(home.state, node_id(CONSORTIUM, FIRM), client, app, kind_of=lambda _: RecordKind.MASKED_UPDATE)
        failed: list[BaseException] = []

        def run() -> None:
            try:
                agent.run()
            except BaseException as error:  # noqa: BLE001  # looked at below
                failed.append(error)

        stop = threading.Event()
        running = in_background(run)
        upkeep = in_background(Upkeep(home, client, stop, {}, look_seconds=0.1, retry_seconds=0.3).run)
        messages, deadline = [], time.monotonic() + 60
        while account.kinds.count("renewal") < NUM_RENEWALS:
            assert time.monotonic() < deadline, f"{account.kinds.count('renewal')} renewals"
            seen.add(home.certificate().fingerprint)
            message = brief.message(FIRM, f"job/{len(messages)}/0/join", arrays=[blob(200_000, len(messages))])
            brief.push(FIRM, message)
            messages.append(message)
            time.sleep(0.1)
        replies = brief.replies(*messages, timeout=30)
        while len(wire.tunnels) < NUM_RENEWALS + 1:  # one for each certificate
            assert time.monotonic() < deadline, f"{len(wire.tunnels)} connections"
            time.sleep(0.05)
        stop.set()
        upkeep.join(15)
        client.close()
        running.join(15)
    assert failed == []
    assert {reply.reply_to for reply in replies} == {message.message_id for message in messages}
    assert sorted(calls) == sorted(message.message_id for message in messages)
    assert len(seen) >= NUM_RENEWALS


def test_a_running_agent_goes_where_agent_toml_says_once_it_says_something_else(
    site: LinkSite, firm: str, tmp_path: Path
) -> None:
    message = site.message(firm)
    with Wire(site.port) as old, Wire(site.port) as new:
        home = AgentHome(site.folder / firm)
        home.create()
        config = AgentConfig(
            consortium=CONSORTIUM,
            firm=firm,
            server_host="127.0.0.1",
            enrolment_port=1,
            link_port=old.port,
            root_fingerprint=site.authority.fingerprint,
        )
        home.write_config(config)
        for file in home.keys.iterdir():
            file.chmod(0o600)
        client, stop = site.client(firm, home.keys, route=config.route({})), threading.Event()
        in_background(Upkeep(home, client, stop, {}, look_seconds=0.1).run)
        got: list[Envelope] = []
        in_background(lambda: [got.append(each) for each in client.messages()])
        eventually(lambda: firm in site.desk.connected())
        old.down()
        site.push(firm, message)
        home.config_file.write_text("this is no TOML")  # is not followed, and costs nothing
        time.sleep(0.5)
        home.write_config(config.model_copy(update={"link_port": new.port}))
        eventually(lambda: message in got)
        assert new.tunnels
        stop.set()
        client.close()
