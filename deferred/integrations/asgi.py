"""Any ASGI app: a pure pass-through middleware that opens a context per request.

Rules of this file: what the app sends and receives goes through untouched, object by object;
no coroutine is put around messages that end nothing; the event loop is not touched; work
never runs inside the app call (but for ``lifetime="request"``), because a failure there
closes the connection under the next request.
"""

from __future__ import annotations

from asyncio import _get_running_loop as running_loop
from typing import Any, Literal, Protocol, TypeAlias, cast, get_args

from deferred._context import DeferredContext
from deferred._current import current_context
from deferred._supervisor import Supervisor
from deferred._task import current_unit
from deferred.exceptions import NoCurrentContextError
from deferred.integrations._exchange import ASGIApp, Kept, Message, Receive, Scope, Send, make_exchange
from deferred.integrations._hosts import WaitUntil, find_host, stay
from deferred.integrations._lifespan import Lifespan
from deferred.integrations._servers import owner
from deferred.integrations._uncaught import listen

__all__ = ["ASGIApp", "DeferredMiddleware", "Message", "Receive", "Scope", "Send", "deferred_from"]

KEY = "deferred.context"
"""Where the context lies in the scope: for frameworks that run handlers in contexts of their own."""

Lifetime: TypeAlias = Literal["app", "request"]
"""Whether work outlives the app call, or the app call stays open for it."""

# Methods of an imported name are looked up anew for each call: these are used for each request.
_set_unit, _reset_unit = current_unit.set, current_unit.reset


class HasScope(Protocol):
    """A request object of any ASGI framework."""

    @property
    def scope(self) -> Any: ...


def deferred_from(request: HasScope | Scope) -> DeferredContext:
    """Return the context of a request: an object with a ``scope``, or the scope itself.

    Raises:
        NoCurrentContextError: The request did not come through the middleware.
    """
    scope = cast("Scope", getattr(request, "scope", request))
    context: DeferredContext | None = scope.get(KEY)
    if context is not None:
        return context
    try:
        return current_context()
    except NoCurrentContextError:
        message = "this request has no context: wrap the app in DeferredMiddleware, or add it to its middleware"
        raise NoCurrentContextError(message) from None


class DeferredMiddleware:
    """Give every request and websocket of an ASGI app a context, and drain at shutdown.

    Put it outermost: then it sees the lifespan, and answers of the framework's own error
    handling. Below other middleware, or mounted twice with the same supervisor, it works as
    well; a request has one context then.

    Args:
        app: The ASGI app.
        supervisor: The owner of the work; one with default settings when None.
        lifetime: ``"app"``: work outlives the app call and is drained in the lifespan's
            shutdown. ``"request"``: the app call itself stays open until the work of its
            request is done, for hosts that freeze or stop the process after it.
        wait_until: The host's own, if it has one: called with one awaitable for each request
            that has deferred something. Those of Vercel and of Cloudflare's Python Workers
            are found without it.

    Raises:
        ValueError: `lifetime` is neither, or ``"request"`` beside a `wait_until`.
        TypeError: `app` cannot be called, or `supervisor` is none.

    Example:
        >>> from deferred import defer
        >>> async def app(scope, receive, send):
        ...     defer(print, "after the answer")
        ...     await send({"type": "http.response.start", "status": 204, "headers": []})
        ...     await send({"type": "http.response.body", "body": b""})
        >>> app = DeferredMiddleware(app)
    """

    _insists = False  # whether to answer rejections that the app has answered itself, with a 500

    def __init__(
        self,
        app: ASGIApp,
        supervisor: Supervisor | None = None,
        *,
        lifetime: Lifetime = "app",
        wait_until: WaitUntil | None = None,
    ) -> None:
        check_lifetime(lifetime)
        if lifetime == "request" and wait_until is not None:
            message = 'lifetime="request" leaves nothing for the host to wait for: leave it out, or wait_until='
            raise ValueError(message)
        if not callable(app):
            message = f"app must be an ASGI app, not {app!r}: `DeferredMiddleware(app, supervisor)`"
            raise TypeError(message)
        self.app = app
        self.supervisor: Supervisor = owner(supervisor)
        self._given = supervisor is not None
        self._launcher = self.supervisor._launcher
        listen()
        self._host = find_host(wait_until) if lifetime == "app" else None
        self._stays = lifetime == "request" or self._host is not None
        if self._stays:
            self._launcher.opened = True  # each request drains itself: nothing to warn of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: C901, PLR0912  # the hot path: no calls
        """Serve one scope."""
        kind = scope["type"]
        if (kind != "http" and kind != "websocket") or KEY in scope:  # noqa: PLR1714  # no set, no hashing: the hot path
            await self._dispatch(scope, receive, send)
            return
        launcher = self._launcher
        if launcher.lazy:
            launcher.seen = running_loop()  # bound by the first registration, if there is one
        exchange = make_exchange(launcher, launcher.options, receive, send, _label, scope)
        if launcher.hooks.opened:
            launcher.tell_opened(exchange)
        scope[KEY] = exchange
        token = _set_unit(exchange)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except BaseException as error:
            answered = await exchange.absorb(error, scope)
            exchange.let_go(kind)
            if self._stays:
                await self._stay(exchange, kind)
            if not answered:
                raise
        else:
            if exchange._decided and exchange._held is None and not launcher.hooks.settled:
                exchange._ended = True  # what end() does, in most cases
            else:
                if exchange._trailing and type(exchange._send) is Kept:
                    await exchange.resolve(raised=self._insists)
                exchange.finish(scope)
            if exchange._pending:
                exchange.let_go(kind)
        finally:
            _reset_unit(token)
            if KEY in scope:  # unless the app has cleared it
                del scope[KEY]  # the scope must not hold what holds the scope
        if self._stays:
            await self._stay(exchange, kind)

    async def _stay(self, context: DeferredContext, kind: str) -> None:
        """Wait for the work of a request before the app call returns, or have the host wait for it."""
        if self._host is None:
            await stay(context)
        else:
            await self._host.keep_alive(context, kind)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve what is no request, or one that has a context already."""
        if scope["type"] == "lifespan":
            if self._host is not None and self._host.lifespan_per_request:
                await self._host.serve_lifespan(self.app, scope, receive, send)
                return
            await Lifespan(self.app, self.supervisor).run(scope, receive, send)
            return
        outer: DeferredContext | None = scope.get(KEY)
        if outer is None or (not outer._ended and (not self._given or outer.belongs_to(self._launcher))):
            await self.app(scope, receive, send)  # unknown; or mounted twice: one context, the outer one
            return
        # A supervisor of its own inside another's request: each has its context, the outer
        # one drains both, because a mounted app is told of no shutdown.
        if not outer._ended:
            outer._host.adopt(self._launcher)
        del scope[KEY]
        try:
            await self(scope, receive, send)
        finally:
            scope[KEY] = outer


def check_lifetime(lifetime: Lifetime) -> Lifetime:
    """Return how long an app call stays open, or refuse what is none of the two."""
    if lifetime not in get_args(Lifetime):
        message = f"lifetime must be one of {', '.join(map(repr, get_args(Lifetime)))}, not {lifetime!r}"
        raise ValueError(message)
    return lifetime


def _label(scope: Scope) -> str:
    try:
        return f"{scope['method']} {scope['path']}"
    except KeyError:
        return f"{scope.get('method', 'WEBSOCKET')} {scope.get('path', '')}"
