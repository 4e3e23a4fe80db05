"""The enrolment API: HTTPS, public, five routes. Nothing else listens on its port."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Path, Request, Response

from dure_protocols.enrolment import (
    API_PREFIX,
    MAX_REQUEST_BYTES,
    JoinAnswer,
    JoinRequest,
    RootAnswer,
    StateAnswer,
)
from dure_protocols.errors import DureError
from dure_protocols.model_package import PublishedModels
from dure_server.enrolment.limits import Limits, RateLimit
from dure_server.enrolment.service import EnrolmentService
from dure_server.problems import ProblemError, install_problem_handlers

router = APIRouter(prefix=API_PREFIX)


def _service(request: Request) -> EnrolmentService:
    service: EnrolmentService = request.app.state.service
    return service


Service = Annotated[EnrolmentService, Depends(_service)]
Hex = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


@router.get("/root")
def root(service: Service) -> RootAnswer:
    """Permission: anybody."""
    return service.root()


@router.post("/join", status_code=201)
def join(request: JoinRequest, service: Service) -> JoinAnswer:
    """Permission: whoever holds an invitation's secret. One transaction."""
    return service.join(request)


@router.get("/certificates/{fingerprint}")
def state(fingerprint: Hex, service: Service) -> StateAnswer:
    """Permission: whoever knows a certificate's fingerprint."""
    return service.state(fingerprint)


@router.get("/certificates/{fingerprint}/models")
def models(fingerprint: Hex, service: Service) -> PublishedModels:
    """Permission: an approved firm, by its certificate's fingerprint, which it and the server alone know."""
    return service.models(fingerprint)


@router.get("/certificates/{fingerprint}/models/{digest}")
def model_package(fingerprint: Hex, digest: Hex, service: Service) -> Response:
    """Permission: as for the list."""
    return Response(service.model_package(fingerprint, digest), media_type="application/octet-stream")


def enrolment_app(service: EnrolmentService, rate: RateLimit | None = None) -> FastAPI:
    """The API as an ASGI app. Its pages of documentation are off: they would come from a CDN."""
    app = FastAPI(title="Dure enrolment", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    app.include_router(router)
    install_problem_handlers(app, _translate)
    app.add_middleware(Limits, rate=rate or RateLimit(time.monotonic), max_body_bytes=MAX_REQUEST_BYTES)
    return app


def _translate(_: DureError) -> ProblemError | None:
    # The service raises EnrolmentErrors, which are problems already; anything else is our own failure.
    return None
