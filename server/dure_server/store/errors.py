"""The errors of the store.

StoreError                the store cannot be opened or reached
├── SchemaError           its tables are of another version than this program's
├── UnknownRowError       a firm, job, round … that is not there
├── LeaseTakenError       another process does what only one may do
└── StoreConflictError    a change that what is stored forbids: a job's state, a name that is taken
"""

from dure_protocols.errors import DureError


class StoreError(DureError):
    """The store cannot be opened, reached or trusted."""


class SchemaError(StoreError):
    """The store's tables are missing, or older or newer than this program."""


class UnknownRowError(StoreError):
    """What was asked for is not in the store."""


class StoreConflictError(StoreError):
    """What is stored forbids the change."""


class LeaseTakenError(StoreError):
    """Another process does what only one may do at a time."""
