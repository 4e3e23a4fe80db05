"""A ledger as one file that anybody checks who knows the fingerprints of the firm and of the consortium.

JSON Lines (docs/ledger.md): a *header*, signed; the *records* as they stand in the ledger, and behind each record the
firm's *statement* on it, if it made one; at the end what the server *countersigned*, of this firm and of others. It is
read line by line, whatever its size, and what does not hold is named by line and by what failed there.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dure_client.heads import doubts, read_statements, read_witnesses
from dure_client.ledger import Totals, lines_of, read_records, verify_file
from dure_protocols import ledger as chain
from dure_protocols.errors import DureError, IdentityError, MessageError
from dure_protocols.heads import COUNTERSIGNED_START, NOTHING_BEFORE, STATEMENT_START, Countersigned, Statement
from dure_protocols.identity import Identity, check_firm_name, fingerprint, grouped, same_fingerprint, verify
from dure_protocols.ledger import Head, LedgerError, LedgerRecord

EXPORT_FORMAT: Final = "dure-ledger-2"
EXPORT_LABEL: Final = "dure ledger export"
LAST_EXPORT: Final = "at-leaving.jsonl"
"""The one export beside the ledger: the last, before a firm's keys are erased."""


class ExportError(DureError):
    """An export cannot be where it was asked for: it would destroy the ledger, or itself."""


@dataclass
class Export:
    """An exported ledger that holds.

    root_fingerprint: of the consortium whose countersignatures are in it, empty if there are none; countersigned: the
    newest of this firm, None if the server never took one; others: what this firm keeps of other firms; doubts: what
    contradicts itself among these, a sentence each.
    """

    firm: str
    public_key: bytes
    root_fingerprint: str
    head: Head
    totals: Totals = field(default_factory=Totals)
    num_statements: int = 0
    countersigned: Countersigned | None = None
    others: list[Countersigned] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    times: tuple[str, str] = ("", "")


def export(ledger: Path, target: Path, firm: str, identity: Identity, root_der: bytes) -> Export:
    """Write a firm's ledger as one file. Raises LedgerError, and leaves no file, if it does not hold; ExportError."""
    check_target(ledger, target)
    aside = target.with_name(target.name + ".new")
    try:
        with aside.open("wb") as file:
            file.writelines(export_lines(ledger, firm, identity, root_der))
        made = verify_export(aside, identity.fingerprint, hashlib.sha256(root_der).hexdigest())
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return made


def check_target(ledger: Path, target: Path) -> None:
    """Whether a file may be written there. Raises ExportError where not: it says where else."""
    if target.is_dir():
        raise ExportError(f"{target} is a folder: name a file in it, such as {target / 'left.jsonl'}")
    if not target.parent.is_dir():
        raise ExportError(f"{target.parent} is no folder: make it, or name a file elsewhere")
    own = {ledger.parent.resolve(), ledger.resolve().parent}
    is_last = target.name == LAST_EXPORT and target.parent.resolve() in own
    if own & {target.parent.resolve(), *target.resolve().parents} and not is_last:
        raise ExportError(f"{target} is in the ledger's own folder, {ledger.parent}: name a file elsewhere")


def verify_own(ledger: Path, firm: str, identity: Identity, root_der: bytes) -> Export:
    """Check a firm's own ledger, its statements and what it keeps of others, where they lie. Raises LedgerError."""
    lines = export_lines(ledger, firm, identity, root_der)
    return _Reading(lines, ()).read(identity.fingerprint, hashlib.sha256(root_der).hexdigest())


def export_lines(ledger: Path, firm: str, identity: Identity, root_der: bytes) -> Iterator[bytes]:
    """The lines of a firm's export. Raises LedgerError if the ledger does not hold."""
    # In this order, so that what a running agent adds meanwhile is in the later one and not in the earlier.
    witnesses, statements = read_witnesses(ledger), list(read_statements(ledger))
    head = verify_file(ledger, identity.public_bytes).head
    cut = next((each.head.number for each in statements if each.head.number > head.number), None)
    if cut is not None:
        raise LedgerError(
            head.number + 1, f"{ledger} ends with record {head.number}, but this firm stated that it had {cut}"
        )
    header: dict[str, object] = {
        "format": EXPORT_FORMAT,
        "firm": firm,
        "public_key": identity.public_bytes.hex(),
        "root": root_der.hex(),
        "number": head.number,
        "hash": head.hash.hex(),
        "statements": len(statements),
        "countersigned": len(witnesses),
    }
    signature = identity.sign(EXPORT_LABEL, _json(header)).hex()
    yield _json({**header, "signature": signature}) + b"\n"
    yield from _records_and_statements(ledger, head, statements)
    yield from (each.to_line() for each in witnesses)


def _records_and_statements(ledger: Path, head: Head, statements: list[Statement]) -> Iterator[bytes]:
    waiting = iter(statements)
    statement = next(waiting, None)
    for record in read_records(ledger):
        if record.number > head.number:
            return  # written since, by a running agent
        yield record.to_line()
        while statement is not None and statement.head.number == record.number:
            yield statement.to_line()
            statement = next(waiting, None)


def verify_export(
    path: Path, expected_fingerprint: str, root_fingerprint: str = "", held: Sequence[Countersigned] = ()
) -> Export:
    """Check an exported ledger of the firm with this fingerprint. Raises LedgerError, with the line that is wrong.

    (1) The header is the firm's. (2) Each record follows, is the firm's, and the last is the header's. (3) Each
    statement follows, is the firm's, and names the record before it. (4) Firm and root signed what is countersigned,
    the root being that of `root_fingerprint`; unless it is given, the root is taken from the file, and nothing shows
    that it is the consortium's. (5) Nothing follows. (6) What others hold of this firm (`held`), and this firm signed,
    is in the ledger.
    """
    of_firm = [each for each in held if same_fingerprint(fingerprint(each.public_key), expected_fingerprint)]
    for each in of_firm:
        each.statement.verify(each.public_key)
    with path.open("rb") as file:
        return _Reading(lines_of(file), of_firm).read(expected_fingerprint, root_fingerprint)


def countersigned_in(path: Path) -> list[Countersigned]:
    """What a firm keeps of others, from its export or from its witnesses.jsonl; unverified. Raises LedgerError."""
    with path.open("rb") as file:
        try:
            return [Countersigned.from_line(line) for line in lines_of(file) if line.startswith(COUNTERSIGNED_START)]
        except MessageError as error:
            raise LedgerError(0, f"{path} was changed: {error}") from error


class _Reading:
    """One pass over an export: the lines, and the place reached."""

    def __init__(self, lines: Iterable[bytes], held: Sequence[Countersigned]) -> None:
        self._lines = enumerate(lines, start=1)
        self._held = [each.statement for each in held]
        self._at, self._line = 0, b""

    def read(self, expected_fingerprint: str, root_fingerprint: str) -> Export:
        try:
            return self._read(expected_fingerprint, root_fingerprint)
        except (LedgerError, MessageError) as error:
            position = error.position if isinstance(error, LedgerError) else 0
            raise LedgerError(position, f"line {self._at}: {error}", line=self._at) from error

    def _read(self, expected_fingerprint: str, root_fingerprint: str) -> Export:
        self._next()
        fields = _header(self._line, expected_fingerprint, root_fingerprint)  # (1)
        root = bytes.fromhex(fields["root"])
        made = Export(
            firm=fields["firm"],
            public_key=bytes.fromhex(fields["public_key"]),
            root_fingerprint=hashlib.sha256(root).hexdigest() if fields["countersigned"] else "",
            head=Head(fields["number"], bytes.fromhex(fields["hash"])),
        )
        self._next()
        own = self._chains(made, fields["statements"])
        self._countersigned(made, root, fields["countersigned"], own)
        if self._line:  # (5)
            raise LedgerError(0, "something follows where the export should end")
        return made

    def _next(self) -> None:
        self._at, self._line = next(self._lines, (self._at + 1, b""))
        if self._line and not self._line.endswith(b"\n"):
            raise LedgerError(0, "the line is torn: the file was cut here, or its line end was changed")

    def _chains(self, made: Export, num_statements: int) -> set[bytes]:
        """(2) and (3). The digests of this firm's statements."""
        place, said, known = Head(0, chain.genesis(made.public_key)), NOTHING_BEFORE, set[bytes]()
        while self._line and not self._line.startswith(COUNTERSIGNED_START):
            if self._line.startswith(STATEMENT_START):
                said = _statement(self._line, place, said, made.public_key)
                known.add(said)
                made.num_statements += 1
            elif place.number == made.head.number:
                raise LedgerError(place.number + 1, "more records are here than the header says, or this is none")
            else:
                record = _record(self._line, place.number + 1)
                place = chain.follow(record, place, made.public_key)
                made.totals.add(record)
                made.times = (made.times[0] or record.time, record.time)
                self._holds_to(place)
            self._next()
        if place != made.head:
            why = "hash: the last record is another" if place.number == made.head.number else "records were cut off"
            raise LedgerError(place.number + 1, f"{why}; the header says that {made.head.number} records are here")
        if made.num_statements != num_statements:
            raise LedgerError(place.number, f"{made.num_statements} statements are here; {num_statements} were made")
        self._holds_to_statements(place, known)
        return known

    def _holds_to(self, place: Head) -> None:
        """(6), at one record."""
        if any(each.head.number == place.number and each.head != place for each in self._held):
            raise LedgerError(
                place.number,
                f"hash: others hold another record {place.number}, signed by this firm: it was rewritten since",
            )

    def _holds_to_statements(self, place: Head, known: set[bytes]) -> None:
        """(6), at the end: a record that is right does not show that what was said before it is."""
        for each in self._held:
            number = each.head.number
            if number > place.number:
                raise LedgerError(
                    place.number + 1,
                    f"others hold that this firm signed record {number}: the end was cut off, or this export is older "
                    "than what they hold",
                )
            if each.digest not in known:
                raise LedgerError(
                    number,
                    f"others hold a statement of this firm on record {number} that is not among its statements here: "
                    "what it had stated before was rewritten",
                )

    def _countersigned(self, made: Export, root: bytes, number: int, own: set[bytes]) -> None:
        """(4)."""
        found: list[Countersigned] = []
        while self._line:
            each = Countersigned.from_line(self._line)
            each.verify(root)
            if each.firm != made.firm:
                made.others.append(each)
            elif each.public_key != made.public_key:
                raise LedgerError(0, "public_key: this firm's statement is signed by another key")
            else:
                made.countersigned = each
            found.append(each)
            self._next()
        if len(found) != number:
            raise LedgerError(0, f"{len(found)} countersigned statements are here; the header says {number}")
        made.doubts = doubts(found)
        for each in found:
            if each.firm == made.firm and each.statement.digest not in own:
                made.doubts.append(
                    f"{each.firm}: what it stated of record {each.statement.head.number} on {each.time} is not among "
                    "its statements here: the ledger was rewritten since"
                )
        if made.countersigned is not None and (breaks := made.countersigned.num_breaks):
            counted = f"{breaks} break{'s' if breaks > 1 else ''}"
            made.doubts.append(f"{made.firm}: the server counted {counted} of its statements")


def _record(line: bytes, position: int) -> LedgerRecord:
    try:
        return LedgerRecord.from_line(line)
    except MessageError as error:
        raise LedgerError(position, f"record {position} was changed: {error}") from error


def _statement(line: bytes, place: Head, said: bytes, public_key: bytes) -> bytes:
    """(3). The statement's digest."""
    try:
        statement = Statement.from_line(line)
    except MessageError as error:
        raise LedgerError(place.number, f"the statement behind record {place.number} was changed: {error}") from error
    statement.verify(public_key)
    if statement.head != place:
        raise LedgerError(
            place.number,
            f"hash: the firm stated another record {statement.head.number} than is here: the ledger was rewritten",
        )
    if statement.previous != said:
        raise LedgerError(place.number, "previous: this statement does not follow from the firm's statement before it")
    return statement.digest


def _header(line: bytes, expected_fingerprint: str, root_fingerprint: str) -> dict[str, Any]:
    """(1): in order, it is one; it is of the expected key and root; the firm signed every byte of it."""
    try:
        fields = json.loads(line)
        form = fields["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LedgerError(0, "header: this is no exported ledger: write one with `dure-agent ledger export`") from error
    if form != EXPORT_FORMAT:
        raise LedgerError(0, f"header, format: {form!r} came; this program reads {EXPORT_FORMAT!r}")
    try:
        key, root, signature = (bytes.fromhex(fields[name]) for name in ("public_key", "root", "signature"))
        check_firm_name(fields["firm"])
        bytes(Head(fields["number"], bytes.fromhex(fields["hash"])))
        counts = [fields[name] for name in ("number", "statements", "countersigned")]
        # The signature cannot cover its own spelling.
        is_written = (
            signature.hex() == fields["signature"]
            and all(type(count) is int for count in counts)
            and _json(fields) + b"\n" == line
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, DureError) as error:
        raise LedgerError(0, f"header: {type(error).__name__}: {str(error)[:80]}") from error
    if not is_written:
        raise LedgerError(0, "header: its bytes are not as this program writes them")
    if not same_fingerprint(fingerprint(key), expected_fingerprint):
        raise LedgerError(
            0,
            f"header, public_key: it is {grouped(fingerprint(key))}, not the expected {expected_fingerprint}: "
            "this ledger is another firm's, or made up",
        )
    if root_fingerprint and not same_fingerprint(fingerprint(root), root_fingerprint):
        raise LedgerError(0, f"header, root: it is {grouped(fingerprint(root))}, not the expected {root_fingerprint}")
    unsigned = {name: value for name, value in fields.items() if name != "signature"}
    try:
        verify(key, signature, EXPORT_LABEL, _json(unsigned))
    except IdentityError as error:
        raise LedgerError(
            0, "header, signature: the firm did not sign this header: one of its fields was changed"
        ) from error
    return dict(fields)


def _json(fields: Mapping[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
