"""Where the server meets Flower, and the only place. Everything else of the server would survive another transport.

    content   Dure's one form of a Flower `Message`
    grid      `GrpcGrid`: flwr's Grid over Dure's link
    firms     the coordinator's `Firms` over that Grid (`LinkFirms`) or any other (`GridFirms`)
    app       the coordinator as a Flower ServerApp

Public names of flwr only, but for `TaskIdentity`: `Message(content, node, type)` reads it, so a process has one run.
"""

import os

# Before flwr is imported: a consortium's server tells nobody outside that it exists.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from dure_server.flower.app import run_app, server_app
from dure_server.flower.content import HeldArray, arrays_of, body_of, content
from dure_server.flower.firms import GridFirms, GridFirmsError, LinkFirms
from dure_server.flower.grid import GrpcGrid

__all__ = [
    "GridFirms",
    "GridFirmsError",
    "GrpcGrid",
    "HeldArray",
    "LinkFirms",
    "arrays_of",
    "body_of",
    "content",
    "run_app",
    "server_app",
]
