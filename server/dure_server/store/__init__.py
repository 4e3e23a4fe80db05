"""The server's memory: SQLAlchemy 2 over SQLite or PostgreSQL, one repository a resource, one transaction a request.

    store = Store.open(url)
    with store.transaction() as tx:        # commits at the end, rolls back on an exception
        tx.jobs.set_state("job-1", JobState.RUNNING, "all firms have signed")
    with store.reading() as tx:            # never writes
        tx.firms.all()

Rows that come out stay readable after the transaction; changing them changes nothing. What is stored about a firm:
its name, public keys, states and times. No secret is: invitations are kept as hashes.
"""

from dure_server.store.database import Store, Transaction
from dure_server.store.errors import LeaseTakenError, SchemaError, StoreConflictError, StoreError, UnknownRowError
from dure_server.store.tables import EventKind, FirmStatus, JobState, RoundState, SignoffState
from dure_server.store.timeline import Happening

__all__ = [
    "EventKind",
    "FirmStatus",
    "Happening",
    "JobState",
    "LeaseTakenError",
    "RoundState",
    "SchemaError",
    "SignoffState",
    "Store",
    "StoreConflictError",
    "StoreError",
    "Transaction",
    "UnknownRowError",
]
