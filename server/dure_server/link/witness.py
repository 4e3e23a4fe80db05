"""Takes down where a firm's ledger ends, and shows it to the firms that work with it (docs/ledger.md)."""

import logging
from datetime import UTC, datetime

from dure_protocols.certificates import Authority
from dure_protocols.errors import IdentityError
from dure_protocols.heads import COUNTERSIGNATURE_LABEL, MAX_OTHERS, NOTHING_BEFORE, Countersigned, Statement, Witnessed
from dure_protocols.ledger import LedgerError
from dure_server.store.database import Store, Transaction

logger = logging.getLogger(__name__)


class Witness:
    """The server as a witness of its firms' ledgers. Methods may be called from any thread."""

    def __init__(self, store: Store, authority: Authority) -> None:
        self._store = store
        self._authority = authority

    def deposit(self, firm: str, request: bytes) -> bytes:
        """Countersign a firm's statement; what is held of it and of its partners. Called by the link.

        (1) The firm's own identity signed it. (2) It is what is held already, or it follows: it names the held one as
        the one before, and its record is not an earlier one, nor the same with another hash. One that does not follow
        is taken, too, or the firm could never be held to anything again: but it counts as a break, which is in the
        audit log, in every countersignature from then on, and so before the eyes of all firms that know this one.
        Raises MessageError, or IdentityError where (1) fails.
        """
        statement = Statement.decode(request)
        with self._store.transaction() as at:
            key = at.firms.lock(firm).identity_key
            if key is None:
                raise IdentityError(f"{firm} has not joined, so nobody knows its key")
            try:
                statement.verify(key)  # (1)
            except LedgerError as error:
                raise IdentityError(str(error)) from error
            held = at.ledger_heads.find(firm)
            own, replaced = self._taken(at, firm, key, statement, held)
            return Witnessed(own, replaced, tuple(at.ledger_heads.of_partners(firm, MAX_OTHERS))).encode()

    def _taken(
        self, at: Transaction, firm: str, key: bytes, statement: Statement, held: Countersigned | None
    ) -> tuple[Countersigned, Countersigned | None]:
        if held is not None and (held.statement, held.public_key) == (statement, key):
            return held, None
        why = _why_not_next(statement, held if held is not None and held.public_key == key else None)
        num_breaks = (0 if held is None else held.num_breaks) + bool(why)
        time = at.now.astimezone(UTC)
        own = self._countersigned(firm, key, statement, time, num_breaks)
        at.ledger_heads.keep(own)
        if not why:
            return own, None
        logger.error("the ledger of %s was broken off: %s", firm, why)
        detail = {
            "why": why,
            "held_number": held.statement.head.number if held else None,
            "held_hash": held.statement.head.hash.hex() if held else None,
            "number": statement.head.number,
            "hash": statement.head.hash.hex(),
        }
        at.audit.append(actor=f"firm:{firm}", action="ledger.broken-off", subject=firm, detail=detail)
        return own, held

    def _countersigned(
        self, firm: str, key: bytes, statement: Statement, time: datetime, num_breaks: int
    ) -> Countersigned:
        text = time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        part = Countersigned.signed_part(firm, key, statement, text, num_breaks)
        signature = self._authority.countersign(COUNTERSIGNATURE_LABEL, part)
        return Countersigned(firm, key, statement, text, num_breaks, signature)


def _why_not_next(statement: Statement, held: Countersigned | None) -> str:
    """(2): why a statement does not follow from the one that is held; empty if it does."""
    now = statement.head
    if held is None:
        # A firm that was here with another key, or one whose statements a lost store took along, begins anew.
        return "" if statement.previous == NOTHING_BEFORE else "it names a statement before it that is not here"
    before = held.statement.head
    if now.number < before.number:
        return f"it says that the ledger ends with record {now.number}, and it once had {before.number}"
    if now.number == before.number and now.hash != before.hash:
        return f"record {now.number} had another hash"
    if statement.previous != held.statement.digest:
        return f"it does not go on from the statement on record {before.number}"
    return ""
