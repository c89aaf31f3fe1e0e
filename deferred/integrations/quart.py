"""Quart: an extension that gives each request a context and drains at shutdown.

Works with Quart 0.19.9 and newer. It wraps ``app.asgi_app``, as Quart wants middleware to be
put on, so the app stays a `Quart` for its command line, its test client and ``app.run()``;
the drain comes before ``after_serving`` functions and ``while_serving`` generators.
"""

from __future__ import annotations

from typing import Any

from quart import Quart, Response, got_websocket_exception, has_websocket_context, websocket

from deferred._supervisor import Supervisor
from deferred._task import current_unit
from deferred.exceptions import TaskRejectedError
from deferred.integrations import asgi
from deferred.integrations._rejection import OVERLOADED, TRY_AGAIN_LATER, rejection_in, retry_after
from deferred.integrations._servers import owner
from deferred.integrations.asgi import deferred_from

__all__ = ["DeferredQuart", "deferred_from"]

_EXTENSION = "deferred"
_SERVER_ERROR = 500
_ACCEPTED = 101


class DeferredQuart:
    """The Quart extension; lives as long as the app.

    Handlers find their context by ``deferred_from(request)`` (or ``websocket``), or use
    `deferred.defer` right away. A handler whose work is rejected by a limit is answered with
    503 and ``Retry-After``, unless the app has an error handler of its own for that.

    Args:
        app: The app, or None to call `init_app` later.
        supervisor: The owner of the work; one with default settings when None.
        lifetime: As in `deferred.integrations.asgi.DeferredMiddleware`.

    Raises:
        TypeError: `app` is no Quart app, or `supervisor` no supervisor.
        ValueError: `lifetime` is unknown; or as `init_app`.

    Example:
        >>> from quart import Quart
        >>> from deferred import defer
        >>> app = Quart(__name__)
        >>> background = DeferredQuart(app)
        >>> @app.get("/")
        ... async def index():
        ...     defer(print, "after the answer")
        ...     return "now"
    """

    def __init__(
        self, app: Quart | None = None, supervisor: Supervisor | None = None, *, lifetime: asgi.Lifetime = "app"
    ) -> None:
        self.supervisor: Supervisor = owner(supervisor)
        self._lifetime: asgi.Lifetime = asgi.check_lifetime(lifetime)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Quart) -> None:
        """Put the extension on `app`; once, however often it is called.

        Raises:
            TypeError: `app` is no Quart app.
            ValueError: The app has the extension already, with another supervisor.
        """
        if not isinstance(app, Quart):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
            message = f"app must be a Quart app, not {app!r}: `DeferredQuart(app, supervisor)`"
            raise TypeError(message)
        installed: DeferredQuart | None = app.extensions.get(_EXTENSION)
        if installed is not None:
            if installed.supervisor is not self.supervisor:
                message = (
                    f"{app.name!r} has a DeferredQuart already, with another supervisor: "
                    'use that one, `app.extensions["deferred"].supervisor`'
                )
                raise ValueError(message)
            return
        app.extensions[_EXTENSION] = self
        asgi_app: Any = app  # Quart speaks ASGI in the types of a server
        asgi_app.asgi_app = asgi.DeferredMiddleware(asgi_app.asgi_app, self.supervisor, lifetime=self._lifetime)
        answers = app.error_handler_spec[None][None]
        answers.setdefault(TaskRejectedError, _answer_rejection)
        answers.setdefault(ExceptionGroup, _answer_group)
        got_websocket_exception.connect(_note_failure, app)


async def _answer_rejection(error: TaskRejectedError) -> Response:
    context: Any = current_unit.get(None)
    if has_websocket_context() and context is not None and context.status == _ACCEPTED:
        await websocket.close(TRY_AGAIN_LATER, OVERLOADED)
    headers = {"Content-Type": "text/plain; charset=utf-8", "Retry-After": retry_after(error)}
    return Response(OVERLOADED, 503, headers)


async def _answer_group(error: ExceptionGroup[Exception]) -> Response:
    rejection = rejection_in(error)
    if rejection is None:
        raise error  # Quart goes on as if nobody had asked for groups
    return await _answer_rejection(rejection)


async def _note_failure(_app: Quart, **_details: Any) -> None:
    # Quart closes the websocket of a handler that raised with 1000, as if all had been well.
    context: Any = current_unit.get(None)
    if context is not None:
        context.status = _SERVER_ERROR
