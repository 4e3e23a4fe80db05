"""The firm's page as an ASGI app. Every page but the sign-in wants a session; every act its token, too."""

from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from dure_client.absence import local_now
from dure_client.home import AgentHome
from dure_client.jobs.approvals import ApprovalError, known_job
from dure_client.jobs.review import PRIVACY, review
from dure_client.ledger_page import PLAIN_WORDS
from dure_client.packages.looking import SAID, look
from dure_client.packages.reading import shown
from dure_client.packages.shelf import PackageShelf
from dure_client.page import acts
from dure_client.page.access import Access, Notice, Session
from dure_client.page.guard import Guard
from dure_client.page.left import LedgerAccount
from dure_client.page.view import firm_view, job_card
from dure_pages.assets import URL as ASSETS_URL
from dure_pages.assets import AssetFiles, load_assets
from dure_pages.render import environment
from dure_protocols.errors import DureError
from dure_protocols.identity import grouped

ASSETS: Final = Path(__file__).parent / "assets"
COOKIE: Final = "dure-firm-page"
MAX_FORM_BYTES: Final = 4096
MAX_FIELDS: Final = 16
_FORM_TYPE: Final = "application/x-www-form-urlencoded"

Show = Callable[[Session, Request], Response]


class FirmPage:
    """The routes, and what they share. now: local time, with its zone; see `acts.Request` for leave."""

    def __init__(
        self, home: AgentHome, access: Access, now: Callable[[], datetime], leave: acts.LeaveJob | None
    ) -> None:
        self._home, self._access, self._now, self._leave = home, access, now, leave
        self._account = LedgerAccount(home.ledger_file)
        self._templates = environment("dure_client.page", load_assets(ASSETS))
        self._templates.globals.update(
            can_leave=leave is not None,
            pause_hours=acts.PAUSE_HOURS,
            privacy=PRIVACY,
            package_said=SAID,
            version=version("dure"),
        )
        self._templates.filters.update(
            grouped=grouped, local=_local_text, kind_words=PLAIN_WORDS.__getitem__, shown=shown
        )

    def routes(self) -> list[Route | Mount]:
        """All there is. GET shows and changes nothing; POST is for forms of these pages."""
        return [
            Route("/sign-in", self.sign_in, methods=["GET"]),
            Route("/sign-in", self.enter, methods=["POST"]),
            Route("/", self._for_session(self.first_page), methods=["GET"]),
            Route("/jobs/{job}", self._for_session(self.job_page), methods=["GET"]),
            Route("/left", self._for_session(self.left_page), methods=["GET"]),
            Route("/sign-out", self.leave_session, methods=["POST"]),
            Route("/acts/{act}", self.act, methods=["POST"]),
            Mount(ASSETS_URL, AssetFiles(ASSETS)),
        ]

    def sign_in(self, request: Request) -> Response:
        """Ask for the code."""
        if self._session(request) is not None:
            return _to("/")
        return self._html("sign-in.html", is_wrong=False)

    async def enter(self, request: Request) -> Response:
        """Exchange the code for a session."""
        form = await _form(request)
        session = self._access.enter(form.get("code", ""))
        if session is None:
            return self._html("sign-in.html", status=403, is_wrong=True)
        response = _to("/")
        response.set_cookie(COOKIE, session.key, httponly=True, samesite="strict", path="/")
        return response

    async def leave_session(self, request: Request) -> Response:
        """End the session."""
        session = self._session(request)
        if session is None or not session.accepts((await _form(request)).get("token", "")):
            return self._refused()
        self._access.end(session)
        response = _to("/sign-in")
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return response

    def first_page(self, session: Session, _: Request) -> Response:
        """Everything at a glance."""
        return self._html("first.html", session, view=firm_view(self._home, self._now()), left=self._account.read())

    def job_page(self, session: Session, request: Request) -> Response:
        """One job: what `review` shows, and what can be done."""
        try:
            known = known_job(self._home, request.path_params["job"])
        except ApprovalError as error:
            return self._html("error.html", status=404, title="There is no such job", detail=str(error))
        found, job, left = review(self._home, known), known.job, self._account.read()
        package = look(PackageShelf(self._home.models), found.model.package, job) if found.model.package else None
        card = job_card(self._home, known, self._now())
        return self._html("job.html", session, review=found, card=card, job=job, left=left, package=package)

    def left_page(self, session: Session, _: Request) -> Response:
        """What left, by kind and job, and the last records."""
        config, own = self._home.config(), self._home.identity().fingerprint
        return self._html("left.html", session, left=self._account.read(), config=config, fingerprint=own)

    async def act(self, request: Request) -> Response:
        """Do what a button says, and go back to where that shows."""
        session = self._session(request)
        form = await _form(request)
        if session is None or not session.accepts(form.get("token", "")):
            return self._refused()
        name = request.path_params["act"]
        if name not in acts.ACTS:
            return self._html(
                "error.html", status=404, title="There is no such act", detail=f"{name!r} is not offered."
            )
        asked = acts.Request(self._home, form, self._now(), self._leave)
        try:
            session.notice = await run_in_threadpool(acts.ACTS[name], asked)
        except DureError as error:
            session.notice = Notice("failed", form.get("job", ""), str(error))
        return _to(_place(name, form.get("job", "")))

    def failed(self, _: Request, error: Exception) -> Response:
        """A page for an error that Dure raises on purpose."""
        return self._html("error.html", status=500, title="This cannot be shown", detail=str(error))

    def _for_session(self, show: Show) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            session = self._session(request)
            return _to("/sign-in") if session is None else show(session, request)

        return answer

    def _session(self, request: Request) -> Session | None:
        return self._access.session(request.cookies.get(COOKIE, ""))

    def _refused(self) -> Response:
        detail = "The form is not of your session here, which may be over. Nothing was done."
        return self._html("error.html", status=403, title="Sign in again", detail=detail)

    def _html(self, name: str, session: Session | None = None, *, status: int = 200, **shown: object) -> Response:
        if session is not None:
            shown |= {"token": session.token, "notice": session.take_notice()}
        return HTMLResponse(self._templates.get_template(name).render(shown), status_code=status)


def firm_app(
    home: AgentHome,
    port: int,
    access: Access,
    *,
    now: Callable[[], datetime] = local_now,
    leave: acts.LeaveJob | None = None,
) -> ASGIApp:
    """The firm's page, guarded, for the port it listens on. Raises AssetError."""
    page = FirmPage(home, access, now, leave)
    return Guard(Starlette(routes=page.routes(), exception_handlers={DureError: page.failed}), port)


async def _form(request: Request) -> dict[str, str]:
    """The fields of a small form; nothing of one that is too large or has too many fields, or no form."""
    if request.headers.get("content-type", "").partition(";")[0] != _FORM_TYPE:
        return {}
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return {}
    try:
        return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        return {}


def _place(act: str, job: str) -> str:
    """Where what an act did is to be seen: always a page of ours."""
    if act == "verify":
        return "/left"
    stays = act in {"pause", "resume", "leave", "approve"}
    return f"/jobs/{quote(job, safe='')}" if stays and job else "/"


def _to(path: str) -> RedirectResponse:
    return RedirectResponse(path, status_code=303)


def _local_text(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"
