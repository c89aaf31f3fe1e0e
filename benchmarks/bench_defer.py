"""One deferred function costs little more than the recipe of asyncio's documentation."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import Any

import pytest

from benchmarks.apps import NoOp, answer_and_create_task, answer_and_defer, background, drive
from benchmarks.measure import fastest, record
from deferred import Supervisor
from deferred.integrations.asgi import DeferredMiddleware

REQUESTS = 500
EAGER = sys.version_info >= (3, 12)  # tasks can run their first step at once, and often their only one


@pytest.mark.parametrize("turn", [1, 10, 0])
def bench_one_deferred_function(
    benchmark: Any, loop: str, runner: asyncio.Runner, supervisor: Supervisor, turn: int
) -> None:
    tasks = supervisor._launcher.tasks

    def run(app: Any, pending: Any) -> None:
        runner.run(drive(app, REQUESTS, lambda: pending, turn=turn))

    best = fastest(
        benchmark,
        {
            "deferred": partial(run, DeferredMiddleware(answer_and_defer, supervisor), tasks),
            "create_task recipe": partial(run, NoOp(answer_and_create_task), background),
        },
        rounds=150,
        per=REQUESTS,
    )
    assert not tasks
    # The promise is for one request in each turn of the loop, as in a server that is not overloaded.
    # The others show that nothing piles up: the loop's own part is smaller there, for both.
    promise = 1.25 if EAGER and loop == "asyncio" else 1.6
    rhythm = f"{turn} in a turn" if turn else f"{REQUESTS} in a turn"
    record(benchmark, f"defer, {rhythm}", loop, best, limit=promise if turn == 1 else None)
