"""The audit log: every state-changing act, each event's hash over the one before.

Whoever can write the store can also write a whole new chain. What the chain shows, to anyone who kept a later hash, is
an event that was changed or taken out.
"""

import json
from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from dure_protocols.wire import Writer, digest
from dure_server.store.errors import StoreError
from dure_server.store.tables import AuditEvent, Consortium

FIRST = bytes(32)
"""What the first event has before it."""


class Audit:
    """Rows of `audit`."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._session, self._now = session, now

    def append(
        self, actor: str, action: str, subject: str, detail: Mapping[str, str | int | None] | None = None
    ) -> AuditEvent:
        """Add an event. `detail` MUST hold no secret."""
        # Two transactions would otherwise follow the same event (PostgreSQL; on SQLite there is only one writer).
        self._session.scalar(select(Consortium.id).with_for_update())
        last = self._session.scalars(select(AuditEvent).order_by(AuditEvent.number.desc()).limit(1)).first()
        event = AuditEvent(
            number=last.number + 1 if last else 1,
            at=self._now,
            actor=actor,
            action=action,
            subject=subject,
            detail=json.dumps(detail or {}, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
            previous=last.hash if last else FIRST,
        )
        event.hash = _hash(event)
        self._session.add(event)
        self._session.flush()
        return event

    def all(self) -> list[AuditEvent]:
        """Every event, in order."""
        return list(self._session.scalars(select(AuditEvent).order_by(AuditEvent.number)))

    def verify(self) -> int:
        """Check numbers, order and hashes; return the number of events. Raises StoreError at the first wrong one."""
        previous = FIRST
        events = self.all()
        for expected, event in enumerate(events, start=1):
            if event.number != expected or event.previous != previous or event.hash != _hash(event):
                raise StoreError(f"the audit log was changed: event {expected} does not follow from the one before")
            previous = event.hash
        return len(events)


def _hash(event: AuditEvent) -> bytes:
    writer = Writer().fixed(event.previous, 32).u64(event.number).text(event.at.isoformat(timespec="microseconds"))
    for text in (event.actor, event.action, event.subject):
        writer.text(text)
    return digest("dure/audit/1", bytes(writer.blob(event.detail.encode())))
