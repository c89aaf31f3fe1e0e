"""Drains: A44, C21, C22, drains in tasks and beside drains, supervisors opened again and on several loops."""

import asyncio

import pytest

from deferred import (
    DrainFinished,
    DrainStarted,
    Outcome,
    Supervisor,
    SupervisorClosedError,
    TaskState,
    defer,
)
from tests.faults.support import Told, fine, forever, nothing_left, outcome_of, turns

SHORT = {"drain_timeout": 0, "cancel_grace": 0.05}


class TestEnds:
    async def test_reported_in_full(self):
        """S11: every task is in the report or its counts, whatever its end."""
        async with Supervisor(**SHORT) as supervisor:
            with supervisor.context("POST /x") as ctx:
                never_started = ctx.defer(fine)
                running = ctx.wait_until(forever())
                await turns(3)
                report = await supervisor.drain()
            assert {task.id for task in report.cancelled} == {never_started.id, running.id}
            assert all(task.label == "POST /x" and "test_runner_drain.py:" in task.site for task in report.cancelled)
            assert {never_started.outcome, running.outcome} == {
                Outcome.CANCELLED_AT_DEADLINE,
                Outcome.CANCELLED_BY_DRAIN,
            }

    @pytest.mark.parametrize("begun", [1, 3])
    async def test_the_drain_is_cancelled(self, begun):
        """C21, C22: a drain that is cancelled, as soon as it likes, records what is left before it raises."""
        told = Told()
        async with Supervisor(hooks=[told], drain_timeout=1000) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(forever)
            await turns(3)
            draining = asyncio.ensure_future(supervisor.drain())
            await turns(begun)
            draining.cancel()
            assert type(await outcome_of(draining)) is asyncio.CancelledError
            assert handle.state is TaskState.ABANDONED
            (finished,) = told.of(DrainFinished)
            assert [task.id for task in finished.report.abandoned] == [handle.id]
            assert not supervisor.draining
            with supervisor.context() as ctx:
                ctx.defer(fine)
            assert (await supervisor.drain()).finished == 1
        assert nothing_left(supervisor)

    async def test_the_closing_is_cancelled(self):
        """C21, C22: the same for ``async with``; nothing is accepted afterwards."""
        supervisor = Supervisor(drain_timeout=1000)
        supervisor.open()
        with supervisor.context() as ctx:
            handle = ctx.defer(forever)
        closing = asyncio.ensure_future(supervisor.close())
        await turns(3)
        closing.cancel()
        assert type(await outcome_of(closing)) is asyncio.CancelledError
        assert handle.state is TaskState.ABANDONED
        with supervisor.context() as ctx, pytest.raises(SupervisorClosedError):
            ctx.defer(fine)
        await turns(3)
        assert nothing_left(supervisor)

    async def test_work_for_ever(self):
        """A18: tasks that defer one another without end are stopped, and the drain with them."""
        count = 0

        async def again():
            nonlocal count
            count += 1
            defer(again)
            await asyncio.sleep(0)

        async with Supervisor(max_per_context=200) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(again)
            await supervisor.drain()
        assert 100 <= count <= 400
        assert nothing_left(supervisor)

    @pytest.mark.looptime
    async def test_slow_work_for_ever(self):
        """A17, A18: children are waited for under one deadline, however many there are."""
        loop = asyncio.get_running_loop()

        async def again():
            await asyncio.sleep(7)
            defer(again)

        async with Supervisor(drain_timeout=20) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(again)
            report = await supervisor.drain()
            assert loop.time() == pytest.approx(20)
        assert report.finished == 2
        assert len(report.cancelled) == 1
        assert nothing_left(supervisor)

    @pytest.mark.looptime
    async def test_deferring_when_cancelled(self):
        """S7, S11: work deferred by the clean-up of a cancelled task is reported, and not started any more."""
        started = []

        async def cleans():
            try:
                await forever()
            finally:
                ctx.defer(started.append, 1)

        async with Supervisor(drain_timeout=5) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(cleans)
            report = await supervisor.drain()
        assert len(report.cancelled) == 2
        assert started == []
        assert nothing_left(supervisor)


@pytest.mark.looptime
class TestFromInside:
    async def test_by_a_task(self):
        """S11: a task may drain the supervisor: it waits for all the others and not for itself."""
        loop = asyncio.get_running_loop()
        async with Supervisor(drain_timeout=20) as supervisor:

            async def drains():
                return await supervisor.drain()

            with supervisor.context() as ctx:
                handle = ctx.defer(drains)
                ctx.defer(asyncio.sleep, 3)
            report = await handle
            assert loop.time() == pytest.approx(3)
        assert report.finished == 1

    async def test_by_two_tasks(self):
        """S11: two tasks that drain the supervisor wait for the rest, and not for each other until the deadline."""
        loop = asyncio.get_running_loop()
        async with Supervisor(drain_timeout=20) as supervisor:

            async def drains():
                return await supervisor.drain()

            with supervisor.context() as ctx:
                handles = [ctx.defer(drains), ctx.defer(drains)]
                ctx.defer(asyncio.sleep, 3)
            await until_ended(*handles)
            assert [handle.state for handle in handles] == [TaskState.SUCCEEDED] * 2
            assert loop.time() == pytest.approx(3)

    async def test_by_a_task_beside_the_shutdown(self):
        """S11: a task that drains while the app shuts down does not hold up the shutdown."""
        loop = asyncio.get_running_loop()

        async def drains():
            await asyncio.sleep(1)
            await supervisor.drain()

        async with Supervisor(drain_timeout=20) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(drains)
        assert loop.time() == pytest.approx(1)
        assert handle.state is TaskState.SUCCEEDED

    async def test_of_their_context_by_two_tasks(self):
        """S11: two tasks that drain their own context wait for the rest of it, and not for each other."""
        loop = asyncio.get_running_loop()

        async def drains():
            await ctx.drained()

        async with Supervisor(drain_timeout=20) as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.defer(drains), ctx.defer(drains)]
                ctx.defer(asyncio.sleep, 3)
            await until_ended(*handles)
            assert [handle.state for handle in handles] == [TaskState.SUCCEEDED] * 2
            assert loop.time() == pytest.approx(3)

    async def test_by_a_handler(self):
        """S11: a handler that drains its open context waits until the deadline for what cannot start, and no longer."""
        loop = asyncio.get_running_loop()
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(fine)
                report = await ctx.drained(4)
            assert loop.time() == pytest.approx(4)
        assert handle.outcome is Outcome.CANCELLED_AT_DEADLINE
        assert len(report.cancelled) == 1

    async def test_concurrently(self):
        """S11: drains at the same time share one report; cancelling one that joined leaves the other."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(asyncio.sleep, 3)
            drains = [asyncio.ensure_future(supervisor.drain()) for _ in range(3)]
            await turns(3)
            drains[1].cancel()
            first, third = await drains[0], await drains[2]
        assert first == third
        assert first.finished == 1

    async def test_in_a_circle(self):
        """S11: supervisors that drain one another in a circle all end in time."""
        loop = asyncio.get_running_loop()
        circle = [Supervisor(drain_timeout=5) for _ in range(3)]
        for index, supervisor in enumerate(circle):
            supervisor.adopt(circle[(index + 1) % 3])
        for supervisor in circle:
            with supervisor.context() as ctx:
                ctx.defer(asyncio.sleep, 1)
        draining = asyncio.ensure_future(circle[0].drain())
        await asyncio.wait([draining], timeout=60)
        assert draining.done()
        assert loop.time() == pytest.approx(1)
        assert all(nothing_left(supervisor) for supervisor in circle)

    async def test_cancelled_before_the_mounted_ones_begin(self):
        """C22: a drain that is cancelled as it begins records what is left of every app mounted in it."""

        def cancel(event):
            if isinstance(event, DrainStarted):
                asyncio.current_task().cancel()

        told = Told()
        chain = [Supervisor(hooks=hooks) for hooks in ([told, cancel], [told], [told])]
        chain[0].adopt(chain[1])
        chain[1].adopt(chain[2])
        handles = []
        for supervisor in chain:
            with supervisor.context() as ctx:
                handles.append(ctx.defer(asyncio.sleep, 60))
        await turns(3)
        draining = asyncio.ensure_future(chain[0].drain())
        await asyncio.wait([draining])
        assert draining.cancelled()
        assert [handle.state for handle in handles] == [TaskState.ABANDONED] * 3
        reports = [event.report for event in told.of(DrainFinished)]
        assert sorted(task.id for report in reports for task in report.abandoned) == [handle.id for handle in handles]
        assert not any(supervisor.draining for supervisor in chain)

    async def test_a_mounted_one_that_drains_already_is_waited_for(self):
        """S11: a drain joins that of a mounted app which somebody else has begun."""
        outer, inner = Supervisor(), Supervisor()
        outer.adopt(inner)
        with inner.context() as ctx:
            ctx.defer(asyncio.sleep, 3)
        first = asyncio.ensure_future(inner.drain())
        await turns(3)
        await outer.drain()
        assert (await first).finished == 1
        assert asyncio.get_running_loop().time() == pytest.approx(3)


async def until_ended(*handles):
    """Wait for these, in the time of the loop."""
    for handle in handles:
        await outcome_of(_wait(handle))


async def _wait(handle):
    return await handle
