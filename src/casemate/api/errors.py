"""Errors over HTTP: one table of class → status, and each as problem details (RFC 9457).

``type`` is the code as a URN and ``title`` is the code in words; ``detail`` is the message; ``code``, ``hint``,
``retry`` and ``evidence`` are our extension members. Inside a stream, where there is no status any more, an error
is a last line with the same ``code``, ``message``, ``hint``, ``retry`` and ``evidence``.
"""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from casemate import errors

MEDIA_TYPE = "application/problem+json"
# The class itself or its nearest ancestor counts.
STATUS: dict[type[errors.CasemateError], int] = {
    errors.RequestError: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.StateConflict: 409,
    errors.IdempotencyConflict: 409,
    errors.SnapshotMissing: 409,
    errors.FileRefused: 409,
    errors.PortRefused: 409,
    errors.ArchiveRefused: 422,
    errors.ExecRefused: 422,
    errors.QuotaExceeded: 429,
    errors.RateLimited: 429,
    errors.CapacityError: 503,
    errors.HostError: 500,
    errors.VmmError: 502,
    errors.GuestError: 502,
    errors.CasemateError: 500,
}
RETRY_AFTER_S = 1  # where an error that passes by itself does not say when
MAX_INSTANCE_CHARS = 200


class TooLarge(errors.RequestError):
    """A JSON body or a request's head over its limit; the rest of it is not read."""


class TooSlow(errors.RequestError):
    """A request that did not arrive in its time."""


# Classes of this room only; they share the code of their parent.
STATUS |= {TooLarge: 413, TooSlow: 408}


def status_of(error: errors.CasemateError) -> int:
    if isinstance(error, errors.FileRefused) and error.evidence.get("errno") == "ENOENT":
        return 404
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def problem(error: errors.CasemateError, status: int, instance: str = "") -> dict[str, Any]:
    said = {
        "type": f"urn:casemate:error:{error.code}",
        "title": error.code.replace("-", " ").capitalize(),
        "status": status,
        "detail": error.message,
        "code": error.code,
        "hint": error.hint,
        "retry": error.retry.value,
        "evidence": error.evidence,
    }
    return said | ({"instance": instance[:MAX_INSTANCE_CHARS]} if instance else {})


def answer(error: errors.CasemateError, instance: str = "", *, status: int | None = None) -> Response:
    """*error* as a response. *instance* is the path it is about."""
    status = status or status_of(error)
    body = json.dumps(problem(error, status, instance), default=str, separators=(",", ":")).encode() + b"\n"
    return Response(body, status, headers_of(error, status), MEDIA_TYPE)


def headers_of(error: errors.CasemateError, status: int) -> dict[str, str]:
    if status == 401:
        return {"www-authenticate": 'Bearer realm="casemate"'}
    if status in (429, 503):
        after_s = error.evidence.get("retry_after_s")
        return {"retry-after": str(math.ceil(after_s) if isinstance(after_s, int | float) else RETRY_AFTER_S)}
    return {}


def the_error(raised: BaseException) -> errors.CasemateError | None:
    """The one of ours in what task groups wrapped it into; None where there is something else as well."""
    while isinstance(raised, BaseExceptionGroup) and len(raised.exceptions) == 1:
        raised = raised.exceptions[0]
    return raised if isinstance(raised, errors.CasemateError) else None


async def _ours(request: Request, raised: Exception) -> Response:
    assert isinstance(raised, errors.CasemateError)
    return answer(raised, request.url.path)


async def _starlettes(request: Request, raised: Exception) -> Response:
    """No such route, or not with this method."""
    assert isinstance(raised, HTTPException)
    path = request.url.path[:MAX_INSTANCE_CHARS]
    if raised.status_code == 404:
        return answer(errors.NotFound(f"there is nothing at {path}"), path)
    error = errors.RequestError(f"{request.method} is not served at {path}")
    response = answer(error, path, status=raised.status_code)
    response.headers.update(raised.headers or {})
    return response


async def _gone(request: Request, raised: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it: the client left before its request was whole


async def _unforeseen(request: Request, raised: Exception) -> Response:
    """A bug of ours, or several errors at once; the server logs it with its traceback."""
    found = the_error(raised) or errors.CasemateError("an error that was not foreseen", hint="see the daemon's log")
    return answer(found, request.url.path)


HANDLERS: dict[type[Exception], ExceptionHandler] = {
    errors.CasemateError: _ours,
    HTTPException: _starlettes,
    ClientDisconnect: _gone,
    Exception: _unforeseen,
}
