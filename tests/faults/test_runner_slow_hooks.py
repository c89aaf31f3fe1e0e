"""Asynchronous hooks that are slower than what they are told of: bounded, and none lost in silence."""

import asyncio
import gc
import logging
import weakref

import pytest

from deferred import ContextSettled, Supervisor, TaskSucceeded, defer
from deferred._hooks import MAX_RUNNING, MAX_WAITING

pytestmark = pytest.mark.looptime


class BoomError(Exception):
    """What the tasks raise."""


async def boom():
    """Fail."""
    raise BoomError


def defer_failures(supervisor, count):
    """Defer this many failures in one unit of work."""
    with supervisor.context() as ctx:
        for _ in range(count):
            ctx.defer(boom)


async def test_only_so_many_run_at_a_time_and_all_are_told():
    """A25: a burst of failures is told to a slow hook in turns, each failure once, before the drain is over."""
    running, most, told = 0, 0, []

    async def slow(event):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.5)
        running -= 1
        told.append(event.task.id)

    async with Supervisor(on_error=slow) as supervisor:
        defer_failures(supervisor, 3 * MAX_RUNNING)
        await supervisor.drain()
    assert most == MAX_RUNNING
    assert len(told) == len(set(told)) == 3 * MAX_RUNNING


async def test_beyond_the_line_events_are_lost_aloud(caplog):
    """A25, A48: what a hook cannot catch up with is bounded; the loss is logged once, with its count at the end."""
    told = 0
    gate = asyncio.Event()

    async def stuck(event):
        nonlocal told
        told += 1
        await gate.wait()

    flood = MAX_RUNNING + MAX_WAITING + 7
    async with Supervisor(on_error=stuck, max_per_context=flood, max_pending=flood) as supervisor:
        defer_failures(supervisor, flood)
        while supervisor.stats().failed < flood:
            await asyncio.sleep(0)
        assert told == MAX_RUNNING
        gate.set()
        await supervisor.drain()
    assert told == MAX_RUNNING + MAX_WAITING
    lost = [record.message for record in caplog.records if "lost" in record.message]
    assert len(lost) == 2
    assert "it is too slow" in lost[0]
    assert lost[1] == "slow hooks have lost 7 event(s) in all"


async def test_those_whose_turn_never_comes_are_counted(caplog):
    """A25: a drain does not wait for ever for hooks in line; how many were not told is logged."""

    async def hangs(event):
        await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    async with Supervisor(on_error=hangs, hook_timeout=3, cancel_grace=2) as supervisor:
        defer_failures(supervisor, 3 * MAX_RUNNING)
    assert loop.time() == pytest.approx(5)
    late = MAX_RUNNING
    assert f"the end came before {late} event(s) were told to slow hooks" in caplog.text


async def test_whoever_drains_waits_for_no_later_event():
    """A25: a unit of work that is drained waits for hooks told before; it neither awaits nor ends later ones."""
    loop, told, waits = asyncio.get_running_loop(), 0, []

    async def hook(event):
        nonlocal told
        await asyncio.sleep(0.5)
        told += 1

    hook.events = (TaskSucceeded,)
    supervisor = Supervisor(hooks=[hook])

    @supervisor.wrap
    async def handler():
        defer(asyncio.sleep, 0.1)

    async def request():
        began = loop.time()
        await handler()
        waits.append(loop.time() - began)

    async with supervisor, asyncio.TaskGroup() as requests:
        for _ in range(100):
            requests.create_task(request())
            await asyncio.sleep(0.1)  # there is always a hook at work
    assert max(waits) < 1
    assert told == 100


async def test_a_hook_that_drains_does_not_wait_for_itself():
    """A25, S11: a hook may call what drains: its wait is for the work, and for no hook."""
    done = []

    async def hook(event):
        await notify()
        await supervisor.drain()
        await supervisor.close()
        done.append(asyncio.get_running_loop().time())

    supervisor = Supervisor(on_error=[hook, hook])

    @supervisor.wrap
    async def notify():
        defer(asyncio.sleep, 1)

    async with supervisor:
        defer_failures(supervisor, 1)
    assert done == [pytest.approx(1)] * 2


async def test_hooks_told_of_the_last_events_are_not_cut():
    """A25, S11: a supervisor that closes waits for hooks of events that came as it waited for the others."""
    told = []

    async def slow(event):
        await asyncio.sleep(1)
        if len(told) < 3:
            with supervisor.context():
                pass
        told.append(event)

    slow.events = (ContextSettled,)
    async with Supervisor(hooks=[slow]) as supervisor:
        with supervisor.context():
            pass
    assert len(told) == 4


async def test_a_hook_that_is_cancelled_before_it_begins_is_told_of(caplog):
    """A36, A44: whoever ends the loop as a hook is about to begin leaves no coroutine, and a line in the log."""

    async def hook(event):
        raise AssertionError

    async with Supervisor(hooks=[hook]) as supervisor:
        before = asyncio.all_tasks()
        with supervisor.context():
            for task in asyncio.all_tasks() - before:
                task.cancel()
        supervisor.remove_hook(hook)
    assert "was told of a ContextOpened" in caplog.text


async def test_whoever_joins_a_drain_waits_for_the_hooks_as_well():
    """S11, A25: a supervisor that closes while somebody drains it ends when its hooks have been told of it all."""
    told = []

    async def slow(event):
        await asyncio.sleep(1)
        told.append(event)

    async def late():
        await asyncio.sleep(1)
        raise BoomError

    async with Supervisor(on_error=slow) as supervisor:
        with supervisor.context() as ctx:
            ctx.defer(late)
        drain = asyncio.ensure_future(supervisor.drain())
        await asyncio.sleep(0)
    assert len(told) == 1
    await drain


def test_hooks_of_a_loop_that_is_gone_take_no_place():
    """A44: what a closed loop left of slow hooks is forgotten when the next one takes over."""
    told = []

    async def hook(event):
        told.append(event)

    async def hangs(event):
        await asyncio.Event().wait()

    supervisor = Supervisor(on_error=hangs, max_per_context=5000)

    async def first():
        defer_failures(supervisor, 2 * MAX_RUNNING)
        while supervisor.stats().failed < 2 * MAX_RUNNING:
            await asyncio.sleep(0)

    async def second():
        supervisor.add_hook(hook)
        async with supervisor:
            with supervisor.context() as ctx:
                ctx.defer(asyncio.sleep, 0)
        assert told

    asyncio.run(first())
    asyncio.run(second())


class Held:
    """Something whose end can be seen."""


async def test_a_failed_task_is_freed_without_the_collector(monkeypatch):
    """A10: nothing of ours makes a cycle with the error of a task: what it held is free when nobody asks."""
    monkeypatch.setattr(logging.getLogger("deferred"), "disabled", True)  # pytest keeps what is logged
    gone = []

    async def fails(held):
        gone.append(weakref.ref(held))
        await asyncio.sleep(0)
        raise BoomError

    gc.collect()
    gc.disable()
    try:
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(fails, Held())
            del ctx
            await supervisor.drain()
            assert supervisor.stats().failed == 1
            await asyncio.sleep(0)  # before Python 3.12 the loop holds the task until its callbacks are through
            assert [reference() for reference in gone] == [None]
    finally:
        gc.enable()
