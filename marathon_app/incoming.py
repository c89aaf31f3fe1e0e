"""From a request to a registration: what is read of it, and how much of it."""

import asyncio
from typing import Any, Final

from litestar import Request
from litestar.datastructures import State
from litestar.exceptions import (
    ClientException,
    HTTPException,
    InternalServerException,
    TooManyRequestsException,
)

from marathon_app.limits import RegistrationLimits
from marathon_app.models import Registration, parse_registration

MAX_BODY: Final = 64 * 1024  # bytes; the longest acceptable registration has about 4,000
READ_TIMEOUT: Final = 10.0  # seconds for a whole body; the slowest phone needs less for 64 KiB

AnyRequest = Request[Any, Any, State]


async def provide_registration(request: AnyRequest, state: State) -> Registration:
    """Read the registration of a request.

    Raises:
        InvalidRegistrationError: 400 or 422, what was sent is not a registration.
        HTTPException: 408 the body came too slowly, 413 it is too large, 415 it is no JSON,
            429 too many came from this peer or for this address.
    """
    limits: RegistrationLimits = state.limits
    host = request.client.host if request.client is not None else ""
    _refuse_for(limits.peer(host))
    _require_json(request)
    registration = parse_registration(await _read_body(request))
    _refuse_for(limits.address(host, registration.email_key))
    return registration


def _refuse_for(seconds: int) -> None:
    if seconds:
        raise TooManyRequestsException(
            detail="Too many registrations; please try again later.", headers={"Retry-After": str(seconds)}
        )


def _require_json(request: AnyRequest) -> None:
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.lower().partition("charset=")[2].strip(' "')
    if media_type.strip().lower() != "application/json" or charset not in {"", "utf-8", "utf8"}:
        detail = "Send the registration as JSON in UTF-8, with the header Content-Type: application/json."
        raise HTTPException(status_code=415, detail=detail)
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        detail = "Send the registration as it is, without Content-Encoding."
        raise HTTPException(status_code=415, detail=detail, headers={"Accept-Encoding": "identity"})


async def _read_body(request: AnyRequest) -> bytes:
    """Read the body, at most `request_max_body_size` of it, whether its length was announced or not."""
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            async for chunk in request.stream():
                chunks.append(chunk)  # noqa: PERF401 - what came is kept in sight of the timeout
    except TimeoutError:
        detail = f"The body did not arrive within {READ_TIMEOUT:g} seconds."
        raise HTTPException(status_code=408, detail=detail, headers={"Connection": "close"}) from None
    except InternalServerException as error:  # how Litestar says that the client is gone
        raise ClientException(detail="The connection was closed before the body was complete.") from error
    return b"".join(chunks)
