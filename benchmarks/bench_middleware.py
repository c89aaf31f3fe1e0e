"""What the middleware costs, unused and used, beside its peers in the same run."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from deferred import Supervisor, defer
from deferred.integrations.asgi import DeferredMiddleware

START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"x"}
REQUESTS = 2000
ROUNDS = 15

App = Callable[[Any, Any, Any], Awaitable[None]]
kept: set[asyncio.Task[None]] = set()


class Noop:
    """The cheapest middleware that sees every message."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def wrapped(message):
            await send(message)

        await self.app(scope, receive, wrapped)


async def work():
    pass


async def answer(scope, receive, send):
    await send(START)
    await send(BODY)


async def recipe(scope, receive, send):
    task = asyncio.get_running_loop().create_task(work())
    kept.add(task)
    task.add_done_callback(kept.discard)
    await answer(scope, receive, send)


async def deferring(scope, receive, send):
    defer(work)
    await answer(scope, receive, send)


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message):
    pass


async def microseconds(app: App) -> float:
    """Return the cost of a request, its background work included."""
    started = time.perf_counter()
    for number in range(REQUESTS):
        await app({"type": "http", "method": "GET", "path": "/"}, receive, send)
        if number % 10 == 9:
            await asyncio.sleep(0)
    for _ in range(4):
        await asyncio.sleep(0)
    return (time.perf_counter() - started) / REQUESTS * 1e6


async def compare() -> dict[str, float]:
    """Measure the apps in turns and keep the best round of each, so that noise does not decide."""
    async with Supervisor() as supervisor:
        apps = {
            "no-op": Noop(answer),
            "unused": DeferredMiddleware(answer, supervisor),
            "recipe": Noop(recipe),
            "defer": DeferredMiddleware(deferring, supervisor),
        }
        best = dict.fromkeys(apps, float("inf"))
        for _ in range(ROUNDS):
            for name, app in apps.items():
                best[name] = min(best[name], await microseconds(app))
    return best


@pytest.fixture(scope="module")
def best() -> dict[str, float]:
    best = asyncio.run(compare())
    for name, cost in best.items():
        print(f"{name:8s}{cost:6.2f} us")
    print(f"unused {best['unused'] / best['no-op']:.2f}x, defer {best['defer'] / best['recipe']:.2f}x")
    return best


def bench_unused_context(best, benchmark):
    benchmark.pedantic(lambda: best, rounds=1)
    assert best["unused"] <= 2.0 * best["no-op"]


def bench_one_deferred_task(best, benchmark):
    benchmark.pedantic(lambda: best, rounds=1)
    assert best["defer"] <= 1.25 * best["recipe"]
