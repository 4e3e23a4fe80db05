"""The console as an ASGI app: the first page, its event stream, the REST API that both stand on, and the probes.

Every route is for whoever sits at the server's machine (see `guard`) until the console has roles; none changes a thing.
"""

import asyncio
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from dure_pages.assets import URL as ASSETS_URL
from dure_pages.assets import AssetFiles, load_assets
from dure_protocols.errors import DureError
from dure_server.console import probes
from dure_server.console.guard import Guard
from dure_server.console.live import Seats, events
from dure_server.console.probes import Watch
from dure_server.console.render import Pages
from dure_server.console.timeline import EventView, event_views
from dure_server.console.views import (
    FirmView,
    JobSummary,
    JobView,
    RoundView,
    firm_views,
    job_summaries,
    job_view,
    overview,
)
from dure_server.problems import ProblemError, install_problem_handlers
from dure_server.store import Store, UnknownRowError

ASSETS = Path(__file__).parent / "assets"

pages_router = APIRouter(default_response_class=HTMLResponse)
api_router = APIRouter(prefix="/api/v1")


class _State:
    """What the routes share."""

    def __init__(self, store: Store, stopping: asyncio.Event) -> None:
        self.store = store
        self.stopping = stopping
        self.pages = Pages(load_assets(ASSETS))
        self.seats = Seats()


class NotFoundError(ProblemError):
    """Nothing is there."""

    status, code, title = 404, "not-found", "Not found"


class CrowdedError(ProblemError):
    """Too many pages are open."""

    status, code, title = 503, "crowded", "Too many pages are open"


def _state(request: Request) -> _State:
    state: _State = request.app.state.console
    return state


State = Annotated[_State, Depends(_state)]


@pages_router.get("/")
def first_page(state: State) -> HTMLResponse:
    """The first page, following the job that matters most."""
    return _page(state, None)


@pages_router.get("/jobs/{job}")
def job_page(job: str, state: State) -> HTMLResponse:
    """The first page, staying with one job."""
    return _page(state, job)


@pages_router.get("/events")
async def event_stream(state: State, job: str | None = None) -> Response:
    """The one event stream of a page."""
    if state.seats.are_taken:
        raise CrowdedError("more than enough pages of this console are open; close some")
    stream = events(state.store, state.pages, job, state.stopping)
    return StreamingResponse(state.seats.hold(stream), media_type="text/event-stream")


@api_router.get("/jobs")
def jobs(state: State) -> list[JobSummary]:
    """Every job, newest first."""
    with state.store.reading() as tx:
        return job_summaries(tx)


@api_router.get("/jobs/{job}")
def one_job(job: str, state: State) -> JobView:
    """A job, whole."""
    with state.store.reading() as tx:
        return job_view(tx, job)


@api_router.get("/jobs/{job}/rounds")
def rounds(job: str, state: State) -> list[RoundView]:
    """Every attempt at a round of a job, in order; the page draws its chart from it."""
    with state.store.reading() as tx:
        return job_view(tx, job).rounds


@api_router.get("/jobs/{job}/timeline")
def timeline(job: str, state: State, after: int = 0) -> list[EventView]:
    """A job's events in order; with `after`, those behind the event of that number."""
    with state.store.reading() as tx:
        return event_views(tx.timeline.of(tx.jobs.get(job).id, after=after))


@api_router.get("/firms")
def firms(state: State) -> list[FirmView]:
    """Every firm."""
    with state.store.reading() as tx:
        return firm_views(tx)


def console_app(store: Store, port: int, stopping: asyncio.Event, watch: Watch) -> FastAPI:
    """The console. `stopping` ends open event streams. FastAPI's pages of documentation are off: they need a CDN."""
    app = FastAPI(title="Dure console", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.console = _State(store, stopping)
    app.state.watch = watch
    app.include_router(pages_router)
    app.include_router(probes.router)
    app.include_router(api_router)
    app.mount(ASSETS_URL, AssetFiles(ASSETS))
    install_problem_handlers(app, _translate)
    app.add_middleware(Guard, port=port)
    return app


def _page(state: _State, job: str | None) -> HTMLResponse:
    try:
        with state.store.reading() as tx:
            view = overview(tx, job)
    except UnknownRowError as error:
        return HTMLResponse(state.pages.error("There is no such job", str(error)), status_code=404)
    events_url = "/events" if job is None else f"/events?job={quote(job, safe='')}"
    return HTMLResponse(state.pages.page(view, events_url))


def _translate(error: DureError) -> ProblemError | None:
    return NotFoundError(str(error)) if isinstance(error, UnknownRowError) else None
