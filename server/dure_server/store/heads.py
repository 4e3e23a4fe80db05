"""Where each firm's ledger ends, as the firm said last and the server countersigned."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from dure_protocols.heads import Countersigned
from dure_server.store.tables import LedgerHead, Signoff


class LedgerHeads:
    """Rows of `ledger_heads`: the newest of each firm, which holds everything before it."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._session, self._now = session, now

    def find(self, firm: str) -> Countersigned | None:
        """What is held of a firm, or None."""
        row = self._session.get(LedgerHead, firm)
        return None if row is None else Countersigned.from_line(row.countersigned)

    def breaks(self) -> dict[str, int]:
        """How often each firm's ledger did not follow from what was held of it, by name; firms without are left out."""
        held = [Countersigned.from_line(row.countersigned) for row in self._session.scalars(select(LedgerHead))]
        return {each.firm: each.num_breaks for each in held if each.num_breaks}

    def keep(self, countersigned: Countersigned) -> None:
        """Put it in the place of what was held of the firm."""
        self._session.merge(LedgerHead(firm=countersigned.firm, countersigned=countersigned.to_line()))
        self._session.flush()

    def of_partners(self, firm: str, limit: int) -> list[Countersigned]:
        """Those of the firms that have a job in common with this one, by name. Nobody hears of other firms."""
        jobs = select(Signoff.job).where(Signoff.firm == firm)
        partners = select(Signoff.firm).where(Signoff.job.in_(jobs), Signoff.firm != firm)
        asked = select(LedgerHead).where(LedgerHead.firm.in_(partners)).order_by(LedgerHead.firm).limit(limit)
        return [Countersigned.from_line(row.countersigned) for row in self._session.scalars(asked)]
