"""`/health`, `/ready`, `/metrics`: for probes and Prometheus. They ask for no sign-in and tell a probe one word.

They are on the console's port, and so for this machine only (`guard`); a Prometheus elsewhere scrapes through an agent
or a tunnel on this machine (docs/watching.md).
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from dure_server.link.desk_client import DeskClient
from dure_server.settings import ServerHome
from dure_server.store import Store
from dure_server.watching import Readiness, ServerMetrics, readiness

router = APIRouter()


class Watch:
    """What the probes look at. One for the console process."""

    def __init__(self, home: ServerHome, store: Store, desk: DeskClient) -> None:
        self._home, self._store, self._desk = home, store, desk
        self._metrics = ServerMetrics(home, store, desk.metrics)

    def readiness(self) -> Readiness:
        """Whether firms can be served now."""
        return readiness(self._home.path, self._store, self._desk.metrics)

    def metrics(self) -> bytes:
        """One scrape."""
        return self._metrics.text()


def _watch(request: Request) -> Watch:
    watch: Watch = request.app.state.watch
    return watch


Watching = Annotated[Watch, Depends(_watch)]


@router.get("/health")
def health() -> JSONResponse:
    """The process answers, and so is alive."""
    return JSONResponse({"status": "ok", "code": "alive"})


@router.get("/ready")
def ready(watch: Watching) -> JSONResponse:
    """Whether firms can be served: 200, or 503 and a word."""
    code = watch.readiness()
    is_ready = code is Readiness.READY
    return JSONResponse({"status": "ok" if is_ready else "not-ok", "code": code.value}, 200 if is_ready else 503)


@router.get("/metrics")
def metrics(watch: Watching) -> Response:
    """Everything for Prometheus."""
    return Response(watch.metrics(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
