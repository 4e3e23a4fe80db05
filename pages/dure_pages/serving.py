"""A server that only this machine reaches."""

from typing import Final

import uvicorn
from starlette.types import ASGIApp

LOOPBACK: Final = "127.0.0.1"
STOP_SECONDS: Final = 2
"""Open event streams would otherwise hold uvicorn back for ever."""


def loopback_config(app: ASGIApp, port: int) -> uvicorn.Config:
    """Plain HTTP on loopback. Requests are not logged: who looked at which job is nobody's business."""
    return uvicorn.Config(
        app,
        host=LOOPBACK,
        port=port,
        timeout_graceful_shutdown=STOP_SECONDS,
        server_header=False,
        ws="none",
        proxy_headers=False,
        access_log=False,
        log_config=None,
    )
