"""A cancellation at every point: whatever is cancelled, and whenever, a task ends once and leaves no slot."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from deferred import Execution, Limit, Outcome, Retry, Supervisor, TaskState, TaskSucceeded
from tests.faults.support import Told, ended, nothing_left
from tests.proof.clock import run

STEPS = 60
"""More turns of the loop than any of these runs takes."""
RETRY = Retry(on=ConnectionError, wait_initial=1, wait_max=1, wait_jitter=0, attempts=3)


async def plain():
    """Wait a few times."""
    for _ in range(3):
        await asyncio.sleep(0)


async def slow():
    """Wait for time to pass."""
    await asyncio.sleep(1)


async def failing():
    """Fail after a while, in a way worth another attempt."""
    await asyncio.sleep(0)
    raise ConnectionError


async def nested():
    """Wait through a group and a timeout, with a clean-up that waits."""
    try:
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            group.create_task(plain())
            await asyncio.sleep(0)
    finally:
        await asyncio.sleep(0)


async def stubborn():
    """Ignore one cancellation."""
    try:
        await asyncio.sleep(1)
    except asyncio.CancelledError:
        await asyncio.sleep(0)


async def converting():
    """Answer a cancellation with an error worth another attempt."""
    try:
        await asyncio.sleep(1)
    except asyncio.CancelledError:
        raise ConnectionError from None


async def layer(task, call_next):
    """Be a middleware that waits on both sides."""
    await asyncio.sleep(0)
    try:
        return await call_next()
    finally:
        await asyncio.sleep(0)


@asynccontextmanager
async def scope():
    """Be a scope that waits on both sides."""
    await asyncio.sleep(0)
    try:
        yield
    finally:
        await asyncio.sleep(0)


async def predicate(error):
    """Judge slowly."""
    await asyncio.sleep(0)
    return True


WORKS = [plain, slow, failing, nested, stubborn, converting]
KINDS = {
    "plain": ({}, {}),
    "retry": ({}, {"retry": RETRY}),
    "slow retry": ({}, {"retry": Retry(on=predicate, wait_initial=1, wait_max=1, attempts=2)}),
    "timeout": ({}, {"timeout": 0.5}),
    "middleware": ({}, {"middleware": [layer, layer]}),
    "scope": ({"task_scope": scope}, {}),
    "one slot": ({"max_running": 1}, {}),
    "limited name": ({"limits": {"x": Limit(running=1)}}, {"name": "x"}),
    "all": (
        {"task_scope": scope, "max_running": 1, "limits": {"x": Limit(running=1)}},
        {"retry": RETRY, "timeout": 0.5, "middleware": [layer], "name": "x"},
    ),
}


async def scenario(kind, work, how, step, pause):
    """Run three such tasks and cancel, in this way and after so many pauses; return whether there was such a step."""
    settings, options = KINDS[kind]
    told = Told()
    supervisor = Supervisor(hooks=[told], drain_timeout=30, cancel_grace=1, **settings)
    async with supervisor:
        with supervisor.context() as ctx:
            view = ctx.with_options(**options)
            handles = [view.defer(work), view.wait_until(work()) if "retry" not in options else view.defer(work)]
            handles.append(view.defer(plain))
        for _ in range(step):
            await asyncio.sleep(pause)
        reached = not handles[0].done()
        if how == "handle":
            handles[0].cancel()
        elif how == "runner" and handles[0]._runner is not None:
            handles[0]._runner.cancel()
        elif how == "twice":
            handles[0].cancel()
            await asyncio.sleep(0)
            handles[0].cancel()
        elif how == "drain":
            await supervisor.drain(0)
        elif how == "all":
            for handle in handles:
                handle.cancel()
        await ctx.drained()
        assert all(handle.done() for handle in handles)
    assert nothing_left(supervisor)
    assert ended(supervisor) == 3
    assert ctx.pending == 0
    last = [event.task for event in told.seen if is_last(event)]
    assert sorted(map(id, last)) == sorted(map(id, handles))
    if reached and how in {"handle", "twice"}:
        assert handles[0].state in {TaskState.CANCELLED, TaskState.SUCCEEDED, TaskState.FAILED}
    return reached


def is_last(event):
    """Say whether an event tells of the end of a task."""
    outcome = getattr(event, "outcome", None)
    return isinstance(outcome, Outcome) or isinstance(event, TaskSucceeded) or type(event).__name__ == "TaskAbandoned"


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("how", ["handle", "runner", "twice", "drain", "all"])
@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_at_every_step(kind, work, how):
    """A64, S10: cancelled at every single step, each task of each kind ends once, and no slot is leaked."""
    for pause in (0, 0.26):
        steps = 0
        while steps < STEPS and run(scenario(kind, work, how, steps, pause)):
            steps += 1
        assert steps


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("overflow", ["reject", "wait", "discard"])
@pytest.mark.parametrize("execution", [each for each in Execution if each is not Execution.DURABLE])
def test_a_handler_cancelled_at_every_step(execution, overflow):
    """C13, S10: a handler that is cancelled at any step, under any execution, leaves what it registered, once."""

    async def once(step):
        told = Told()
        async with Supervisor(max_running=1, max_pending=2, overflow=overflow, hooks=[told]) as supervisor:

            async def handler():
                with supervisor.context() as ctx:
                    ctx.route = execution
                    for _ in range(3):
                        await ctx.run(slow)
                        await asyncio.sleep(0)

            running = asyncio.ensure_future(handler())
            for _ in range(step):
                await asyncio.sleep(0.2)
            running.cancel()
            await asyncio.wait([running])
            await supervisor.drain()
        assert nothing_left(supervisor)
        assert ended(supervisor) == sum(is_last(event) for event in told.seen)

    for step in range(25):
        run(once(step))
