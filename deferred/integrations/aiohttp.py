"""aiohttp's server: a context for each request, closed once the body is written, and a drain.

Works with aiohttp 3.10.6 and newer. A middleware of aiohttp returns before the body is written,
so the middleware only opens the context; the signal that aiohttp sends for every response, its
own error pages included, has ``write_eof`` watched, and the task that serves the request, for
a client that has gone before. The drain is the last cleanup context of the app, the first to
be left: everything that the app has opened is still open then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from deferred._context import DeferredContext
from deferred._current import current_context
from deferred._supervisor import Supervisor
from deferred._task import current_unit
from deferred.exceptions import NoCurrentContextError
from deferred.integrations._rejection import OVERLOADED, TRY_AGAIN_LATER, rejection_in, retry_after
from deferred.integrations._servers import Served, owner

__all__ = ["deferred_from", "setup"]

_SUPERVISOR = web.AppKey("deferred.supervisor", Supervisor)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def setup(app: web.Application, supervisor: Supervisor | None = None) -> Supervisor:
    """Give every request and websocket of `app` a context, and drain at its cleanup.

    Call it for the outermost application: its sub-applications are then served as well. A
    request has one context, that of the outermost application that was set up. A handler
    whose work is rejected by a limit is answered with 503 and ``Retry-After``.

    Args:
        app: The application, before it is run.
        supervisor: The owner of the work; one with default settings when None.

    Returns:
        The supervisor.

    Raises:
        ValueError: The application has another supervisor already.
        TypeError: `app` is no application, or `supervisor` no supervisor.
        RuntimeError: The application runs already, or was added to another one.

    Example:
        >>> from aiohttp import web
        >>> from deferred import defer
        >>> async def index(request):
        ...     defer(print, "after the answer")
        ...     return web.Response(text="now")
        >>> app = web.Application()
        >>> app.add_routes([web.get("/", index)])  # doctest: +ELLIPSIS
        [...]
        >>> supervisor = setup(app)
    """
    if not isinstance(app, web.Application):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
        message = f"setup() takes an aiohttp.web.Application, not {app!r}"
        raise TypeError(message)
    installed = app.get(_SUPERVISOR)
    if installed is not None:
        if supervisor is not None and supervisor is not installed:
            message = f"{app!r} has another supervisor already: use the one that the first setup() has returned"
            raise ValueError(message)
        return installed
    supervisor = owner(supervisor)
    if app.pre_frozen:
        message = (
            f"{app!r} takes no middleware any more: call setup() before it is run, or added to another application "
            "(or set that one up, which serves both)"
        )
        raise RuntimeError(message)
    app[_SUPERVISOR] = supervisor
    app.middlewares.insert(0, _open_context)
    app.on_response_prepare.insert(0, _watch_response)
    app.on_shutdown.insert(0, _tell_of_shutdown)
    app.cleanup_ctx.append(_serve)
    return supervisor


def deferred_from(request: web.BaseRequest) -> DeferredContext:
    """Return the context of a request.

    Raises:
        NoCurrentContextError: The request's application was not set up.
    """
    exchange: Exchange | None = request.get(_EXCHANGE)
    if exchange is not None:
        return exchange.context
    try:
        return current_context()
    except NoCurrentContextError:
        message = "this request has no context: call `deferred.integrations.aiohttp.setup(app)` before the app is run"
        raise NoCurrentContextError(message) from None


async def _serve(app: web.Application) -> AsyncIterator[None]:
    if app.cleanup_ctx[-1] is not _serve and not app.cleanup_ctx.frozen:
        app.cleanup_ctx.append(_serve)  # others came after: it is entered again, as the last
        yield
        return
    async with Served(app[_SUPERVISOR]):
        yield


async def _tell_of_shutdown(app: web.Application) -> None:
    app[_SUPERVISOR]._stopping = True


class Exchange(msgspec.Struct, eq=False, weakref=True):
    """What is known of a request on its way. Lives as long as the request."""

    context: DeferredContext
    task: asyncio.Task[Any] | None  # that serves the request
    response: web.StreamResponse | None = None  # that aiohttp has begun to send
    handled: bool = False  # whether the handler has returned or raised

    def close(self) -> None:
        """Close the context: the body is written; end it if the handler is done."""
        if self.handled:
            self.context.end()
        else:
            self.context.close()

    def leave(self, _task: object) -> None:
        """End the context: the task that served the request is over, whatever became of the response."""
        if not self.context._ended:
            self.context.end()


# Before 3.14 requests took plain names only.
_EXCHANGE: Any = web.RequestKey("deferred.exchange", Exchange) if hasattr(web, "RequestKey") else "deferred.exchange"


def _label(request: web.Request) -> str:
    return f"{request.method} {request.path}"


@web.middleware
async def _open_context(request: web.Request, handler: Handler) -> web.StreamResponse:
    if _EXCHANGE in request:
        return await handler(request)  # an application inside one that was set up as well
    context = request.app[_SUPERVISOR]._launcher.open(_label, request)
    exchange = Exchange(context, asyncio.current_task())
    request[_EXCHANGE] = exchange
    # Not reset: the body of a response, and its signals, come after this, in the same task.
    current_unit.set(context)
    try:
        response = await handler(request)
    except web.HTTPException:
        raise  # a response like any other
    except Exception as error:
        if not context._decided:
            context._error = error
        rejection = rejection_in(error)
        begun = exchange.response
        if rejection is not None and begun is None:
            return web.Response(text=OVERLOADED, status=503, headers={"Retry-After": retry_after(rejection)})
        if rejection is not None and begun is not None and issubclass(type(begun), web.WebSocketResponse):
            await _close(begun)
            return begun
        if begun is not None:
            context.end(error)  # no error page follows what was begun
        raise
    except BaseException as error:
        context.end(error)
        raise
    finally:
        exchange.handled = True
    if context._closed:
        context.end()
    return response


async def _close(socket: Any) -> None:  # the class of a websocket is generic in some versions
    await socket.close(code=TRY_AGAIN_LATER, message=OVERLOADED.encode())


async def _watch_response(request: web.Request, response: web.StreamResponse) -> None:
    exchange: Exchange | None = request.get(_EXCHANGE)
    if exchange is None or exchange.response is response:
        return
    exchange.response = response
    exchange.context._status = response.status
    if exchange.handled:
        exchange.task = asyncio.current_task()  # no middleware is around this one
    task = exchange.task
    if task is not None:
        task.add_done_callback(exchange.leave)
    watched: Any = response  # an instance may have a write_eof of its own
    write_eof = response.write_eof

    async def write_last(*data: bytes) -> None:
        del watched.write_eof
        await write_eof(*data)
        if task is not None:
            task.remove_done_callback(exchange.leave)
        exchange.close()

    watched.write_eof = write_last
