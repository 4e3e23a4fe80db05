"""Whether the server can do its work now: the answer for a probe, which is one word and says nothing else."""

import shutil
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from dure_protocols.errors import DureError
from dure_server.link.blobs import MIN_FREE_BYTES
from dure_server.store import SchemaError, Store


class Readiness(StrEnum):
    """Ready, or the first thing that is in the way."""

    READY = "ready"
    DISK = "disk"
    """Less space is free than the link needs to take an upload."""
    STORE = "store"
    """The store does not answer."""
    SCHEMA = "schema"
    """The store's tables are not of this program's version: `dure-server upgrade`."""
    LINK = "link"
    """The link process does not answer."""


def readiness(
    folder: Path, store: Store, ask_link: Callable[[], object], *, floor_bytes: int = MIN_FREE_BYTES
) -> Readiness:
    """Look at everything that firms depend on. `ask_link` raises a DureError if the link does not answer."""
    try:
        if shutil.disk_usage(folder).free < floor_bytes:
            return Readiness.DISK
        store.check_schema()
    except SchemaError:
        return Readiness.SCHEMA
    except (OSError, DureError, SQLAlchemyError):
        return Readiness.STORE
    try:
        ask_link()
    except DureError:
        return Readiness.LINK
    return Readiness.READY
