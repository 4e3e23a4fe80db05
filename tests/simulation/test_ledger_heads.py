"""No side rewrites a firm's ledger unnoticed: not the firm, not the server, not both without the other firms."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from dure_client.heads import read_statements, read_witnesses, statements_file, witnesses_file
from dure_client.ledger import head_file
from dure_client.ledger_export import countersigned_in, verify_own
from dure_protocols.certificates import Authority
from dure_protocols.errors import IdentityError
from dure_protocols.heads import NOTHING_BEFORE, Statement, Witnessed
from dure_protocols.ledger import Head, LedgerError
from dure_server.console.views import firm_views
from dure_server.link.witness import Witness
from tests.ledgers import START, FirmLedger, Site

Firms = tuple[FirmLedger, FirmLedger]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "site", "kim", "lee", "park")
    made.share_a_job("job-1", "kim", "lee")
    yield made
    made.close()


@pytest.fixture
def firms(site: Site) -> Iterator[Firms]:
    """Kim and lee, who work together, accept each other and have both stated a head."""
    kim, lee = FirmLedger(site, "kim"), FirmLedger(site, "lee")
    kim.accept(lee)
    lee.accept(kim)
    for firm in (kim, lee):
        firm.record(4)
        assert firm.state() == []
    yield kim, lee
    kim.close()
    lee.close()


def test_partners_keep_each_others_heads_and_strangers_hear_of_none(site: Site, firms: Firms) -> None:
    kim, lee = firms
    kim.record()
    assert kim.state() == []
    held = {each.firm: each.statement.head.number for each in read_witnesses(kim.file)}
    assert held == {"kim": 6, "lee": 4}
    park = FirmLedger(site, "park")
    park.accept(kim, lee)
    park.record()
    assert park.state() == []
    assert [each.firm for each in read_witnesses(park.file)] == ["park"]
    park.close()


def test_nothing_is_stated_while_nothing_but_statements_has_left(firms: Firms) -> None:
    kim, _ = firms
    assert kim.heads.next(kim.ledger.head) is None
    kim.record()
    assert kim.heads.next(kim.ledger.head) is not None


def test_a_statement_whose_answer_was_lost_is_sent_again_and_is_no_break(site: Site, firms: Firms) -> None:
    kim, _ = firms
    kim.record()

    def lose(answer: bytes) -> bytes:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        kim.state(deliver=lose)
    kim.close()
    kim.open()  # killed and started again
    kim.record(2)
    assert kim.state() == []
    assert kim.state() == []
    assert [each.head.number for each in read_statements(kim.file)] == [4, 6, 10]
    assert site.audited == []
    assert kim.verify(kim.export()).countersigned is not None


STATING = """
import sys
from pathlib import Path
from tests.ledgers import FirmLedger, Site
kim = FirmLedger(Site(Path(sys.argv[1]), "kim"), "kim")
while True:
    kim.record(2)
    assert kim.state() == []
    print(kim.ledger.head.number, flush=True)
"""


def test_processes_killed_at_any_moment_make_no_break_and_lose_no_record(tmp_path: Path) -> None:
    said = 0
    for num_lines in (1, 4, 9):
        process = subprocess.Popen(
            [sys.executable, "-c", STATING, str(tmp_path / "site")],
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
        )  # fmt: skip
        assert process.stdout is not None
        lines = [int(process.stdout.readline()) for _ in range(num_lines)]
        process.send_signal(signal.SIGKILL)
        lines += [int(line) for line in process.stdout.read().split()]
        process.wait()
        process.stdout.close()
        assert lines[0] > said
        said = lines[-1]
    site = Site(tmp_path / "site", "kim")
    kim = FirmLedger(site, "kim")
    kim.record()
    assert kim.state() == []
    found = kim.verify(kim.export())
    assert found.head.number > said
    assert found.countersigned is not None
    assert (found.countersigned.num_breaks, site.audited, found.doubts) == (0, [], [])
    kim.close()
    site.close()


def test_a_statement_torn_by_a_crash_was_never_sent_and_is_made_anew(site: Site, firms: Firms) -> None:
    kim, _ = firms
    with statements_file(kim.file).open("ab") as file:
        file.write(next(read_statements(kim.file)).to_line()[:50])
    kim.close()
    kim.open()
    kim.record()
    assert kim.state() == []
    assert kim.verify(kim.export()).num_statements == 2
    assert site.audited == []


def test_a_firm_that_rolls_back_is_told_and_named_to_operator_and_partners(site: Site, firms: Firms) -> None:
    kim, lee = firms
    backup = kim.back_up()
    kim.record(3)
    assert kim.state() == []
    lee.record()
    assert lee.state() == []  # lee keeps kim's record 8
    kim.restore(backup)
    kim.record(1, note="another history ")
    (told,) = kim.state()
    assert told.startswith("kim: its statements were broken off after record 8")
    ((named, why),) = site.audited
    assert named == "kim"
    assert "ends with record 6, and it once had 8" in why
    lee.record()
    (told,) = lee.state()
    assert told.startswith("kim: its statements were broken off after record 8")
    exported = kim.verify(kim.export())
    assert any("the ledger was rewritten since" in doubt for doubt in exported.doubts)
    for _ in range(3):  # goes on, is countersigned again, and the evidence stays
        kim.record()
        assert kim.state() == []
        lee.record()
        assert lee.state() == []
    assert kim.verify(kim.export()).countersigned.num_breaks == 1  # type: ignore[union-attr]
    assert [each.statement.head.number for each in read_witnesses(lee.file) if each.firm == "kim"][:1] == [8]
    assert len(site.audited) == 1
    with site.store.reading() as tx:
        shown = {firm.name: firm.ledger_breaks for firm in firm_views(tx)}
    assert (shown["kim"], shown["lee"]) == (1, 0)


def test_a_firm_that_rewrites_and_lies_about_it_contradicts_its_own_statements(site: Site, firms: Firms) -> None:
    kim, _ = firms
    kim.rewrite()
    assert kim.state() == []  # the server cannot see it: the statement claims to follow
    with pytest.raises(LedgerError, match="another record 4 than is here: the ledger was rewritten") as caught:
        kim.export()
    assert caught.value.position == 4


def test_a_firm_that_forges_its_statements_too_is_found_by_what_partners_keep(site: Site, firms: Firms) -> None:
    kim, lee = firms
    lee.record()
    assert lee.state() == []
    kim.rewrite()
    statements_file(kim.file).unlink()
    witnesses_file(kim.file).unlink()
    export = kim.export()
    assert kim.verify(export).doubts == []  # alone it holds
    with pytest.raises(LedgerError, match="others hold another record 4, signed by this firm") as caught:
        kim.verify(export, held=countersigned_in(lee.export()))
    assert caught.value.position == 4
    kim.verify(export, held=countersigned_in(kim.export()))


def test_a_firm_that_forges_what_it_stated_before_the_last_is_found_by_what_partners_keep(
    site: Site, firms: Firms
) -> None:
    kim, lee = firms
    kim.rewrite()
    assert kim.state() == []  # a lie: it claims to go on from the statement on record 4
    lee.record()
    assert lee.state() == []  # lee keeps the lie alone, whose record is in the ledger
    kim.forge_statements()
    export = kim.export()
    assert kim.verify(export).doubts == []  # alone it holds
    with pytest.raises(LedgerError, match="what it had stated before was rewritten"):
        kim.verify(export, held=countersigned_in(lee.export()))


def test_a_firm_that_rolls_back_and_throws_the_evidence_away_is_told_on_by_the_count_of_breaks(
    firms: Firms,
) -> None:
    kim, _ = firms
    kim.roll_back_and_hide_it()
    assert kim.verify(kim.export()).doubts == ["kim: the server counted 1 break of its statements"]


def test_a_firm_that_cuts_its_end_off_is_found_by_what_partners_keep(site: Site, firms: Firms) -> None:
    kim, lee = firms
    lee.record()
    assert lee.state() == []
    kim.close()
    kim.file.write_bytes(b"".join(kim.file.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(LedgerError, match="its end was cut off"):
        verify_own(kim.file, "kim", kim.identity, site.root_der)
    kim.cut(2)
    with pytest.raises(LedgerError, match="others hold that this firm signed record 4: the end was cut off"):
        kim.verify(kim.export(), held=countersigned_in(witnesses_file(lee.file)))


def test_a_cut_ledger_is_found_by_the_firms_own_statements(site: Site, firms: Firms) -> None:
    kim, _ = firms
    kim.close()
    kim.file.write_bytes(b"".join(kim.file.read_bytes().splitlines(keepends=True)[:2]))
    head_file(kim.file).unlink()
    with pytest.raises(LedgerError, match="this firm stated that it had 4"):
        verify_own(kim.file, "kim", kim.identity, site.root_der)


def test_a_server_that_shows_an_older_head_than_before_is_told_on(site: Site, firms: Firms) -> None:
    kim, lee = firms
    with site.store.reading() as at:
        old = at.ledger_heads.find("lee")
    assert old is not None
    lee.record(3)
    assert lee.state() == []
    kim.record()
    assert kim.state() == []
    with site.store.transaction() as at:
        at.ledger_heads.keep(old)
    kim.record()
    (told,) = kim.state()
    assert told.startswith("lee: record 4 is shown as its end, but on ")
    assert told.endswith("it was record 8")


def test_a_server_whose_store_was_lost_cannot_pass_that_off_as_the_first_time(site: Site, firms: Firms) -> None:
    kim, _ = firms
    lost = Site(site.folder / "lost", "kim", "lee")
    kim.site = lost
    kim.record()
    (told,) = kim.state()
    assert "broken off after record 4" in told
    assert "a statement before it that is not here" in lost.audited[0][1]
    lost.close()


def swap(answer: bytes, **parts: object) -> bytes:
    held = Witnessed.decode(answer)
    fields = {"own": held.own, "replaced": held.replaced, "others": held.others}
    return Witnessed(**{**fields, **parts}).encode()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        pytest.param("older", "something else than this firm's statement", id="an older countersignature"),
        pytest.param("lee", "something else than this firm's statement", id="another firm's"),
        pytest.param("replaced", "another firm's head as this firm's", id="another firm's as the one replaced"),
        pytest.param("root", "the consortium's root did not sign", id="another root's"),
    ],
)
def test_an_answer_that_is_not_for_this_statement_is_not_kept(site: Site, firms: Firms, lie: str, says: str) -> None:
    kim, lee = firms
    older, other = read_witnesses(kim.file)[0], read_witnesses(lee.file)[-1]
    strange = Site(site.folder / "strange", "kim", "lee")

    def deliver(answer: bytes) -> bytes:
        if lie == "root":
            statement = Witnessed.decode(answer).own.statement
            forged = Witness(strange.store, other_authority()).deposit("kim", statement.encode())
            return swap(answer, own=Witnessed.decode(forged).own)
        return swap(answer, **{"older": {"own": older}, "lee": {"own": other}, "replaced": {"replaced": other}}[lie])

    kim.record()
    before = witnesses_file(kim.file).read_bytes()
    with pytest.raises(LedgerError, match=says):
        kim.state(deliver=deliver)
    assert witnesses_file(kim.file).read_bytes() == before
    assert kim.state() == []
    strange.close()


def other_authority() -> Authority:
    key = ec.derive_private_key(8, ec.SECP256R1())
    return Authority.create("Millers", START, key=key, serial=2)


def test_a_head_of_a_firm_that_is_not_accepted_here_under_that_key_is_not_kept(site: Site, firms: Firms) -> None:
    kim, lee = firms
    kim.pins = {"lee": kim.identity.fingerprint}
    lee.record()
    assert lee.state() == []
    kim.record()
    assert kim.state() == []
    assert {each.firm for each in read_witnesses(kim.file)} == {"kim"}


def test_nobody_states_for_another_firm(site: Site, firms: Firms) -> None:
    kim, lee = firms
    forged = Statement.make(Head(99, bytes(32)), NOTHING_BEFORE, kim.identity)
    with pytest.raises(IdentityError, match="did not sign this statement"):
        site.witness.deposit("lee", forged.encode())
    lee.record()
    assert lee.state() == []
    assert site.audited == []
