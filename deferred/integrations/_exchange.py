"""One ASGI request or websocket, watched for its end.

Rules of this file: messages go through untouched, object by object; no coroutine is put around
one that ends nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from sys import exception
from typing import Any, TypeAlias, cast

from deferred._context import DeferredContext
from deferred._stores import STORED, stored
from deferred.exceptions import TaskRejectedError
from deferred.integrations._rejection import OVERLOADED, TRY_AGAIN_LATER, rejection_in, retry_after

__all__ = ["ASGIApp", "Exchange", "Kept", "Message", "Receive", "Scope", "Send", "make_exchange"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


async def _http_is_over() -> Message:
    return {"type": "http.disconnect"}


async def _websocket_is_over() -> Message:
    return {"type": "websocket.disconnect", "code": 1005}


async def _drop(_message: Message) -> None:
    pass  # the page that another answer was sent for


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
    rejection: TaskRejectedError | None = None  # which the framework is about to answer with its page for errors

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
            if ("more_body" in message and message["more_body"]) or self._trailing:  # noqa: RUF019  # half as dear as `get`
                return self._send(message)
            return self._send_last(message)
        if kind == "http.response.start":
            self._status = status = message["status"] if "status" in message else None  # noqa: SIM401  # as above
            if "trailers" in message:
                self._trailing = message["trailers"]
            if status == _SERVER_ERROR:
                if self.rejection is not None:
                    return self._overrule(self.rejection)
                if (error := exception()) and (rejection := rejection_in(error)):
                    self._send, self._trailing = Kept(self._send, rejection), True
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
            self._status = _ACCEPTED
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
        """Let go of the connection and of its scope: the app call is over, and pending tasks hold this context."""
        self._receive = _http_is_over if kind == "http" else _websocket_is_over
        self._send = _too_late
        if self._describe is not None:  # all that is kept of the scope is the label: memory costs more than its text
            self._subject = self._describe(self._subject)
            self._describe = None

    async def absorb(self, error: BaseException, scope: Scope) -> bool:
        """End the context with `error`; answer a rejection and say True, else leave it to the server."""
        if self._error is None and not self._decided:
            self._error = error
        rejection = rejection_in(error)
        try:
            if type(self._send) is Kept:
                return await self.resolve(raised=rejection is not None)
            if rejection is None:
                return False
            if scope["type"] == "websocket":
                return await self._refuse_socket(rejection, scope)
            if self._status is not None:
                return False
            await self._refuse(rejection)
            return True
        finally:
            self.finish(scope)

    async def resolve(self, *, raised: bool) -> bool:
        """Send what was kept back, or 503 in its place where the rejection was raised after all."""
        kept = cast("Kept", self._send)
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

    async def _overrule(self, rejection: TaskRejectedError) -> None:
        """Send 503 in place of the page that has begun, and drop the rest of that."""
        self.rejection, self._trailing = None, False
        await self._refuse(rejection)
        self._send = _drop

    async def _refuse_socket(self, rejection: TaskRejectedError, scope: Scope) -> bool:
        """Refuse a handshake, with 503 where the server can, or close what was accepted; say whether there was any."""
        if self._closed or self._status not in {None, _ACCEPTED}:
            return False
        if self._status is None and "websocket.http.response" in (scope.get("extensions") or ()):
            await self._refuse(rejection, "websocket.http")
        else:
            await self.send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": OVERLOADED})
        return True

    async def _refuse(self, rejection: TaskRejectedError, kind: str = "http") -> None:
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(OVERLOADED)).encode()),
            (b"retry-after", retry_after(rejection).encode()),
        ]
        await self.send({"type": f"{kind}.response.start", "status": 503, "headers": headers})
        await self.send({"type": f"{kind}.response.body", "body": OVERLOADED.encode()})


class Kept:
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
_ACCEPTED = 101
_SHORTCUTS = frozenset({"http.response.pathsend", "http.response.zerocopysend"})
