"""What people use today, side by side: the same Starlette response, the same work after it.

No ratio is asserted here: these do not do the same. BackgroundTask runs inside the app call,
one after the other; aiojobs and asgi-background start tasks and swallow or log what fails;
a bare create_task does not even keep its task alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import aiojobs
from asgi_background import BackgroundTaskMiddleware, BackgroundTasks
from starlette.background import BackgroundTask
from starlette.responses import Response

from benchmarks.apps import App, Receive, Scope, Send, background, drive, work
from benchmarks.measure import fastest, record
from deferred import Supervisor, defer
from deferred.integrations.asgi import DeferredMiddleware

REQUESTS = 300


async def with_defer(scope: Scope, receive: Receive, send: Send) -> None:
    defer(work)
    await Response(b"ok")(scope, receive, send)


async def with_background_task(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(b"ok", background=BackgroundTask(work))(scope, receive, send)


async def with_create_task(scope: Scope, receive: Receive, send: Send) -> None:
    asyncio.create_task(work())  # noqa: RUF006  # bare: that is what many write
    await Response(b"ok")(scope, receive, send)


async def with_the_recipe(scope: Scope, receive: Receive, send: Send) -> None:
    task = asyncio.create_task(work())
    background.add(task)
    task.add_done_callback(background.discard)
    await Response(b"ok")(scope, receive, send)


async def with_asgi_background(scope: Scope, receive: Receive, send: Send) -> None:
    await BackgroundTasks(scope).add_task(work)
    await Response(b"ok")(scope, receive, send)


def with_aiojobs(scheduler: aiojobs.Scheduler) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await scheduler.spawn(work())
        await Response(b"ok")(scope, receive, send)

    return app


class Lifespan:
    """The server's side of a lifespan."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._messages: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._sent: asyncio.Queue[Any] = asyncio.Queue()

    async def start(self) -> None:
        scope = {"type": "lifespan", "state": {}}
        self._task = asyncio.create_task(self._app(scope, self._messages.get, self._sent.put))
        await self._say("lifespan.startup")

    async def stop(self) -> None:
        await self._say("lifespan.shutdown")
        await self._task

    async def _say(self, what: str) -> None:
        await self._messages.put({"type": what})
        assert (await self._sent.get())["type"] == f"{what}.complete"


def bench_beside_its_peers(benchmark: Any, loop: str, runner: asyncio.Runner, supervisor: Supervisor) -> None:
    async def make_scheduler() -> aiojobs.Scheduler:
        return aiojobs.Scheduler(limit=None, pending_limit=0)

    async def make_lifespan(app: Any) -> Lifespan:
        return Lifespan(app)

    scheduler = runner.run(make_scheduler())
    grouped = BackgroundTaskMiddleware(with_asgi_background)
    lifespan = runner.run(make_lifespan(grouped))
    runner.run(lifespan.start())

    def nothing() -> bool:
        return False

    def run(app: App, pending: Callable[[], object]) -> None:
        runner.run(drive(app, REQUESTS, pending))

    tasks = supervisor._launcher.tasks
    best = fastest(
        benchmark,
        {
            "deferred": partial(run, DeferredMiddleware(with_defer, supervisor), lambda: tasks),
            "create_task, bare": partial(run, with_create_task, nothing),
            "create_task recipe": partial(run, with_the_recipe, lambda: background),
            "Starlette BackgroundTask": partial(run, with_background_task, nothing),
            "asgi-background": partial(run, grouped, lambda: grouped._tg._tasks),
            "aiojobs": partial(run, with_aiojobs(scheduler), lambda: len(scheduler)),
        },
        rounds=100,
        per=REQUESTS,
    )
    record(benchmark, "one job per request, beside", loop, best)
    runner.run(lifespan.stop())
    runner.run(scheduler.close())
