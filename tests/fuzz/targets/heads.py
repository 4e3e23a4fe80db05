"""Targets of ledgers' heads: statements, countersignatures, what lies beside a ledger, and exports."""

from collections.abc import Iterator
from functools import cache

from dure_client.heads import Heads, read_statements, read_witnesses, statements_file, witnesses_file
from dure_client.ledger_export import countersigned_in
from dure_protocols.errors import IdentityError, MessageError
from dure_protocols.heads import Countersigned, Statement, Witnessed
from dure_protocols.ledger import LedgerError
from tests.fuzz.mutate import JSON
from tests.fuzz.target import Target
from tests.fuzz.targets.files import LEDGER_BYTES, FromFile
from tests.fuzz.targets.scratch import scratch
from tests.ledgers import FirmLedger, Site

STORE_BYTES = 4 << 20
"""A transaction of the server's store."""


@cache
def _scene() -> tuple[Site, FirmLedger]:
    """Kim, who stated two heads and keeps one of lee's."""
    site = Site(scratch("heads"), "kim", "lee")
    site.share_a_job("job-1", "kim", "lee")
    kim, lee = FirmLedger(site, "kim"), FirmLedger(site, "lee")
    kim.accept(lee)
    lee.record()
    lee.state()
    for _ in range(2):
        kim.record(2)
        kim.state()
    return site, kim


def head_targets() -> Iterator[Target]:
    """One for each."""
    site, kim = _scene()
    statements, kept = list(read_statements(kim.file)), read_witnesses(kim.file)
    refused = (MessageError,)
    wire = [each.encode() for each in statements]
    yield Target("heads/statement", Statement.decode, refused, wire, 24, Statement.encode)
    own = next(each for each in kept if each.firm == "kim")
    answers = [Witnessed(own, None, tuple(kept)).encode(), Witnessed(own, own, ()).encode()]
    yield Target("heads/answer", Witnessed.decode, refused, answers, 24, Witnessed.encode)
    for name, read, lines in (
        ("statement", Statement.from_line, [each.to_line() for each in statements]),
        ("countersigned", Countersigned.from_line, [each.to_line() for each in kept]),
    ):
        yield Target(f"heads/{name}-line", read, refused, lines, 24, lambda each: each.to_line(), mutators=JSON)
    deposited = (MessageError, IdentityError)
    yield Target(
        "heads/deposit", lambda data: site.witness.deposit("kim", data), deposited, wire, 24, base_bytes=STORE_BYTES
    )
    taken = (MessageError, LedgerError)
    yield Target(
        "heads/taken", lambda data: _fresh(kim).take(data, kim.pins), taken, answers, 64, base_bytes=STORE_BYTES
    )
    yield from _file_targets(kim, statements, kept)


def _fresh(kim: FirmLedger) -> Heads:
    return Heads(kim.file, kim.firm, kim.identity, kim.site.root_der)


def _file_targets(kim: FirmLedger, statements: list[Statement], kept: list[Countersigned]) -> Iterator[Target]:
    beside, refused = scratch("beside-ledger") / "ledger.jsonl", (LedgerError,)
    lines = b"".join(each.to_line() for each in kept)
    said, held = statements_file(beside), witnesses_file(beside)
    stated = [b"".join(each.to_line() for each in statements), b""]
    reading = FromFile(said, lambda: list(read_statements(beside)))
    yield Target("heads/statements-file", reading, refused, stated, 24, mutators=JSON, base_bytes=LEDGER_BYTES)
    witnessing = FromFile(held, lambda: read_witnesses(beside))
    yield Target("heads/witnesses-file", witnessing, refused, [lines, b""], 24, mutators=JSON, base_bytes=LEDGER_BYTES)
    exported = kim.export().read_bytes()
    other = scratch("heads-of-others") / "export.jsonl"
    found = FromFile(other, lambda: countersigned_in(other))
    yield Target("heads/of-others", found, refused, [exported, lines], 24, mutators=JSON, base_bytes=LEDGER_BYTES)
    whole = scratch("export-with-heads") / "export.jsonl"
    check = FromFile(whole, lambda: kim.verify(whole))
    yield Target("heads/export", check, refused, [exported], 24, mutators=JSON, base_bytes=LEDGER_BYTES)
