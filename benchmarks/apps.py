"""The apps that are measured, the peers they stand beside, and the driver that calls them.

Everything runs in one process and one asyncio task: no socket, no server, no client, so that
what is left is the cost of the middleware.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from deferred import defer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
BODY = {"type": "http.response.body", "body": b"ok"}
REQUEST = {"type": "http.request", "body": b"", "more_body": False}


async def receive() -> Any:
    return REQUEST


async def send(message: Any) -> None:
    pass


async def work() -> None:
    """Nothing: what is measured is the way to it."""


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve the trivial app."""
    await send(START)
    await send(BODY)


class NoOp:
    """The least that a pure ASGI middleware which looks at the response can be."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def watched(message: Any) -> None:
            await send(message)

        await self.app(scope, receive, watched)


background: set[asyncio.Task[None]] = set()


async def answer_and_create_task(scope: Scope, receive: Receive, send: Send) -> None:
    """Do what asyncio's documentation says of tasks that nobody awaits."""
    task = asyncio.create_task(work())
    background.add(task)
    task.add_done_callback(background.discard)
    await answer(scope, receive, send)


async def answer_and_defer(scope: Scope, receive: Receive, send: Send) -> None:
    """Do the same with this package."""
    defer(work)
    await answer(scope, receive, send)


async def drive(app: App, requests: int, pending: Callable[[], object], *, turn: int = 1) -> None:
    """Send requests, one after the other, and return when no work is pending.

    Args:
        app: The app.
        requests: How many.
        pending: Says whether work is left.
        turn: After how many requests the event loop turns; 0 for not before the end.
    """
    for number in range(1, requests + 1):
        await app({"type": "http", "method": "POST", "path": "/register", "headers": []}, receive, send)
        if turn and number % turn == 0:
            await asyncio.sleep(0)
    while pending():
        await asyncio.sleep(0)


async def work_on(number: int, *, note: str) -> None:
    """Nothing, with arguments."""
