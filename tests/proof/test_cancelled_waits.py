"""A cancellation at every await point: whoever waits for the supervisor may be cancelled anywhere in that."""

import asyncio
import contextlib
import types

import pytest

from deferred import (
    DrainFinished,
    DrainStarted,
    Execution,
    Retry,
    Supervisor,
    TaskRejectedError,
    TaskState,
    defer,
)
from deferred.engines.memory import MemoryEngine
from tests.faults.support import BoomError, Told, ended, nothing_left
from tests.proof.clock import run
from tests.proof.test_cancellation import plain, slow

RETRY = Retry(on=BoomError, wait_initial=1, wait_max=1, wait_jitter=0, attempts=3)


@types.coroutine
def cancelled_at(point, coroutine, reached):
    """Run it, cancelled from outside as it waits for the time of this number; note which points it has reached."""
    sent, thrown = None, None
    while True:
        try:
            waited = coroutine.send(sent) if thrown is None else coroutine.throw(thrown)
        except StopIteration as end:
            return end.value
        if len(reached) == point:
            asyncio.current_task().cancel()
        reached.append(waited)
        sent = thrown = None
        try:
            sent = yield waited
        except BaseException as error:  # noqa: BLE001  # the coroutine gets it
            thrown = error


def sweep(scenario):
    """Run `scenario(cancelled)` once for every await point of what it hands to `cancelled`; return how many there are.

    `await cancelled(coroutine)` returns what the coroutine does, or the error that it raises.
    """
    point = 0
    while True:
        reached = []

        async def cancelled(coroutine, point=point, reached=reached):
            async def alone():
                return await cancelled_at(point, coroutine, reached)

            (outcome,) = await asyncio.gather(alone(), return_exceptions=True)
            if point < len(reached):
                assert asyncio.current_task().cancelling() == 0
            return outcome

        run(scenario(cancelled))
        if point >= len(reached):
            return point
        point += 1


async def failing():
    """Fail in a way worth another attempt."""
    await asyncio.sleep(0)
    raise BoomError


async def endless():
    """Wait for what never comes."""
    await asyncio.get_running_loop().create_future()


async def stubborn():
    """Ignore every cancellation."""
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(100)


async def nested():
    """Register more at every step."""
    for _ in range(2):
        await asyncio.sleep(0)
        defer(plain)


async def slow_hook(event):
    """Take time to hear."""
    await asyncio.sleep(0.5)


WORKS = [plain, slow, failing, endless, stubborn, nested]


def busy(supervisor):
    """Begin one of each kind of work."""
    with supervisor.context("busy") as ctx:
        handles = [ctx.defer(work) for work in WORKS]
        handles.append(ctx.with_options(retry=RETRY).defer(failing))
        handles.append(ctx.wait_until(slow()))
    return ctx, handles


def agree(supervisor, told):
    """Say whether the accounts agree with what was told, and nothing is left anywhere."""
    launcher = supervisor._launcher
    assert nothing_left(supervisor)
    assert ended(supervisor) == sum(type(event).__name__ in ENDINGS for event in told.seen)
    assert launcher.drains == []
    assert launcher.drainers == set()
    assert (launcher.deadline, launcher.watched, launcher.leading) == (None, 0, None)
    assert len(told.of(DrainStarted)) == len(told.of(DrainFinished))


ENDINGS = {"TaskSucceeded", "TaskFailed", "TaskCancelled", "TaskDiscarded", "TaskAbandoned"}


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("seconds", [0, 0.5, 3])
def test_a_drain(seconds):
    """S11, A64: a drain that is cancelled anywhere records what it leaves behind, once, and the next one is whole."""

    async def scenario(cancelled):
        told = Told()
        async with Supervisor(hooks=[told], on_error=slow_hook, cancel_grace=1) as supervisor:
            ctx, handles = busy(supervisor)
            before = len(told.of(DrainFinished))
            outcome = await cancelled(supervisor.drain(seconds))
            assert supervisor._launcher.leading is None
            finished = told.of(DrainFinished)[before:]
            assert len(finished) == 1
            if not isinstance(outcome, asyncio.CancelledError):
                assert finished[0].report == outcome
            assert all(handle.done() for handle in handles)
            named = {task.id for task in (*finished[0].report.cancelled, *finished[0].report.abandoned)}
            lost = {TaskState.CANCELLED, TaskState.ABANDONED}
            assert {handle.id for handle in handles if handle.state in lost} <= named
            assert ctx.pending == 0
            with supervisor.context() as ctx:
                later = ctx.defer(plain)
            assert (await supervisor.drain()).finished == 1
            assert later.state is TaskState.SUCCEEDED
        agree(supervisor, told)

    assert sweep(scenario) >= 2


@pytest.mark.usefixtures("quiet")
def test_a_drain_that_is_joined():
    """S11: whoever joins a drain may be cancelled anywhere in that; the drain goes on."""

    async def scenario(cancelled):
        told = Told()
        async with Supervisor(hooks=[told]) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(slow)
            draining = asyncio.ensure_future(supervisor.drain())
            await asyncio.sleep(0)
            await cancelled(supervisor.drain())
            assert (await draining).finished == 1
            assert handle.state is TaskState.SUCCEEDED
        agree(supervisor, told)

    assert sweep(scenario) == 1


@pytest.mark.usefixtures("quiet")
def test_a_close():
    """S11, A64: a supervisor whose closing is cancelled anywhere is closed, and can be opened again."""

    async def scenario(cancelled):
        told, engine = Told(), MemoryEngine()
        supervisor = Supervisor(hooks=[told], on_error=slow_hook, drain_timeout=3, cancel_grace=1, engine=engine)
        supervisor.task("plain")(plain)

        async def life():
            async with supervisor:
                _, handles = busy(supervisor)
                with supervisor.context() as ctx:
                    await ctx.enqueue(plain)
            return handles

        await cancelled(life())
        assert supervisor._launcher.why is not None or not told.seen
        agree(supervisor, told)
        async with supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(plain)
        assert handle.state is TaskState.SUCCEEDED
        agree(supervisor, told)

    assert sweep(scenario) >= 3


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("seconds", [0, 0.5, 3])
def test_a_context_that_is_drained(seconds):
    """AW-01, A64: the drain of one context, cancelled anywhere, leaves none of its tasks behind, and no other's."""

    async def scenario(cancelled):
        told = Told()
        async with Supervisor(hooks=[told], on_error=slow_hook, cancel_grace=1) as supervisor:
            with supervisor.context() as other:
                kept = other.defer(slow)
            ctx, handles = busy(supervisor)
            await cancelled(ctx.drained(seconds))
            assert all(handle.done() for handle in handles)
            assert ctx.pending == 0
            assert ctx._drains == ()
            await kept
        agree(supervisor, told)

    assert sweep(scenario) >= 2


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("strict", [True, False])
def test_a_wrapped_call(strict):
    """C13, A64: a wrapped call, cancelled anywhere in its handler or its drain, leaves nothing."""

    async def scenario(cancelled):
        told = Told()
        supervisor = Supervisor(hooks=[told], on_error=slow_hook, drain_timeout=3, cancel_grace=1)

        async def handler():
            for work in WORKS:
                defer(work)
                await asyncio.sleep(0)

        await cancelled(supervisor.wrap(handler, strict=strict)())
        agree(supervisor, told)
        await supervisor.close()

    assert sweep(scenario) > len(WORKS)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("overflow", ["reject", "wait", "discard"])
@pytest.mark.parametrize("execution", [each for each in Execution if each is not Execution.DURABLE])
@pytest.mark.parametrize("work", [slow, failing, nested])
def test_a_step(work, execution, overflow):
    """S2, C13: a handler cancelled anywhere between or in its steps leaves its context in order."""

    async def scenario(cancelled):
        told = Told()
        async with Supervisor(
            hooks=[told], max_running=1, max_pending=2, overflow=overflow, retry=RETRY, cancel_grace=1
        ) as supervisor:

            async def handler():
                with supervisor.context() as ctx:
                    ctx.route = execution
                    for _ in range(3):
                        handle = await ctx.run(work)
                        if execution is Execution.SEQUENTIAL:
                            assert handle.done()
                        await asyncio.sleep(0)

            outcome = await cancelled(handler())
            allowed = (type(None), asyncio.CancelledError, TaskRejectedError, BoomError)
            assert isinstance(outcome, allowed)
            await supervisor.drain()
            assert not supervisor._launcher.rooms
        agree(supervisor, told)

    assert sweep(scenario) >= 1


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("key", [None, "once"])
def test_an_enqueue(key):
    """S15, C13: an `enqueue` cancelled anywhere has stored its call or has not; never twice, and never a half of it."""

    async def scenario(cancelled):
        engine, told, ran = SlowEngine(), Told(), []
        supervisor = Supervisor(engine=engine, hooks=[told], cancel_grace=1)

        @supervisor.task("note")
        async def note(what: str):
            ran.append(what)

        async with supervisor:

            async def handler():
                with supervisor.context() as ctx:
                    return await ctx.enqueue(note, "first", key=key)

            await cancelled(handler())
            with supervisor.context() as ctx:
                await ctx.enqueue(note, "second", key=key)
            depth = await engine.depth()
            assert depth.waiting == depth.running == 0
        assert len(ran) == len(set(ran)) == len(engine.stored)
        assert ran[-1:] == ["second"] or key is not None
        assert ran
        agree(supervisor, told)

    assert sweep(scenario) == 2


class SlowEngine(MemoryEngine):
    """An engine that takes its time before and after it stores."""

    def __init__(self):
        super().__init__()
        self.stored = set()

    async def enqueue(self, jobs, connection=None):
        """Store them."""
        await asyncio.sleep(0.1)
        found = await super().enqueue(jobs, connection)
        self.stored.update(found)
        await asyncio.sleep(0.1)
        return found


@pytest.mark.usefixtures("quiet")
def test_whoever_waits_for_a_task():
    """AW-05: whoever awaits a handle may be cancelled anywhere in that; the task and the others who wait are not."""

    async def scenario(cancelled):
        told = Told()
        async with Supervisor(hooks=[told]) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(slow)

            async def wait():
                return await handle

            other = asyncio.ensure_future(wait())
            await cancelled(wait())
            assert await other is None
            assert handle._waiters == []
        agree(supervisor, told)

    assert sweep(scenario) == 1
