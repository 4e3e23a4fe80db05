"""The verifier in docs/, which knows nothing of Dure's code, says of an export what Dure says."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

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
    fingerprints = (kim.identity.fingerprint, kim.site.authority.fingerprint)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(file), *fingerprints], capture_output=True, text=True, check=False, timeout=60
    )
    found = kim.verify(file)
    said = f"{found.head.number} records hold; {found.totals.sent_bytes} bytes left; 1 are countersigned\n"
    assert (done.returncode, done.stdout) == (0, said)


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
