"""The coordinator as a Flower ServerApp, on whatever Grid it is given: Dure's link, in-process, a stock SuperLink."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from dure_protocols.frames import COORDINATOR_NODE_ID
from dure_server.coordinator.firms import Firms
from dure_server.flower.firms import GridFirms, LinkFirms
from dure_server.flower.grid import GrpcGrid

REQUEST_SECONDS: Final = 7 * 24 * 3600.0  # how long a request counts; the coordinator's own patience is far shorter


def server_app(course: Callable[[Firms], None], vectors: Path) -> ServerApp:
    """A ServerApp that runs one job's course, `coordinator.Coordinator.run`, over the Grid it is started with.

    vectors: folder for the published sums where the Grid has none of its own.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001  # the face is flwr's
        course(LinkFirms(grid, REQUEST_SECONDS) if isinstance(grid, GrpcGrid) else GridFirms(grid, vectors))

    return app


def run_app(app: ServerApp, grid: Grid, run_id: int) -> None:
    """Run a ServerApp over a Grid as Flower's runtimes do, without settings. What the app raises comes through."""
    app(grid, Context(run_id, COORDINATOR_NODE_ID, {}, RecordDict(), {}))
