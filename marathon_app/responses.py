"""What errors look like from outside, and the headers of every response.

An error's body is JSON: `{"detail": ...}`, with `"errors": [{"field", "message"}]` where fields are
at fault. It never holds a traceback, SQL, a path or an exception's own words.
"""

import logging
import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from litestar import Request, Response
from litestar.datastructures import MutableScopeHeaders, State
from litestar.exceptions import HTTPException
from litestar.types import Message, Scope

from deferred import NonRetryableError, SupervisorClosedError, TaskRejectedError
from marathon_app.database import DatabaseBusyError, DatabaseOutcomeUnknownError, DatabaseUnavailableError
from marathon_app.mail import MailNotSentError
from marathon_app.models import InvalidRegistrationError

logger = logging.getLogger(__name__)

_DENY_ALL: Final = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

ErrorResponse = Response[dict[str, Any]]
AnyRequest = Request[Any, Any, State]


async def add_headers(message: Message, _scope: Scope) -> None:
    """Complete the headers of any response; the policy is "nothing" where a route set none."""
    if message["type"] != "http.response.start":
        return
    headers = MutableScopeHeaders.from_message(message)
    for name, value in _HEADERS.items():
        headers[name] = value
    headers.setdefault("Content-Security-Policy", _DENY_ALL)
    headers.setdefault("Cache-Control", "no-store")


def _error(
    status: int, detail: str, *, headers: Mapping[str, str] | None = None, errors: list[Any] | None = None
) -> ErrorResponse:
    body: dict[str, Any] = {"detail": detail}
    if errors:
        body["errors"] = errors
    return Response(body, status_code=status, media_type="application/json", headers=dict(headers or {}))


def invalid_registration(_request: AnyRequest, error: InvalidRegistrationError) -> ErrorResponse:
    """Answer what is not a registration: 400 or 422, naming each field at fault."""
    return _error(error.status, error.detail, errors=list(error.errors))


def http_error(_request: AnyRequest, error: HTTPException) -> ErrorResponse:
    """Answer what Litestar or a route refused; a 5xx says no more than its name."""
    detail = error.detail if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR else ""
    return _error(error.status_code, detail or HTTPStatus(error.status_code).phrase, headers=error.headers)


def database_error(_request: AnyRequest, error: DatabaseBusyError | DatabaseUnavailableError) -> ErrorResponse:
    """Answer that nothing was stored, or that it is not known, and that trying again makes sense: 503."""
    logger.warning("A registration was not stored: %s", error)
    retry_after = "1" if isinstance(error, DatabaseBusyError) else "5"
    detail = "The registration could not be stored; nothing was kept. Please try again."
    if isinstance(error, DatabaseOutcomeUnknownError):
        detail = "Whether the registration was stored is not known. Please try again: nobody is registered twice."
    return _error(503, detail, headers={"Retry-After": retry_after})


def rejected(_request: AnyRequest, error: TaskRejectedError | SupervisorClosedError) -> ErrorResponse:
    """Answer that too much work waits already, or that the app is shutting down: 503."""
    retry_after = error.retry_after if isinstance(error, TaskRejectedError) else 5.0
    headers = {"Retry-After": str(max(1, math.ceil(retry_after)))}
    return _error(503, "Too much is waiting; nothing was kept. Please try again.", headers=headers)


def mail_error(_request: AnyRequest, error: MailNotSentError | NonRetryableError) -> ErrorResponse:
    """Answer where the route waited for the mail, and it failed: 502, and the runner is registered."""
    logger.error("A confirmation was not sent: %s", error)
    return _error(502, "You are registered, but the confirmation mail could not be sent.")


def unexpected_error(request: AnyRequest, error: Exception) -> ErrorResponse:
    """Answer anything else: a 500 that says nothing, and a log entry that says it all."""
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _error(500, HTTPStatus.INTERNAL_SERVER_ERROR.phrase)


EXCEPTION_HANDLERS: Final[Mapping[int | type[Exception], Callable[[Any, Any], ErrorResponse]]] = {
    InvalidRegistrationError: invalid_registration,
    HTTPException: http_error,
    DatabaseBusyError: database_error,
    DatabaseUnavailableError: database_error,
    TaskRejectedError: rejected,
    SupervisorClosedError: rejected,
    MailNotSentError: mail_error,
    NonRetryableError: mail_error,
    Exception: unexpected_error,
}
