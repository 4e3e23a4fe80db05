"""Where this firm's ledger ended, as it told the server, and what server and other firms are held to by it.

    statements.jsonl   every statement of this firm, in order; on disk before it is sent
    witnesses.jsonl    the newest that the server countersigned, of this firm and of each accepted partner; and those
                       that a later one contradicts, which are kept as evidence

Both lie beside the ledger. Errors: LedgerError, where a file was changed.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Final, TypeVar

from dure_client.home import AgentHome, write_file
from dure_client.ledger import Ledger
from dure_client.link.client import LinkClient
from dure_client.link.transfer import write_all
from dure_client.policy import Policy, PolicyError
from dure_protocols.certificates import certificate_der
from dure_protocols.errors import DureError, MessageError
from dure_protocols.heads import (
    MAX_COUNTERSIGNED_LINE_BYTES,
    MAX_STATEMENT_LINE_BYTES,
    NOTHING_BEFORE,
    Countersigned,
    Statement,
    Witnessed,
)
from dure_protocols.identity import Identity, fingerprint
from dure_protocols.ledger import Head, LedgerError

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_SECONDS: Final = 1.0
PAUSE_SECONDS: Final = 10.0
"""Fewest seconds between two statements. While nothing leaves there is nothing to state."""
KEPT_OF_A_FIRM: Final = 32

Pins = Callable[[], Mapping[str, str]]
"""The fingerprints of the firms that this one has accepted, by name."""


def statements_file(ledger: Path) -> Path:
    """The file of statements beside a ledger."""
    return ledger.with_name("statements.jsonl")


def witnesses_file(ledger: Path) -> Path:
    """The file of countersigned heads beside a ledger."""
    return ledger.with_name("witnesses.jsonl")


def read_statements(ledger: Path) -> Iterator[Statement]:
    """This firm's statements, in order, unverified. A line that a crash tore was never sent, and is left out."""
    for number, line in _lines(statements_file(ledger), MAX_STATEMENT_LINE_BYTES):
        if line.endswith(b"\n"):
            yield _read(Statement.from_line, line, f"{statements_file(ledger).name}, line {number}")


def read_witnesses(ledger: Path) -> list[Countersigned]:
    """What the server countersigned, this firm's and others', unverified; of a firm the older before the newer."""
    file = witnesses_file(ledger)
    lines = _lines(file, MAX_COUNTERSIGNED_LINE_BYTES)
    return [_read(Countersigned.from_line, line, f"{file.name}, line {number}") for number, line in lines]


def doubts(witnesses: list[Countersigned]) -> list[str]:
    """What contradicts itself in what was kept: a sentence each, naming the firm."""
    found: list[str] = []
    newest: dict[str, Countersigned] = {}
    for each in witnesses:
        held = newest.get(each.firm)
        if held is not None and (why := each.why_not_after(held)):
            found.append(f"{each.firm}: {why}")
        newest[each.firm] = each
    return found


class Heads:
    """The one writer of both files."""

    def __init__(self, ledger: Path, firm: str, identity: Identity, root_der: bytes) -> None:
        """Raises LedgerError if what is there was changed."""
        self._ledger, self._firm, self._identity, self._root = ledger, firm, identity, root_der
        _cut_torn_line(statements_file(ledger))
        self._last: Statement | None = None
        for statement in read_statements(ledger):
            self._last = statement
        self._witnesses = read_witnesses(ledger)
        own = [each for each in self._witnesses if each.firm == firm]
        self._is_taken = self._last is None or (bool(own) and own[-1].statement == self._last)

    def next(self, head: Head) -> Statement | None:
        """What to send now, on disk already: the last one while the server has not taken it; None: nothing new left.

        The record of a statement's own sending is not worth another statement.
        """
        if not self._is_taken:
            return self._last
        if head.number <= (0 if self._last is None else self._last.head.number + 1):
            return None
        statement = Statement.make(head, NOTHING_BEFORE if self._last is None else self._last.digest, self._identity)
        _append(statements_file(self._ledger), statement.to_line())
        self._last, self._is_taken = statement, False
        return statement

    def take(self, answer: bytes, pins: Mapping[str, str]) -> list[str]:
        """Keep what the server answered to `next`; the sentences that are to be said about it, if any.

        (1) It countersigned exactly what was sent, for this firm. (2) What it replaced is this firm's. (3) Another
        firm's is kept if that firm is accepted here under this key, and firm and root signed. Raises LedgerError or
        MessageError, and keeps nothing.
        """
        witnessed = Witnessed.decode(answer)
        own = witnessed.own
        own.verify(self._root)
        if (own.firm, own.public_key, own.statement) != (self._firm, self._identity.public_bytes, self._last):  # (1)
            raise LedgerError(0, "the server countersigned something else than this firm's statement")
        came = [] if witnessed.replaced is None else [witnessed.replaced]
        if any((each.firm, each.public_key) != (self._firm, self._identity.public_bytes) for each in came):  # (2)
            raise LedgerError(0, "the server showed another firm's head as this firm's")
        came += [own, *(each for each in witnessed.others if fingerprint(each.public_key) == pins.get(each.firm))]
        for each in came:  # (3)
            each.verify(self._root)
        before = set(doubts(self._witnesses))
        self._witnesses = _merged(self._witnesses, came)
        write_file(witnesses_file(self._ledger), b"".join(each.to_line() for each in self._witnesses))
        self._is_taken = True
        return [sentence for sentence in doubts(self._witnesses) if sentence not in before]


def _merged(held: list[Countersigned], came: list[Countersigned]) -> list[Countersigned]:
    """What is kept: of each firm the newest, and every older one that its successor contradicts."""
    by_firm: dict[str, list[Countersigned]] = {}
    for each in [*held, *came]:
        of_firm = by_firm.setdefault(each.firm, [])
        is_evidence = len(of_firm) > 1 and of_firm[-1].why_not_after(of_firm[-2])
        if of_firm and not is_evidence and not each.why_not_after(of_firm[-1]):
            of_firm.pop()
        of_firm.append(each)
    return [each for firm in sorted(by_firm) for each in by_firm[firm][-KEPT_OF_A_FIRM:]]


class HeadKeeper:
    """States where the ledger ends as it grows. One thread's work, until `stop` is set; no job waits for it."""

    def __init__(self, home: AgentHome, ledger: Ledger, link: LinkClient, stop: threading.Event) -> None:
        self._home, self._ledger, self._link, self._stop = home, ledger, link, stop
        self._policy_is_valid = True

    def run(self) -> None:
        """Look after it until told to stop."""
        try:
            root = certificate_der(self._home.root_file.read_bytes())
            heads = Heads(self._home.ledger_file, self._home.config().firm, self._home.identity(), root)
        except (DureError, OSError):
            logger.exception("no statements are made about where the ledger ends: run `dure-agent ledger verify`")
            return
        not_before = 0.0
        while not self._stop.wait(LOOK_SECONDS):
            if self._link.takes_heads and time.monotonic() >= not_before and self._state(heads):
                not_before = time.monotonic() + PAUSE_SECONDS

    def _state(self, heads: Heads) -> bool:
        """Send a statement if one is due; whether one was."""
        try:
            statement = heads.next(self._ledger.head)
            if statement is None:
                return False
            for sentence in heads.take(self._link.deposit(statement.encode()), self._pins()):
                logger.error("the ledger of %s; `dure-agent ledger verify` shows the evidence", sentence)
        except (DureError, OSError) as error:
            if not self._stop.is_set():
                logger.warning("the server has not countersigned where the ledger ends, it is asked again: %s", error)
        return True

    def _pins(self) -> Mapping[str, str]:
        """The accepted firms; none while policy.toml is not valid, which is said once."""
        try:
            pins = Policy.read(self._home.policy_file).firms
        except PolicyError as error:
            if self._policy_is_valid:
                logger.error("until policy.toml is valid, no other firm's ledger is compared: %s", error)  # noqa: TRY400
            self._policy_is_valid = False
            return {}
        self._policy_is_valid = True
        return pins


def _lines(file: Path, limit_bytes: int) -> Iterator[tuple[int, bytes]]:
    try:
        opened = file.open("rb")
    except FileNotFoundError:
        return
    with opened:
        yield from enumerate(iter(lambda: opened.readline(limit_bytes + 1), b""), start=1)


def _read(read: Callable[[bytes], T], line: bytes, where: str) -> T:
    try:
        return read(line)
    except MessageError as error:
        raise LedgerError(0, f"{where} was changed: {error}") from error


def _append(file: Path, line: bytes) -> None:
    """Add a line that is on disk when this returns, or not there at all."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        try:
            write_all(FileIO(descriptor, "ab", closefd=False), line)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _cut_torn_line(file: Path) -> None:
    if not file.exists():
        return
    content = file.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(file, content.rfind(b"\n") + 1)
