"""Many of everything: ten thousand failures beside a live app, a hundred thousand tasks without a trace."""

import asyncio
import gc
import itertools
import logging
import os
import subprocess
import sys
import time
import tracemalloc
import weakref
from pathlib import Path

import pytest
from blockbuster import BlockingError

from deferred import NonRetryableError, Retry, Supervisor, TaskState, defer, wait_until
from deferred.integrations.asgi import DeferredMiddleware
from tests.faults.support import BareError, BoomError, Told, ended, idle, nothing_left, until
from tests.integrations.asgi_client import Client
from tests.proof.conftest import LONG

ROOT = Path(__file__).parents[2]
RETRY = Retry(on=ConnectionError, wait_initial=0, wait_max=0, attempts=2)


@pytest.fixture(scope="session")
def long() -> bool:
    """Whether the long round was asked for."""
    return LONG


async def boom():
    """Fail at once."""
    raise BoomError("boom")


async def boom_late():
    """Fail after a turn."""
    await asyncio.sleep(0)
    raise BoomError("boom")


async def leaves():
    """Leave as no task may."""
    raise SystemExit(3)


async def bare():
    """Raise what is no exception."""
    raise BareError


async def final():
    """Give up for good."""
    raise NonRetryableError


async def flaky():
    """Fail in a way worth another attempt."""
    raise ConnectionError


async def cancels_itself():
    """End oneself."""
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


async def group():
    """Fail twice at once."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(boom())
        tasks.create_task(boom())


FAILURES = [boom, boom_late, leaves, bare, final, flaky, group]


@pytest.mark.usefixtures("quiet")
async def test_ten_thousand_failures_beside_a_live_app(long):
    """S4: ten thousand failures of all kinds beside an app that keeps answering, each told once; nothing is left."""
    told, kinds = Told(), itertools.cycle(FAILURES)
    total = 100_000 if long else 10_000

    async def app(scope, receive, send):
        for _ in range(20):
            defer(next(kinds))
        wait_until(boom())
        defer(cancels_itself)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    loose = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: loose.append(context))
    async with Supervisor(on_error=told, retry=RETRY, max_pending=1000) as supervisor:
        client = Client(DeferredMiddleware(app, supervisor))
        for number in range(total // 20):
            exchange = await client.get(f"/{number}")
            assert (exchange.status, exchange.body, exchange.error) == (200, f"/{number}".encode(), None)
        await idle(supervisor)
    stats = supervisor.stats()
    assert stats.failed == len(told.errors) == total + total // 20
    assert stats.cancelled == total // 20
    assert not loose
    assert nothing_left(supervisor)


async def fine():
    """Succeed."""


async def waits():
    """Succeed after a turn."""
    await asyncio.sleep(0)


async def round_of_tasks(supervisor, count):
    """Run so many tasks of every kind, a hundred in a context."""
    for _ in range(count // 100):
        with supervisor.context() as ctx:
            view = ctx.with_options(timeout=50, retry=RETRY, name="view")
            for _ in range(24):
                ctx.defer(fine)
                ctx.wait_until(waits())
                view.defer(waits)
                ctx.defer(waits).cancel()
            ctx.defer(boom)
            view.defer(boom_late)
            ctx.defer(cancels_itself)
            ctx.wait_until(boom())
        await ctx.drained()


def resident():
    """Return the bytes of memory that the process holds."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def leave_no_trace(total):
    """Run so many tasks; compare what is left of them with what was left of the first few."""
    logging.getLogger("deferred").disabled = True
    async with Supervisor() as supervisor:
        await round_of_tasks(supervisor, 2000)  # what is made once is made
        gc.collect()
        tracemalloc.start()
        await round_of_tasks(supervisor, 2000)
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        objects, memory = len(gc.get_objects()), resident()
        await round_of_tasks(supervisor, total - 4000)
        gc.collect()
        assert traced < 100_000, traced
        assert len(gc.get_objects()) - objects < 500, len(gc.get_objects()) - objects
        assert resident() - memory < 5_000_000, resident() - memory
        assert nothing_left(supervisor)
        assert ended(supervisor) == total


@pytest.mark.timeout(300)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="nothing tells what memory the process holds")
def test_no_trace_is_left(long):
    """A10, A46: a hundred thousand tasks of every kind leave the registry empty and the memory as it was.

    In a process of their own: in this one other tests' threads take memory, and give it back.
    """
    total = 1_000_000 if long else 100_000
    call = f"import asyncio; from {__name__} import leave_no_trace; asyncio.run(leave_no_trace({total}))"
    run = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.usefixtures("quiet")
async def test_no_cycles():
    """A10: contexts, tasks and their results go without the collector; only a failure, with its frames, needs it."""
    alive = weakref.WeakSet()

    class Result:
        pass

    async def gives():
        result = Result()
        alive.add(result)
        await asyncio.sleep(0)
        return result

    async with Supervisor() as supervisor:
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                with supervisor.context() as ctx:
                    alive.add(ctx)
                    alive.add(ctx.defer(gives))
                    alive.add(ctx.wait_until(gives()))
                    alive.add(ctx.with_options(timeout=50, retry=RETRY).defer(gives))
                    alive.add(cancelled := ctx.defer(gives))
                    cancelled.cancel()
                await idle(supervisor)
            del ctx, cancelled
            await asyncio.sleep(0)
            left = sorted(type(thing).__name__ for thing in alive)
        finally:
            gc.enable()
    assert left == []


async def test_the_loop_is_never_blocked(no_blocking_calls):
    """A49: the watch for blocking calls is at work in the code of the core, and finds none in a round of it."""
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            handle = ctx.defer(boom)
        await until(handle.done)
        assert handle.state is TaskState.FAILED
        with supervisor.context() as ctx:
            blocking = ctx.defer(_blocks)
        await until(blocking.done)
    assert type(blocking.error) is BlockingError


async def _blocks():
    time.sleep(0.001)
