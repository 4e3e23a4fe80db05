"""An exported ledger: checked by whoever knows the fingerprints, and one changed byte is found and located."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dure_client.ledger_export import Export, ExportError, export, verify_export
from dure_client.ledger_page import PLAIN_WORDS, page
from dure_protocols.ledger import LedgerError, RecordKind
from tests.ledgers import FirmLedger, Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"), "kim", "lee")
    made.share_a_job("job-1", "kim", "lee")
    yield made
    made.close()


@pytest.fixture(scope="module")
def kim(site: Site) -> Iterator[FirmLedger]:
    """Kim with three records of its own and one for its statement on the second, and a head of lee's."""
    kim, lee = FirmLedger(site, "kim"), FirmLedger(site, "lee")
    kim.accept(lee)
    lee.record()
    lee.state()
    kim.record(2)
    kim.state()
    kim.record()
    yield kim
    kim.close()
    lee.close()


@pytest.fixture(scope="module")
def exported(kim: FirmLedger) -> Path:
    return kim.export()


def kinds_of(content: bytes) -> list[str]:
    return [line.split(b":")[0].strip(b'{"').decode() for line in content.splitlines()]


def test_an_export_says_all_in_order(exported: Path, kim: FirmLedger, site: Site) -> None:
    found = kim.verify(exported)
    assert kinds_of(exported.read_bytes()) == [
        *("format", "number", "number", "statement", "number", "number", "countersigned", "countersigned")
    ]
    assert (found.firm, found.head.number, found.num_statements) == ("kim", 4, 1)
    assert found.countersigned is not None
    assert found.countersigned.statement.head.number == 2
    assert [(each.firm, each.statement.head.number) for each in found.others] == [("lee", 1)]
    assert (found.root_fingerprint, found.doubts) == (site.authority.fingerprint, [])


def test_every_changed_byte_is_found_and_located(exported: Path, kim: FirmLedger, site: Site, tmp_path: Path) -> None:
    """Every byte of the file, one of its bits at a time; the reader names the line in which it stands."""
    content, changed = exported.read_bytes(), tmp_path / "changed.jsonl"
    line, wrong = 1, list[tuple[int, int, int]]()
    for place, byte in enumerate(content):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        changed.write_bytes(damaged)
        with pytest.raises(LedgerError) as caught:
            kim.verify(changed)
        if caught.value.line != line:
            wrong.append((place, line, caught.value.line))
        line += byte == ord("\n")
    assert wrong == []
    assert line == len(content.splitlines()) + 1


FIELDS = [
    pytest.param(1, b'"firm":"kim"', b'"firm":"lee"', "header, signature", id="the firm's name"),
    pytest.param(1, b'"public_key":"', b'"public_key":"00', "header", id="a longer key"),
    pytest.param(1, b'"statements":1', b'"statements":0', "header, signature", id="a count"),
    pytest.param(2, b'"size_bytes":2', b'"size_bytes":3', "record 1 was changed: hash", id="a size"),
    pytest.param(3, b'"kind":"join"', b'"kind":"vote"', "record 2 was changed: hash", id="a kind"),
    pytest.param(3, b'"kind":"join"', b'"kind":"sold"', "record 2 was changed: the line", id="a kind that is none"),
    pytest.param(5, b'"kind":"head",', b'"kind": "head",', "record 3 was changed: byte", id="a blank"),
    pytest.param(4, b'"statement":2', b'"statement":3', "signature: .* did not sign this statement", id="a statement"),
    pytest.param(7, b'"num_breaks":0', b'"num_breaks":1', "countersignature: ", id="breaks"),
    pytest.param(8, b'ed":"lee"', b'ed":"eel"', "countersignature: ", id="whose a head is"),
]


@pytest.mark.parametrize(("line", "old", "new", "says"), FIELDS)
def test_what_was_changed_is_named(
    exported: Path, kim: FirmLedger, tmp_path: Path, line: int, old: bytes, new: bytes, says: str
) -> None:
    lines = exported.read_bytes().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    (tmp_path / "changed").write_bytes(b"".join(lines))
    with pytest.raises(LedgerError, match=f"^line {line}: {says}"):
        kim.verify(tmp_path / "changed")


def test_every_line_that_is_missing_doubled_or_swapped_is_found(
    exported: Path, kim: FirmLedger, tmp_path: Path
) -> None:
    lines, changed = exported.read_bytes().splitlines(keepends=True), tmp_path / "changed"
    for at in range(len(lines)):
        cases = [[*lines[:at], *lines[at + 1 :]], [*lines[: at + 1], *lines[at:]], lines[:at]]
        if at and (at + 1) < len(lines) - 1:  # the two heads at the end may stand in any order
            cases.append([*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]])
        for case in cases:
            changed.write_bytes(b"".join(case))
            with pytest.raises(LedgerError):
                kim.verify(changed)


@pytest.mark.parametrize("length", [0, 1, 100, -1, -300])
def test_a_cut_export_is_found(exported: Path, kim: FirmLedger, tmp_path: Path, length: int) -> None:
    (tmp_path / "cut").write_bytes(exported.read_bytes()[:length])
    with pytest.raises(LedgerError):
        kim.verify(tmp_path / "cut")


def test_fingerprints_of_others_are_refused(exported: Path, site: Site, kim: FirmLedger) -> None:
    with pytest.raises(LedgerError, match="another firm's, or made up"):
        verify_export(exported, site.authority.fingerprint)
    with pytest.raises(LedgerError, match="header, root: "):
        verify_export(exported, kim.identity.fingerprint, kim.identity.fingerprint)


def test_an_export_is_verified_without_a_home(exported: Path, kim: FirmLedger, site: Site, tmp_path: Path) -> None:
    own, root = kim.identity.fingerprint, site.authority.fingerprint
    command = [sys.executable, "-m", "dure_client.cli", "ledger", "verify", str(exported), "--fingerprint", own]
    done = subprocess.run(
        [*command, "--root-fingerprint", root, "--home", str(tmp_path / "nowhere")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 records" in done.stdout
    assert "countersigned it up to record 2" in done.stdout
    assert "It keeps of lee: record 1" in done.stdout
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["ledger.jsonl", "witnesses.jsonl", "mine.jsonl", "../kim/mine.jsonl", "../link/mine"])
def test_nothing_is_exported_over_the_ledger_or_beside_it(kim: FirmLedger, site: Site, name: str) -> None:
    link = site.folder / "link"
    if not link.exists():
        link.symlink_to(kim.folder)
    before = {file: file.read_bytes() for file in kim.folder.iterdir()}
    with pytest.raises(ExportError, match="name a file elsewhere"):
        export(kim.file, kim.folder / name, "kim", kim.identity, site.root_der)
    assert {file: file.read_bytes() for file in kim.folder.iterdir()} == before


def test_a_folder_that_is_not_there_is_named(kim: FirmLedger, site: Site, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nosuch is no folder: make it"):
        export(kim.file, tmp_path / "nosuch" / "left.jsonl", "kim", kim.identity, site.root_der)


def test_a_ledger_that_does_not_hold_is_not_exported(site: Site) -> None:
    site.add("odd")
    odd = FirmLedger(site, "odd")
    odd.record(3)
    odd.close()
    odd.file.write_bytes(b"".join(odd.file.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(LedgerError):
        odd.export()
    assert not list(site.folder.glob("odd-*"))


def test_every_kind_is_told_in_plain_words() -> None:
    assert set(PLAIN_WORDS) == set(RecordKind)


class Elements(HTMLParser):
    """The tags of a page, their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_self_contained_and_its_sums_are_the_ledgers(exported: Path, kim: FirmLedger) -> None:
    found: Export = kim.verify(exported)
    elements = Elements(page(found, "kim.jsonl"))
    assert elements.tags & {"script", "link", "img", "iframe", "object", "form", "a"} == set()
    assert elements.attributes <= {"lang", "charset", "class"}
    assert f"{found.totals.sent_bytes:,} bytes in 4 records" in elements.words
    assert "http" not in elements.words
    for size in itertools.chain(found.totals.bytes_by_kind.values(), found.totals.bytes_by_job.values()):
        assert f"{size:,}" in elements.words
    assert "dure-agent ledger verify kim.jsonl" in elements.words


def test_names_from_outside_do_not_act_on_the_page(exported: Path, kim: FirmLedger) -> None:
    found = kim.verify(exported)
    found.totals.bytes_by_job["<script>alert(1)</script>"] = 1
    assert "script" not in Elements(page(found, "<script>.jsonl")).tags
