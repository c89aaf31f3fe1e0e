"""A context that is not used costs at most as much again as a middleware that does nothing."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from benchmarks.apps import NoOp, answer, drive
from benchmarks.measure import fastest, record
from deferred import Supervisor
from deferred.integrations.asgi import DeferredMiddleware

REQUESTS = 1000
LIMIT = 2.0


def bench_an_unused_context(benchmark: Any, loop: str, runner: asyncio.Runner, supervisor: Supervisor) -> None:
    def run(app: Any) -> None:
        runner.run(drive(app, REQUESTS, lambda: False, turn=0))

    best = fastest(
        benchmark,
        {
            "deferred": partial(run, DeferredMiddleware(answer, supervisor)),
            "no-op middleware": partial(run, NoOp(answer)),
            "no middleware": partial(run, answer),
        },
        rounds=150,
        per=REQUESTS,
    )
    record(benchmark, "unused context", loop, best, limit=LIMIT)
