"""Errors of the HTTP APIs, in one form and one place: application/problem+json (RFC 9457).

An unexpected error is logged here and named to nobody: its text could quote what a caller must not see.
"""

import logging
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dure_protocols.enrolment import Problem
from dure_protocols.errors import DureError

logger = logging.getLogger(__name__)


class ProblemError(DureError):
    """An error with a place in HTTP: `status` and a `code` for programs; the text is for a person."""

    status = 400
    code = "bad-request"
    title = "The request cannot be carried out"
    retry_after_seconds: int | None = None


def problem_response(error: ProblemError) -> JSONResponse:
    """The answer that an error becomes."""
    headers = {"Retry-After": str(error.retry_after_seconds)} if error.retry_after_seconds is not None else None
    return _response(error.status, error.code, error.title, str(error), headers)


def install_problem_handlers(app: FastAPI, translate: Callable[[DureError], ProblemError | None]) -> None:
    """Turn every error of an app into a problem. `translate` finds a place for Dure's own errors, None for none."""

    async def ours(_: Request, error: Exception) -> JSONResponse:
        if isinstance(error, DureError):
            problem = error if isinstance(error, ProblemError) else translate(error)
            if problem is not None:
                return problem_response(problem)
        logger.error("a request failed", exc_info=error)
        return _response(500, "internal", "The server failed", "The server failed; its log says why.")

    async def malformed(_: Request, error: Exception) -> JSONResponse:
        # FastAPI would send the input back; in a request to join, that is the secret.
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        detail = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in problems[:5])
        return _response(422, "malformed", "The request is malformed", detail or "The request is malformed.")

    async def http(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, HTTPException):  # pragma: no cover  # Starlette calls this for HTTPException only
            raise error
        return _response(error.status_code, f"http-{error.status_code}", "The request was refused", str(error.detail))

    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(DureError, ours)
    app.add_exception_handler(Exception, ours)


def _response(status: int, code: str, title: str, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    problem = Problem(type=f"urn:dure:problem:{code}", title=title, status=status, detail=detail)
    return JSONResponse(
        problem.model_dump(), status_code=status, headers=headers, media_type="application/problem+json"
    )
