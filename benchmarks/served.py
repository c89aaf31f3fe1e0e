"""One of the apps that are loaded over a socket: ``python -m benchmarks.served deferred``.

It prints the port that it has taken, and serves by uvicorn until a signal.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys

import uvicorn
from starlette.background import BackgroundTask
from starlette.responses import Response

from benchmarks.apps import App, Receive, Scope, Send
from deferred import Supervisor, defer
from deferred.integrations.asgi import DeferredMiddleware

SECONDS = 0.05
background: set[asyncio.Task[None]] = set()


async def work() -> None:
    await asyncio.sleep(SECONDS)


async def with_defer(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        defer(work)
        await Response(b"ok")(scope, receive, send)


async def with_create_task(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        task = asyncio.create_task(work())
        background.add(task)
        task.add_done_callback(background.discard)
        await Response(b"ok")(scope, receive, send)


async def with_background_task(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await Response(b"ok", background=BackgroundTask(work))(scope, receive, send)


def deferred() -> App:
    # As many tasks at a time as there are with create_task: 20,000 requests a second have 1,000.
    return DeferredMiddleware(with_defer, Supervisor(max_running=10**6, max_pending=10**6))


APPS = {
    "deferred": deferred,
    "create_task": lambda: with_create_task,
    "BackgroundTask": lambda: with_background_task,
}


def main(name: str, loop: str, cpu: str) -> None:
    if cpu:
        os.sched_setaffinity(0, {int(cpu)})
    # With its protocol said, as asyncio makes its own listeners: else it leaves Nagle's algorithm on.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(APPS[name](), loop=loop, access_log=False, log_level="warning")  # type: ignore[arg-type]  # one of its names
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
