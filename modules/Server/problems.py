"""Errors as problem details (RFC 9457): one table from our exceptions to statuses, codes from their names.

The code of `ConversationNotFoundError` is `conversation_not_found`. A class that is not in the table has the status of its
nearest ancestor that is. docs/http-api.md lists all of them; a test keeps that list equal to the classes.
"""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import Any, Dict, List, Mapping, Optional, Type

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from modules.Server.replies import Json
from modules.store_common.errors import StorageError

__all__ = ["MEDIA_TYPE", "ApiError", "code_of", "install", "problem", "status_of"]

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

# By the name of the class: the packages of the stores are loaded when they are used, not for this table.
_STATUSES: Dict[str, int] = {
    "TokenRejectedError": 401,
    "TenantContextError": 403,
    "NotFoundError": 404,
    "AlreadyExistsError": 409,
    "ConcurrencyError": 409,
    "ConversationArchivedError": 409,
    "InvalidValueTypeError": 409,
    "VectorCollectionError": 409,
    "TaskTransitionError": 409,
    "TaskDependencyError": 409,
    "TaskCycleError": 409,
    "JobStateError": 409,
    "JobTransitionError": 409,
    "IdempotencyConflictError": 422,
    "InvalidCursorError": 400,
    "InvalidValueError": 422,
    "NotConfiguredError": 501,
    "MissingDependencyError": 501,
    "NotInitializedError": 503,
    "UnavailableError": 503,
    "PoolTimeoutError": 503,
    "DeadlineExceededError": 504,
    "QuotaExceededError": 507,
    "StorageFullError": 507,
    "StorageError": 500,
}
# Statuses that something other than a store decides, with the codes that they have then.
_HTTP_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "no_such_path",
    405: "method_not_allowed",
    411: "length_required",
    413: "body_too_large",
    421: "unknown_host",
    431: "headers_too_large",
    503: "overloaded",
    504: "deadline_exceeded",
}
# What FastAPI says of a body that its JSON reader gives up on.
_UNREADABLE = "There was an error parsing the body"
_RETRY_AFTER_S = "1"
_MOST_ERRORS = 20
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class ApiError(Exception):
    """A refusal that is the API's own.

    Args:
        status: HTTP status.
        code: Stable name of the cause.
        detail: What is wrong and what to do, for people.
        headers: Headers of the answer.
        retryable: Whether the same request may succeed later.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Optional[Mapping[str, str]] = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.retryable = retryable


def code_of(kind: Type[BaseException]) -> str:
    """Return the code of an error class: its name without "Error", in lower case with underscores."""
    return _WORD.sub("_", re.sub("Error$", "", kind.__name__)).lower()


def status_of(kind: Type[BaseException], *, conditional: bool = False) -> int:
    """Return the HTTP status of an error class.

    Args:
        kind: The class.
        conditional: The request had an If-Match or If-None-Match: a conflict is then 412.
    """
    status = next((_STATUSES[base.__name__] for base in kind.__mro__ if base.__name__ in _STATUSES), 500)
    is_conflict = any(base.__name__ in ("ConcurrencyError", "AlreadyExistsError") for base in kind.__mro__)
    return 412 if conditional and is_conflict else status


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    retryable: bool = False,
    headers: Optional[Mapping[str, str]] = None,
    request_id: Optional[str] = None,
    **more: Any,
) -> Json:
    """Return the answer that tells of an error."""
    body: Dict[str, Any] = {
        "type": f"urn:atlas-storage:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
        "retryable": retryable,
    }
    if request_id is not None:
        body["request_id"] = request_id
    body.update({name: value for name, value in more.items() if value is not None})
    given = dict(headers or {})
    if status == 503:
        given.setdefault("Retry-After", _RETRY_AFTER_S)
    if status == 401:
        given.setdefault("WWW-Authenticate", 'Bearer realm="atlas-storage"')
    return Json(body, status, headers=given, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Let `app` answer every error with problem details."""
    app.add_exception_handler(StorageError, _storage_error)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)


def _request_id(request: Request) -> Optional[str]:
    found = request.scope.get("atlas_request_id")
    return found if isinstance(found, str) else None


def _tell(request: Request, status: int, code: str, detail: str, **more: Any) -> Response:
    """Return the answer: a page where a person looks, problem details elsewhere."""
    request_id = _request_id(request)
    page = getattr(request.app.state, "error_page", None)
    wants_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/v1")
    if page is not None and wants_page:
        answer: Response = page(request, status, HTTPStatus(status).phrase, code, detail, request_id)
        return answer
    return problem(status, code, detail, request_id=request_id, **more)


async def _storage_error(request: Request, exc: Any) -> Response:
    kind = type(exc)
    conditional = bool({"if-match", "if-none-match"} & set(request.headers.keys()))
    status = status_of(kind, conditional=conditional)
    detail = str(exc)
    if status == 500:
        # an error of the installation, not of the caller: its text may name paths and hosts
        logger.error("server.request.failed", extra={"error_type": kind.__name__}, exc_info=exc)
        detail = "the storage failed; the server's log says why"
    expected, actual = getattr(exc, "expected", None), getattr(exc, "actual", None)
    return _tell(
        request,
        status,
        code_of(kind),
        detail,
        retryable=exc.retryable,
        expected=expected if isinstance(expected, int) else None,
        actual=actual if isinstance(actual, int) else None,
    )


async def _api_error(request: Request, exc: Any) -> Response:
    return _tell(request, exc.status, exc.code, exc.detail, retryable=exc.retryable, headers=exc.headers)


async def _invalid_request(request: Request, exc: Any) -> Response:
    errors: List[Dict[str, Any]] = []
    for error in exc.errors()[:_MOST_ERRORS]:
        # "input" is what the caller sent: it is not sent back
        where = [_sayable(str(part)[:100]) for part in error.get("loc", ())]
        errors.append({"at": where, "reason": str(error.get("msg", ""))[:300], "kind": error.get("type")})
    first = f"{'.'.join(errors[0]['at'])}: {errors[0]['reason']}" if errors else "the request is not valid"
    if errors and errors[0]["at"] == ["body"] and errors[0]["kind"] != "missing" and not _says_json(request):
        # what curl sends without the header is a form
        first = "body: say that it is JSON, by the header `Content-Type: application/json`"
    return _tell(request, 422, "invalid_request", first, errors=errors)


def _sayable(name: str) -> str:
    """Return a name that the caller chose as UTF-8 can say it."""
    return name.encode(errors="replace").decode()


def _says_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


async def _http_error(request: Request, exc: Any) -> Response:
    code = _HTTP_CODES.get(exc.status_code, "bad_request" if exc.status_code < 500 else "internal")
    details = {
        404: "there is no such path; /openapi.json lists them",
        405: "this path does not take that method; the header Allow says which it takes",
    }
    detail = details.get(exc.status_code, str(exc.detail))
    if detail == _UNREADABLE:
        detail = "the body cannot be read as JSON: it is not UTF-8, nested too deeply, or has a number of thousands of digits"
    return _tell(request, exc.status_code, code, detail, headers=exc.headers or {})


async def _defect(request: Request, exc: Exception) -> Response:
    # its text may hold anything, so it goes to the log only
    logger.error(
        "server.request.defect",
        extra={"error_type": type(exc).__name__, "entity_id": _request_id(request)},
        exc_info=exc,
    )
    return _tell(
        request, 500, "internal", "a defect of atlas-storage; the server's log has it under this request id"
    )
