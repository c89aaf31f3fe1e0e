"""The ASGI lifespan, with a drain before the app's own shutdown."""

from __future__ import annotations

import logging
from asyncio import _get_running_loop as running_loop

from deferred._supervisor import Supervisor
from deferred.exceptions import NoCurrentContextError
from deferred.integrations._exchange import ASGIApp, Message, Receive, Scope, Send
from deferred.integrations._servers import Served

__all__ = ["Lifespan"]

_logger = logging.getLogger("deferred")


class Lifespan:
    """The lifespan of an app with a drain before the app's own shutdown.

    An app that knows no lifespan (before it has received anything it raises an error of
    Python's own: an AssertionError, a KeyError; or defers, as in a request) gets one that opens and drains. An app that
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
        """Say whether the app knows no lifespan: it fails at the scope, by an error of Python's own or as it defers."""
        own = type(error).__module__ == "builtins" or isinstance(error, NoCurrentContextError)
        if self._received or not own:
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
