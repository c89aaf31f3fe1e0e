"""The server's side of an ASGI lifespan."""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop as running_loop
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Self

from deferred.exceptions import EventLoopError

__all__ = ["App", "Lifespan"]

Message = MutableMapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


class Lifespan:
    """Starts and stops an ASGI app, in an asyncio task of its own. Lives as long as the app is served.

    Attributes:
        state: What the app has put into its lifespan state; requests get a copy.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._answers: asyncio.Queue[Message | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._received = False
        self.state: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        """Start the app; one that knows no lifespan is served all the same.

        Raises:
            EventLoopError: There is no asyncio event loop.
            RuntimeError: The app says that its start has failed.
            Exception: What the app has raised.
        """
        if running_loop() is None:
            message = (
                "the client serves its app on asyncio, and no asyncio event loop runs here: under anyio's plugin, "
                "run the test on the asyncio backend; on trio, where nothing can be deferred, use a client of your own"
            )
            raise EventLoopError(message)
        self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            await self._ask("startup")
        except BaseException:
            self._task.cancel()  # it may wait for more, and nobody says more
            await asyncio.wait([self._task])
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the app.

        Raises:
            RuntimeError: The app says that its shutdown has failed.
            Exception: What the app has raised.
        """
        if self._task is not None and not self._task.done():
            await self._ask("shutdown")
            await self._task

    async def _ask(self, what: str) -> None:
        self._incoming.put_nowait({"type": f"lifespan.{what}"})
        answer = await self._answers.get()
        if answer is None and self._received and self._task is not None:
            await self._task  # it has left without an answer: raise what it raised
        if answer is not None and answer["type"] == f"lifespan.{what}.failed":
            message = f"the {what} of the app has failed: {answer.get('message') or 'it gives no reason'}"
            raise RuntimeError(message)

    async def _receive(self) -> Message:
        self._received = True
        return await self._incoming.get()

    async def _send(self, message: Message) -> None:
        self._answers.put_nowait(message)

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._receive, self._send)
        except Exception:
            if self._received:
                raise
        finally:
            self._answers.put_nowait(None)
