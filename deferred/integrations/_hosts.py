"""Hosts that offer a ``wait_until`` of their own: one keep-alive for each request that needs it.

Rules of this file: the host is handed one awaitable for a request, however many tasks it has,
and none where it has none; no error is ever in it; what a host cannot take keeps the app call
open instead. What the hosts publish (November 2026):

- Vercel (``vercel_runtime`` 0.24): ``vercel.functions.wait_until``, of the package `vercel`, for
  the time of an HTTP invocation; without that package, or for a websocket, there is none.
- Cloudflare Python Workers (``workers-runtime-sdk`` 1.9): ``workers.wait_until``, a JavaScript
  function that takes proxies; every request has a lifespan of its own, and its answer waits for
  the shutdown of that.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from deferred._context import DeferredContext
from deferred.instrumentation.logging import logger

__all__ = ["Host", "WaitUntil", "find_host", "stay"]

_staying: set[asyncio.Task[None]] = set()  # an event loop holds none of its tasks

WaitUntil = Callable[[Awaitable[None]], object]
Message = MutableMapping[str, Any]


def find_host(given: WaitUntil | None) -> Host | None:
    """Return the host that this process runs on; None on a server of the ordinary kind.

    Args:
        given: The ``wait_until`` of a host that is not known here.
    """
    if given is not None:
        return Host(lambda: given)
    if "vercel_runtime" in sys.modules or os.environ.get("VERCEL"):
        return Host(_offered_by_vercel)
    if sys.platform == "emscripten" and importlib.util.find_spec("workers") is not None:
        return Host(_offered_by_cloudflare, lifespan_per_request=True)
    return None


def _offered_by_vercel() -> WaitUntil | None:
    try:
        functions = importlib.import_module("vercel.functions")
    except ImportError:
        return None
    return getattr(functions, "wait_until", None)


def _offered_by_cloudflare() -> WaitUntil | None:
    workers: Any = importlib.import_module("workers")
    wait_until: WaitUntil | None = getattr(workers, "wait_until", None)
    if wait_until is None:
        return None
    create_proxy: Callable[[object], Any] = importlib.import_module("pyodide.ffi").create_proxy

    def call(awaitable: Awaitable[None]) -> None:
        task = asyncio.ensure_future(awaitable)
        proxy = create_proxy(task)  # JavaScript would lose the task when this call returns
        task.add_done_callback(lambda _task: proxy.destroy())
        wait_until(proxy)

    return call


class Host:
    """A host with a ``wait_until``; lives as long as the app.

    Args:
        offer: Returns its ``wait_until`` for the request that is served; None for none.
        lifespan_per_request: Whether every request has a lifespan of its own.
    """

    def __init__(self, offer: Callable[[], WaitUntil | None], *, lifespan_per_request: bool = False) -> None:
        self._offer = offer
        self.lifespan_per_request = lifespan_per_request
        self._alive: set[asyncio.Task[None]] = set()

    async def keep_alive(self, context: DeferredContext, kind: str) -> None:
        """Have the host wait for the work of a request; stay as long as that takes where it cannot."""
        if not context.pending:
            return
        wait_until = self._offer() if kind == "http" else None
        if wait_until is None:
            await stay(context)
            return
        task = _start(context, self._alive)
        try:
            wait_until(task)
        except Exception:  # noqa: BLE001  # the host's own, whatever it is: the work is what counts
            logger.warning(
                "the host's wait_until failed: the app call stays open until the work is done", exc_info=True
            )
            await asyncio.shield(task)

    async def serve_lifespan(
        self,
        app: Callable[..., Awaitable[None]],
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Serve the lifespan of one request: the answer does not wait for its work, the app's resources do."""
        acknowledged = False

        async def receive_late() -> Message:
            nonlocal acknowledged
            message = await receive()
            if message["type"] == "lifespan.shutdown" and self._alive:
                acknowledged = True
                await send({"type": "lifespan.shutdown.complete"})
                await asyncio.wait(tuple(self._alive))
            return message

        async def send_once(message: Message) -> None:
            if not acknowledged:
                await send(message)
            elif message["type"] == "lifespan.shutdown.failed":
                logger.error("the app's shutdown failed, after it was acknowledged: %s", message.get("message", ""))

        await app(scope, receive_late, send_once)


async def stay(context: DeferredContext) -> None:
    """Wait for the work of a request; whoever cancels the wait, a timeout around the app, does not cut the work."""
    if context.pending:
        await asyncio.shield(_start(context, _staying))
    else:
        await context.drained()  # for its hooks


def _start(context: DeferredContext, alive: set[asyncio.Task[None]]) -> asyncio.Task[None]:
    task = asyncio.get_running_loop().create_task(_drained(context))
    alive.add(task)
    task.add_done_callback(alive.discard)
    return task


async def _drained(context: DeferredContext) -> None:
    """Wait for the work; its errors are told to the hooks."""
    await context.drained()
