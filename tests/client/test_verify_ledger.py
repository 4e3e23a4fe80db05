"""The verifier in docs/, which knows nothing of Dure's code, says of an export what Dure says."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dure_client.heads import read_witnesses, statements_file, witnesses_file
from dure_client.ledger_export import export_lines
from dure_protocols.ledger import Entry, RecordKind
from tests.ledgers import FirmLedger, Site

SCRIPT = Path(__file__).parents[2] / "docs" / "verify_ledger.py"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FirmLedger]:
    site = Site(tmp_path_factory.mktemp("site"), "kim")
    kim = FirmLedger(site, "kim")
    kim.record(2)
    kim.state()
    kim.ledger.record(Entry(RecordKind.NOT_SENT, 3, bytes(32)))
    kim.close()
    site.close()
    return kim.export(), kim


def test_it_comes_to_the_same(told: tuple[Path, FirmLedger]) -> None:
    file, kim = told
    found = kim.verify(file)
    assert found.countersigned is not None
    countersigned = f"countersigned up to record 2 on {found.countersigned.time}"
    said = f"{found.head.number} records hold; {found.totals.sent_bytes} bytes left; {countersigned}\n"
    assert by_hand(kim, file) == Told(0, said, "")


def test_it_finds_and_locates_every_third_byte_that_is_changed(told: tuple[Path, FirmLedger]) -> None:
    file, kim = told
    spec = importlib.util.spec_from_file_location("verify_ledger", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    content, fingerprints = file.read_bytes(), (kim.identity.fingerprint, kim.site.authority.fingerprint)
    for place in range(0, len(content), 3):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        lines = bytes(changed).splitlines(keepends=True)
        with pytest.raises(ValueError, match=f"^line {content[:place].count(10) + 1}: "):
            script.check(lines, *fingerprints)


@dataclass
class Told:
    """What the verifier in docs/ said of a file."""

    status: int
    out: str
    error: str


def by_hand(firm: FirmLedger, file: Path, *witnesses: Path) -> Told:
    fingerprints = (firm.identity.fingerprint, firm.site.authority.fingerprint)
    command = [sys.executable, str(SCRIPT), str(file), *fingerprints, *map(str, witnesses)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return Told(done.returncode, done.stdout, done.stderr)


def unchecked(firm: FirmLedger) -> Path:
    """The export of a firm that does not mind what Dure says of it."""
    file = firm.site.folder / "unchecked.jsonl"
    file.write_bytes(b"".join(export_lines(firm.file, firm.firm, firm.identity, firm.site.root_der)))
    return file


@pytest.fixture
def firms(tmp_path: Path) -> Iterator[tuple[FirmLedger, FirmLedger]]:
    """Kim and lee, who work together and keep each other's heads: kim's record 4, lee's record 4."""
    site = Site(tmp_path / "site", "kim", "lee")
    site.share_a_job("job-1", "kim", "lee")
    kim, lee = FirmLedger(site, "kim"), FirmLedger(site, "lee")
    kim.accept(lee)
    lee.accept(kim)
    for firm in (kim, lee, kim, lee):
        firm.record(4 if firm.ledger.head.number == 0 else 1)
        assert firm.state() == []
    yield kim, lee
    kim.close()
    lee.close()
    site.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["{file}", "ab" * 32], "usage: python verify_ledger.py", id="one fingerprint"),
        pytest.param(["{file}", "abcd", "ef01", "ab" * 32], "needs its quotes", id="in groups, without quotes"),
        pytest.param(["/nosuch/export.jsonl", "ab" * 32, "cd" * 32], "No such file", id="no such file"),
    ],
)
def test_a_wrong_use_is_told_in_a_sentence(told: tuple[Path, FirmLedger], arguments: list[str], says: str) -> None:
    command = [sys.executable, str(SCRIPT), *(each.format(file=told[0]) for each in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, says in done.stderr, "Traceback" in done.stderr) == (1, True, False), done.stderr


def test_a_changed_signature_is_named(told: tuple[Path, FirmLedger], tmp_path: Path) -> None:
    file, kim = told
    lines = file.read_bytes().splitlines(keepends=True)
    at = lines[2].index(b'"signature":"') + len(b'"signature":"')
    lines[2] = lines[2][:at] + (b"1" if lines[2][at : at + 1] != b"1" else b"2") + lines[2][at + 1 :]
    changed = tmp_path / "changed.jsonl"
    changed.write_bytes(b"".join(lines))
    command = [sys.executable, str(SCRIPT), str(changed), kim.identity.fingerprint, kim.site.authority.fingerprint]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.strip() == "line 3: a signature does not belong to it"


def test_heads_of_other_firms_are_not_counted_as_this_firms(firms: tuple[FirmLedger, FirmLedger]) -> None:
    kim, lee = firms
    assert "countersigned up to record 6" in by_hand(kim, kim.export(), lee.export()).out
    witnesses_file(kim.file).write_bytes(
        b"".join(each.to_line() for each in read_witnesses(kim.file) if each.firm == "lee")
    )
    told = by_hand(kim, kim.export())
    assert (told.status, told.error) == (0, "")
    assert "none of it is countersigned" in told.out


def test_a_roll_back_is_found(firms: tuple[FirmLedger, FirmLedger]) -> None:
    kim, lee = firms
    backup = kim.back_up()
    kim.record(3)
    assert kim.state() == []
    lee.record()
    assert lee.state() == []
    kim.restore(backup)
    kim.record(note="another history ")
    kim.state()
    lee.record()
    lee.state()
    told = by_hand(kim, kim.export())
    assert told.status == 1
    for expected in ("not among its statements here", "statements were broken off after record 10", "counted 1 break"):
        assert expected in told.out
    of_partner = by_hand(lee, lee.export())  # told, and no stain on lee's own ledger
    assert of_partner.status == 0
    assert "kim: its statements were broken off after record 10" in of_partner.out


def test_a_roll_back_whose_evidence_was_thrown_away_is_found(firms: tuple[FirmLedger, FirmLedger]) -> None:
    kim, _ = firms
    kim.roll_back_and_hide_it()
    told = by_hand(kim, export := kim.export())
    assert (told.status, "the server counted 1 break of its statements" in told.out) == (1, True)
    export.write_bytes(export.read_bytes().replace(b'"num_breaks":1', b'"num_breaks":true'))
    assert by_hand(kim, export).error.startswith("line ")


def test_a_rewriting_that_the_firms_statements_contradict_is_found(firms: tuple[FirmLedger, FirmLedger]) -> None:
    kim, _ = firms
    kim.rewrite()
    told = by_hand(kim, unchecked(kim))
    assert (told.status, told.error) == (1, "line 6: it names another record\n")
    statements_file(kim.file).unlink()
    told = by_hand(kim, kim.export())
    assert (told.status, "not among its statements here: the ledger was rewritten since" in told.out) == (1, True)


def test_a_rewriting_throughout_is_found_by_what_partners_keep(firms: tuple[FirmLedger, FirmLedger]) -> None:
    kim, lee = firms
    kim.rewrite()
    statements_file(kim.file).unlink()
    witnesses_file(kim.file).unlink()
    export = kim.export()
    assert by_hand(kim, export).status == 0  # alone it holds
    told = by_hand(kim, export, lee.export())
    assert (told.status, "others hold another record 6, signed by this firm" in told.error) == (1, True)


def test_forged_statements_before_the_last_are_found_by_what_partners_keep(
    firms: tuple[FirmLedger, FirmLedger],
) -> None:
    kim, lee = firms
    kim.rewrite()
    assert kim.state() == []  # a lie: it claims to go on from the statement on record 6
    lee.record()
    lee.state()
    kim.forge_statements()
    export = kim.export()
    assert by_hand(kim, export).status == 0
    told = by_hand(kim, export, lee.export())
    assert (told.status, "a statement of this firm on record" in told.error) == (1, True)


def test_a_cut_is_found_by_what_partners_keep(firms: tuple[FirmLedger, FirmLedger]) -> None:
    kim, lee = firms
    kim.cut(2)
    export = kim.export()
    assert by_hand(kim, export).status == 0
    told = by_hand(kim, export, witnesses_file(lee.file))
    assert (told.status, "others hold that this firm signed record 6" in told.error) == (1, True)
