"""Any ASGI app: a pure pass-through middleware that opens a context per request.

Rules of this file: what the app sends and receives goes through untouched, object by object;
no coroutine is put around messages that end nothing; the event loop is not touched; work
never runs inside the app call (but for ``lifetime="request"``), because a failure there
closes the connection under the next request.
"""

from __future__ import annotations

import logging
from asyncio import _get_running_loop as running_loop
from collections.abc import Awaitable, Callable, MutableMapping
from sys import exception
from typing import Any, Literal, Protocol, TypeAlias, cast

from deferred._context import DeferredContext
from deferred._current import current_context
from deferred._stores import STORED, stored
from deferred._supervisor import Supervisor
from deferred._task import current_unit
from deferred.exceptions import NoCurrentContextError, TaskRejectedError
from deferred.integrations._hosts import WaitUntil, find_host
from deferred.integrations._rejection import OVERLOADED, rejection_in, retry_after
from deferred.integrations._servers import Served

__all__ = ["ASGIApp", "DeferredMiddleware", "Message", "Receive", "Scope", "Send", "deferred_from"]

_logger = logging.getLogger("deferred")

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
        wait_until: The host's own, if it has one: called with one awaitable for each request
            that has deferred something. Those of Vercel and of Cloudflare's Python Workers
            are found without it.

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

    _insists = False  # whether to answer rejections that the app has answered itself, with a 500

    def __init__(
        self,
        app: ASGIApp,
        supervisor: Supervisor | None = None,
        *,
        lifetime: Literal["app", "request"] = "app",
        wait_until: WaitUntil | None = None,
    ) -> None:
        if lifetime not in _LIFETIMES:
            message = f"lifetime must be one of {', '.join(map(repr, _LIFETIMES))}, not {lifetime!r}"
            raise ValueError(message)
        self.app = app
        self.supervisor: Supervisor = supervisor if supervisor is not None else Supervisor()
        self._given = supervisor is not None
        self._launcher = self.supervisor._launcher
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
        token = current_unit.set(exchange)
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
                if exchange._trailing and type(exchange._send) is _Kept:
                    await exchange.resolve(raised=self._insists)
                exchange.finish(scope)
            if exchange._pending:
                exchange.let_go(kind)
        finally:
            current_unit.reset(token)
            if KEY in scope:  # unless the app has cleared it
                del scope[KEY]  # the scope must not hold what holds the scope
        if self._stays:
            await self._stay(exchange, kind)

    async def _stay(self, context: DeferredContext, kind: str) -> None:
        """Wait for the work of a request before the app call returns, or have the host wait for it."""
        if self._host is None:
            await context.drained()
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


async def _http_is_over() -> Message:
    return {"type": "http.disconnect"}


async def _websocket_is_over() -> Message:
    return {"type": "websocket.disconnect", "code": 1005}


async def _too_late(message: Message) -> None:
    text = f"the app has sent {message['type']!r} after its call had returned: the request is over"
    raise RuntimeError(text)


class Exchange(DeferredContext):
    """The context of one request or websocket, which watches its two channels for the end.

    One object for both, because each costs. Lives as long as its context; the server's ends
    of the channels only as long as the app call.
    """

    __slots__ = STORED

    _receive: Receive
    _send: Send
    _trailing: bool = False  # whether trailers follow the body

    async def receive(self) -> Message:
        """Receive for the app; note when the client is gone."""
        message = await self._receive()
        if message["type"] in _GONE and not self._closed:
            self.close(decided=False)
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """Send for the app; note the status, and when the last part is out."""
        kind = message["type"]
        if kind == "http.response.body":
            if message.get("more_body", False) or self._trailing:
                return self._send(message)
            return self._send_last(message)
        if kind == "http.response.start":
            self._status = status = message.get("status")
            if "trailers" in message:
                self._trailing = message["trailers"]
            if status == _SERVER_ERROR and (error := exception()) and (rejection := rejection_in(error)):
                self._send, self._trailing = _Kept(self._send, rejection), True
            return self._send(message)
        return self._send_last(message) if self._is_last(kind, message) else self._send(message)

    async def _send_last(self, message: Message) -> None:
        await self._send(message)
        if self._closed or self._host.hooks.closed:
            self.close()
        else:
            self._closed = self._decided = True  # what close() does, in most cases
            if self._waiting is not None:
                self._host.release(self)

    def _is_last(self, kind: str, message: Message) -> bool:
        """Say whether a message that is no plain body is the last part; note what else it tells."""
        if kind == "http.response.trailers":
            return not message.get("more_trailers", False)
        if kind in _SHORTCUTS:
            return not message.get("more_body", False) and not self._trailing
        if kind == "websocket.http.response.body":
            return not message.get("more_body", False)
        if kind == "websocket.http.response.start":
            self._status = message.get("status")
        elif kind == "websocket.accept":
            self._status = 101
        elif kind == "websocket.close":
            if self._status is None:
                self._status = 403  # what a server answers when a handshake is refused
            elif not self._closed and message.get("code", 1000) not in _GOOD_CLOSES:
                self._status = 500  # what frameworks make of an exception: 1011, 4500
            return True
        return False

    def finish(self, scope: Scope) -> None:
        """End the context: the app call is over."""
        if self._status is None and scope["type"] == "http" and not self._decided:
            self._status = 500  # what every server answers for an app that sent nothing
        self.end()

    def let_go(self, kind: str) -> None:
        """Let go of the connection: the app call is over, and pending tasks hold this context."""
        self._receive = _http_is_over if kind == "http" else _websocket_is_over
        self._send = _too_late

    async def absorb(self, error: BaseException, scope: Scope) -> bool:
        """End the context with `error`; answer a rejection with 503 and say True, else leave it to the server."""
        if self._error is None and not self._decided:
            self._error = error
        rejection = rejection_in(error)
        try:
            if type(self._send) is _Kept:
                return await self.resolve(raised=rejection is not None)
            if rejection is None or self._status is not None or scope["type"] != "http":
                return False
            await self._refuse(rejection)
            return True
        finally:
            self.finish(scope)

    async def resolve(self, *, raised: bool) -> bool:
        """Send what was kept back, or 503 in its place where the rejection was raised after all."""
        kept = cast("_Kept", self._send)
        self._send, self._trailing = kept.send, False
        if raised:
            await self._refuse(kept.rejection)
        else:
            for message in kept.messages:
                if message["type"] == "http.response.start":
                    self._trailing = message.get("trailers", False)
                    await self._send(message)
                else:
                    await self.send(message)
        return raised

    async def _refuse(self, rejection: TaskRejectedError) -> None:
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(OVERLOADED)).encode()),
            (b"retry-after", retry_after(rejection).encode()),
        ]
        await self.send({"type": "http.response.start", "status": 503, "headers": headers})
        await self.send({"type": "http.response.body", "body": OVERLOADED.encode()})


class _Kept:
    """What an app answers to a rejection before it raises it to the server, as Starlette does.

    Lives as long as the app call: only its end tells whether the answer is the app's last word.
    """

    def __init__(self, send: Send, rejection: TaskRejectedError) -> None:
        self.send = send
        self.rejection = rejection
        self.messages: list[Message] = []

    async def __call__(self, message: Message) -> None:
        """Keep a message back."""
        self.messages.append(message)


make_exchange: Callable[..., Exchange] = stored(Exchange)
_GONE = frozenset({"http.disconnect", "websocket.disconnect"})
_GOOD_CLOSES = frozenset({1000, 1001})
_SERVER_ERROR = 500
_SHORTCUTS = frozenset({"http.response.pathsend", "http.response.zerocopysend"})


def _label(scope: Scope) -> str:
    return f"{scope.get('method', 'WEBSOCKET')} {scope.get('path', '')}"


class Lifespan:
    """The lifespan of an app with a drain before the app's own shutdown.

    An app that knows no lifespan (before it has received anything it raises an error of
    Python's own: an AssertionError, a KeyError) gets one that opens and drains. An app that
    fails to start is left as it is, and so is one that raises an error of its own.
    """

    def __init__(self, app: ASGIApp, supervisor: Supervisor) -> None:
        self._app = app
        self._served = Served(supervisor)
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
            if message["type"] == "lifespan.startup.complete" and running_loop() is not None:
                self._served.open()
                await self._served.ready()
                self._open = True
            await send(message)

        try:
            await self._app(scope, watched_receive, watched_send)
        except Exception as error:
            if not self._open and not self._knows_none(error):
                raise  # it failed to start, or to stop: the server's affair
            unknown = not self._received
            await self._stand_in(watched_receive, watched_send)
            if not unknown:
                raise
        else:
            if self._open or not self._received:  # it left before the shutdown, or never looked at its scope
                await self._stand_in(watched_receive, watched_send)
        finally:
            await self._close()

    def _knows_none(self, error: Exception) -> bool:
        """Say whether the app knows no lifespan: it fails at the scope, with an error of Python's own."""
        if self._received or type(error).__module__ != "builtins":
            return False
        _logger.info("the app knows no lifespan (%r): it is opened and drained all the same", error)
        return True

    async def _close(self) -> None:
        if self._open:
            self._open = False
            await self._served.close()

    async def _stand_in(self, receive: Receive, send: Send) -> None:
        """Play the part of an app that knows no lifespan, or left it early."""
        if not self._open:
            await receive()
            await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
