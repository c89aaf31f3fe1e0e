"""Any ASGI app: a pure pass-through middleware that opens a context per request.

Rules of this file: what the app sends and receives goes through untouched, object by object;
no coroutine is put around messages that end nothing; the event loop is not touched; work
never runs inside the app call (but for ``lifetime="request"``), because a failure there
closes the connection under the next request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal, Protocol, TypeAlias, cast

from deferred._context import DeferredContext
from deferred._current import current_context
from deferred._launch import Launcher
from deferred._supervisor import Supervisor
from deferred._task import current_unit
from deferred.exceptions import NoCurrentContextError, TaskRejectedError

__all__ = ["ASGIApp", "DeferredMiddleware", "Message", "Receive", "Scope", "Send", "deferred_from"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

KEY = "deferred.context"
"""Where the context lies in the scope: for frameworks that run handlers in contexts of their own."""

_LIFETIMES = ("app", "request")


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

    Raises:
        ValueError: `lifetime` is neither.

    Example:
        >>> from deferred import defer
        >>> async def app(scope, receive, send):
        ...     defer(print, "after the answer")
        ...     await send({"type": "http.response.start", "status": 204, "headers": []})
        ...     await send({"type": "http.response.body", "body": b""})
        >>> app = DeferredMiddleware(app)
    """

    def __init__(
        self,
        app: ASGIApp,
        supervisor: Supervisor | None = None,
        *,
        lifetime: Literal["app", "request"] = "app",
    ) -> None:
        if lifetime not in _LIFETIMES:
            message = f"lifetime must be one of {', '.join(map(repr, _LIFETIMES))}, not {lifetime!r}"
            raise ValueError(message)
        self.app = app
        self.supervisor = supervisor if supervisor is not None else Supervisor()
        self._given = supervisor is not None
        self._lifetime = lifetime
        self._launcher: Launcher = self.supervisor._launcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        kind = scope["type"]
        if kind == "http" or kind == "websocket":  # noqa: PLR1714  # the hot path: no set, no hashing
            outer: DeferredContext | None = scope.get(KEY)
            if outer is None or outer._ended:
                await self._serve(scope, receive, send)
            elif not self._given or outer._host is self._launcher:
                await self.app(scope, receive, send)  # mounted twice: one context, the outer one
            else:
                await self._serve_nested(outer, scope, receive, send)
        elif kind == "lifespan":
            await Lifespan(self.app, self.supervisor).run(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = self._launcher.open(_label, scope)
        exchange = Exchange(context, receive, send)
        scope[KEY] = context
        token = current_unit.set(context)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except TaskRejectedError as error:
            if exchange.started or scope["type"] != "http":
                context.end(error)
                raise
            await exchange.refuse(error)
            context.end(error)
        except BaseException as error:
            context.end(error)
            raise
        else:
            if context._status is None and scope["type"] == "http":
                context._status = 500  # what every server answers for an app that sent nothing
            context.end()
        finally:
            current_unit.reset(token)
        if self._lifetime == "request":
            await context.drained()

    async def _serve_nested(self, outer: DeferredContext, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve an app mounted inside another that has a supervisor of its own: each has its context."""
        host = outer._host
        if isinstance(host, Launcher) and host.owner is not None and (owner := host.owner()) is not None:
            owner.adopt(self.supervisor)  # a mounted app is told of no shutdown
        await self._serve(scope, receive, send)
        scope[KEY] = outer


class Exchange:
    """The two channels of one request, watched for its end. Lives as long as the app call."""

    __slots__ = ("_context", "_receive", "_send", "_trailers", "started")

    def __init__(self, context: DeferredContext, receive: Receive, send: Send) -> None:
        self._context = context
        self._receive = receive
        self._send = send
        self._trailers = False
        self.started = False

    async def receive(self) -> Message:
        """Receive for the app; note when the client is gone."""
        message = await self._receive()
        if message["type"] in _GONE and not self._context._closed:
            self._context.close(decided=False)
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """Send for the app; note the status, and when the last part is out."""
        kind = message["type"]
        if kind == "http.response.body":
            last = not message.get("more_body", False) and not self._trailers
        elif kind == "http.response.start":
            self.started = True
            self._context._status = message["status"]
            self._trailers = message.get("trailers", False)
            last = False
        else:
            last = self._note(kind, message)
        return self._finish(message) if last else self._send(message)

    def _note(self, kind: str, message: Message) -> bool:
        """Note what is rarer than a plain response; say whether it is the last part."""
        if kind == "http.response.trailers":
            return not message.get("more_trailers", False)
        if kind in _SHORTCUTS:
            return not message.get("more_body", False) and not self._trailers
        if kind == "websocket.http.response.body":
            return not message.get("more_body", False)
        if kind == "websocket.http.response.start":
            self.started = True
            self._context._status = message["status"]
        elif kind == "websocket.accept":
            self.started = True
        elif kind == "websocket.close":
            if not self.started:
                self._context._status = 403  # what a server answers when a handshake is refused
            return True
        return False

    async def _finish(self, message: Message) -> None:
        await self._send(message)
        self._context.close()

    async def refuse(self, error: TaskRejectedError) -> None:
        """Answer 503: the handler could not register its work."""
        body = b"the service is overloaded, try again later"
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(max(1, round(error.retry_after))).encode()),
        ]
        await self.send({"type": "http.response.start", "status": 503, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


_GONE = frozenset({"http.disconnect", "websocket.disconnect"})
_SHORTCUTS = frozenset({"http.response.pathsend", "http.response.zerocopysend"})


def _label(scope: Scope) -> str:
    return f"{scope.get('method', 'WEBSOCKET')} {scope.get('path', '')}"


class Lifespan:
    """The lifespan of an app with a drain before the app's own shutdown.

    An app that knows no lifespan (it raises before it has received anything) gets one that
    opens and drains; an app that fails to start is left as it is.
    """

    def __init__(self, app: ASGIApp, supervisor: Supervisor) -> None:
        self._app = app
        self._supervisor = supervisor
        self._received = False
        self._open = False

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the lifespan scope."""

        async def watched_receive() -> Message:
            self._received = True
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._close()
            return message

        async def watched_send(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._supervisor.open()
                self._open = True
            await send(message)

        try:
            await self._app(scope, watched_receive, watched_send)
        except Exception:
            if self._received and not self._open:
                raise  # it failed to start, or to stop: the server's affair
            unknown = not self._received
            await self._stand_in(watched_receive, watched_send)
            if not unknown:
                raise
        else:
            if self._open:  # it returned without waiting for the shutdown
                await self._stand_in(watched_receive, watched_send)
        finally:
            await self._close()

    async def _close(self) -> None:
        if self._open:
            self._open = False
            await self._supervisor.close()

    async def _stand_in(self, receive: Receive, send: Send) -> None:
        """Play the part of an app that knows no lifespan, or left it early."""
        if not self._open:
            await receive()
            await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
