"""Waiting for handles, and tasks that cancel one another: A64, A65."""

import asyncio
import threading

import pytest

from deferred import Execution, Outcome, Retry, Supervisor, TaskState
from tests.faults.support import (
    BoomError,
    boom,
    ended,
    fine,
    forever,
    loop_errors,
    nothing_left,
    outcome_of,
    settled,
    turns,
    until,
)

SHORT = {"drain_timeout": 0, "cancel_grace": 0.05}
RETRY = Retry(on=ConnectionError, wait_initial=0, wait_max=0, attempts=5, timeout=None)


class TestEachOther:
    async def test_itself(self):
        """S4: a task that cancels its handle, or its asyncio task, has been cancelled, alone."""
        handles = []

        async def by_handle():
            handles[0].cancel()
            await forever()

        async def by_task():
            asyncio.current_task().cancel()
            await forever()

        async def by_raising():
            raise asyncio.CancelledError

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handles += [ctx.defer(work) for work in (by_handle, by_task, by_raising)]
                other = ctx.defer(fine)
            states = await settled(*handles, other)
        assert states == [TaskState.CANCELLED] * 3 + [TaskState.SUCCEEDED]
        assert [h.outcome for h in handles] == [
            Outcome.CANCELLED_BY_HANDLE,
            Outcome.CANCELLED_BY_ITSELF,
            Outcome.CANCELLED_BY_ITSELF,
        ]
        assert nothing_left(supervisor)

    async def test_in_its_first_step(self):
        """S4: cancelled by a child of its own in its first step, the task is hit, and not the child."""
        handles = []

        async def child():
            handles[0].cancel()
            await asyncio.sleep(0)
            return "child"

        async def parent():
            loop = asyncio.get_running_loop()
            options = {"eager_start": True} if hasattr(asyncio, "eager_task_factory") else {}
            inner = asyncio.Task(child(), loop=loop, **options)
            handles.append(inner)
            await forever()

        async with Supervisor(**SHORT) as supervisor:
            with supervisor.context() as ctx:
                handles.append(ctx.defer(parent))
            await until(lambda: len(handles) == 2 and handles[1].done())
            assert not handles[1].cancelled()
            assert await settled(handles[0]) == [TaskState.CANCELLED]

    async def test_in_a_ring(self):
        """S4: tasks that cancel one another all end, each once, at the drain at the latest."""
        handles = []

        async def kills(index):
            await asyncio.sleep(0)
            handles[(index + 1) % 5].cancel()
            await forever()

        async with Supervisor(**SHORT) as supervisor:
            with supervisor.context() as ctx:
                handles += [ctx.defer(kills, index) for index in range(5)]
            await turns(10)
        assert ended(supervisor) == 5
        assert nothing_left(supervisor)

    async def test_the_parent(self):
        """S4: a child that cancels the task which deferred it goes on itself."""

        async def child(parent):
            parent.cancel()
            await asyncio.sleep(0)

        async def parent():
            children.append(ctx.defer(child, handles[0]))
            await forever()

        children, handles = [], []
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handles.append(ctx.defer(parent))
            await until(lambda: children)
            assert await settled(handles[0], children[0]) == [TaskState.CANCELLED, TaskState.SUCCEEDED]

    async def test_the_request(self):
        """S4, C13: a handler that is cancelled, also while it registers, leaves its work running."""
        async with Supervisor() as supervisor:
            started, handles = asyncio.Event(), []

            async def handler():
                with supervisor.context() as ctx:
                    handles.append(ctx.defer(fine))
                    started.set()
                    try:
                        await forever()
                    finally:
                        handles.append(ctx.defer(fine))
                        handles.append(ctx.wait_until(fine()))

            request = asyncio.ensure_future(handler())
            await started.wait()
            request.cancel()
            await until(request.done)
            assert await settled(*handles) == [TaskState.SUCCEEDED] * 3

    async def test_a_sequential_step(self):
        """S4: cancelling a handler in a sequential step settles the step once."""
        async with Supervisor() as supervisor:

            async def handler():
                with supervisor.context() as ctx:
                    ctx.route = Execution.SEQUENTIAL
                    await ctx.run(forever)

            request = asyncio.ensure_future(handler())
            await turns(3)
            request.cancel()
            assert type(await outcome_of(request)) is asyncio.CancelledError
        assert supervisor.stats().cancelled == 1
        assert nothing_left(supervisor)


class TestWaiting:
    async def test_from_several_places(self):
        """A65: a handle may be awaited by many; all get the same answer, and who gives up cancels nobody."""
        async with Supervisor() as supervisor:
            release = asyncio.Event()
            with supervisor.context() as ctx:
                handle = ctx.defer(release.wait)
            waiting = [asyncio.ensure_future(_wait(handle)) for _ in range(5)]
            await turns(3)
            waiting[0].cancel()
            await turns(3)
            assert not handle.done()
            release.set()
            assert await asyncio.gather(*waiting[1:]) == [True] * 4
            assert await handle is True

    async def test_from_another_loop(self):
        """A41: a handle may be awaited from the loop of another thread."""
        async with Supervisor() as supervisor:
            release, begun = asyncio.Event(), threading.Event()
            with supervisor.context() as ctx:
                handle = ctx.defer(release.wait)

            async def waits():
                begun.set()
                return await handle

            elsewhere = asyncio.ensure_future(asyncio.to_thread(lambda: asyncio.run(waits())))
            await asyncio.to_thread(begun.wait)
            release.set()
            assert await elsewhere is True

    @pytest.mark.parametrize("work", [boom, forever])
    async def test_after_the_end(self, work):
        """A64: a handle awaited after a failure or a cancellation raises that, every time."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(work)
            await turns(3)
            handle.cancel()
            await settled(handle)
            for _ in range(3):
                error = await outcome_of(_wait(handle))
                assert type(error) is (BoomError if work is boom else asyncio.CancelledError)

    async def test_for_each_other(self):
        """S11: two tasks that wait for each other end with the drain, not later; one that waits for itself at once."""
        handles = []

        async def waits(index):
            await handles[index]

        with loop_errors() as loose:
            async with Supervisor(**SHORT) as supervisor:
                with supervisor.context() as ctx:
                    handles += [ctx.defer(waits, 0), ctx.defer(waits, 2), ctx.defer(waits, 1)]
                await turns(3)
                assert [handle.state for handle in handles] == [TaskState.FAILED, *[TaskState.RUNNING] * 2]
        assert all(handle.done() for handle in handles)
        assert not loose
        assert nothing_left(supervisor)


async def _wait(handle):
    return await handle
