"""The thread that states where the ledger ends: what it says of whom."""

import hashlib
import logging
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from dure_client import heads
from dure_client.heads import HeadKeeper, read_witnesses
from dure_client.home import AgentConfig, AgentHome, keep_or_make_private
from dure_client.ledger import Ledger
from dure_protocols.ledger import Entry, RecordKind
from tests.ledgers import Site
from tests.server.samples import identity


def test_a_policy_that_is_not_valid_is_told_once_and_not_as_the_servers_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(heads, "PAUSE_SECONDS", 0.0)
    site, home, stop = Site(tmp_path / "site", "kim"), AgentHome(tmp_path / "kim"), threading.Event()
    home.create()
    keep_or_make_private(home.identity_key_file, identity("kim").to_pem())
    home.root_file.write_bytes(site.authority.certificate_pem)
    home.policy_file.write_text("minimum_cohrt = 3")
    home.write_config(
        AgentConfig(
            consortium="Millers", firm="kim", server_host="localhost", enrolment_port=1, link_port=2,
            root_fingerprint="00" * 32,
        )
    )  # fmt: skip
    with Ledger(home.ledger_file, identity("kim")) as ledger:

        def record() -> None:
            for _ in range(2):
                ledger.record(Entry(RecordKind.JOIN, 1, hashlib.sha256(b"").digest(), "job-1", 1))

        deposited: list[bytes] = []

        def deposit(data: bytes) -> bytes:
            deposited.append(data)
            record()
            if len(deposited) == 3:
                stop.set()
            return site.witness.deposit("kim", data)

        record()
        link = SimpleNamespace(takes_heads=True, deposit=deposit)
        with caplog.at_level(logging.INFO, logger="dure_client"):
            keeper = threading.Thread(
                target=HeadKeeper(home, ledger, link, stop).run,  # type: ignore[arg-type]
                daemon=True,
            )
            keeper.start()
            keeper.join(20)
    stop.set()
    assert len(deposited) == 3
    assert [each.firm for each in read_witnesses(home.ledger_file)] == ["kim"]
    told = [record.getMessage() for record in caplog.records if record.name.startswith("dure_client")]
    assert len(told) == 1, told
    assert "did you mean minimum_cohort" in told[0]
    assert "the server" not in told[0]
    site.close()
