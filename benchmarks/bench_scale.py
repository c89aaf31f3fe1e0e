"""A million tasks cost a million times one: time and memory for each stay the same."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from typing import Any

import pytest

from benchmarks import apps, measure
from deferred import Supervisor

FLAT = 1.2
BYTES = 2048
# From a hundred on. Before that the fixed cost shows: one context, one turn or two of the loop.
SIZES = {1: 500, 10: 500, 100: 300, 1000: 80, 10_000: 20, 100_000: 5, 1_000_000: 2}
FIRST_FLAT = 100
HOPELESS = 3.0


async def defer_many(supervisor: Supervisor, count: int) -> float:
    """Return the seconds from the first registration to the last end."""
    started = time.perf_counter()
    with supervisor.context() as ctx:
        for _ in range(count):
            ctx.defer(apps.work)
    while supervisor._launcher.tasks:
        await asyncio.sleep(0)
    return time.perf_counter() - started


async def create_many(count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        task = asyncio.create_task(apps.work())
        apps.background.add(task)
        task.add_done_callback(apps.background.discard)
    while apps.background:
        await asyncio.sleep(0)
    return time.perf_counter() - started


@pytest.mark.parametrize("collector", ["off", "on"])
def bench_cost_of_a_task_by_their_number(
    benchmark: Any, loop: str, runner: asyncio.Runner, supervisor: Supervisor, collector: str
) -> None:
    """What a million live objects cost grows with them: the processor's caches, and the collector that walks them.

    So does a bare asyncio task's: ours must not grow by more, where both grow by more than is promised.
    """
    if benchmark.disabled:
        pytest.skip("benchmarks are run by `make bench`")
    ours = dict.fromkeys(SIZES, float("inf"))
    theirs = dict.fromkeys(SIZES, float("inf"))

    def sweep() -> None:
        for count, rounds in SIZES.items():
            if ours.get(count // 10, 0.0) > HOPELESS * ours[FIRST_FLAT] < float("inf"):
                break  # the next size would take hours
            for _ in range(rounds):
                ours[count] = min(ours[count], runner.run(defer_many(supervisor, count)) / count * 1e6)
                theirs[count] = min(theirs[count], runner.run(create_many(count)) / count * 1e6)
            gc.collect()

    with measure.quiet_collector():
        if collector == "off":
            gc.disable()
        try:
            benchmark.pedantic(sweep, rounds=1)
        finally:
            gc.enable()
    measured = [count for count in SIZES if ours[count] < float("inf")]
    for count in measured:
        name = f"1 of {count:>9,}, collector {collector}"
        measure.rows.append(measure.Row(name, loop, ours[count], "create_task recipe", theirs[count], None))
    flat = {count: ours[count] for count in measured if count >= FIRST_FLAT}
    growth = max(flat.values()) / min(flat.values())
    bare = [theirs[count] for count in measured if count >= FIRST_FLAT]
    bare_growth = max(bare) / min(bare)
    allowed = max(FLAT, bare_growth)
    measure.notes.append(
        f"a task among up to a million, {loop}, collector {collector}: up to {growth:.2f} times the least, "
        f"create_task recipe {bare_growth:.2f}; aim {FLAT}{'' if growth <= FLAT else ', MISSED'}"
    )
    benchmark.extra_info.update({"us_by_count": ours, "growth": round(growth, 3), "allowed": round(allowed, 3)})
    assert growth <= allowed, f"a task costs up to {growth:.2f} times as much among many: {flat}"


def bench_memory_of_a_waiting_task(benchmark: Any, runner: asyncio.Runner, supervisor: Supervisor, loop: str) -> None:
    """Measured by tracemalloc, which sees what Python allocates for it: handle, context variables, place in sets."""
    if benchmark.disabled:
        pytest.skip("benchmarks are run by `make bench`")
    count = 20_000
    used = 0.0

    async def wait() -> None:
        nonlocal used
        with supervisor.context() as ctx:
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            for number in range(count):
                ctx.defer(apps.work_on, number, note="x")
            used = (tracemalloc.get_traced_memory()[0] - before) / count
            tracemalloc.stop()
        while supervisor._launcher.tasks:
            await asyncio.sleep(0)

    benchmark.pedantic(lambda: runner.run(wait()), rounds=1)
    benchmark.extra_info["bytes_per_waiting_task"] = used
    measure.notes.append(f"a waiting task with two arguments takes {used:.0f} bytes ({loop}); at most {BYTES}")
    assert used <= BYTES
