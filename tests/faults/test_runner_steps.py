"""Steps in line inside tasks that are left behind: S2, S11, A12."""

import asyncio
import contextlib
import gc

import pytest

from deferred import (
    ContextSettled,
    Execution,
    Outcome,
    Retry,
    Supervisor,
    TaskAbandoned,
    TaskCancelled,
    TaskFailed,
    TaskState,
    current_context,
    current_task,
)
from tests.faults.support import Told, fine, forever, nothing_left, outcome_of, turns

SHORT = {"drain_timeout": 0, "cancel_grace": 0}


async def stubborn():
    """Ignore every cancellation, and wait for what nobody else holds."""
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()


def in_line(supervisor, work, steps):
    """Defer a task that runs `work` as a step in line, inside so many further ones; return it."""
    with supervisor.context("GET /x") as ctx:
        ctx.route = Execution.SEQUENTIAL

        async def step(depth):
            await (ctx.with_options(name=f"step {depth}").run(step, depth - 1) if depth else work())

        return ctx.with_options(name="task").defer(step, steps)


class TestLeftBehind:
    @pytest.mark.parametrize("steps", [1, 3])
    async def test_with_its_steps(self, steps):
        """A12, S11: what a task that is abandoned runs in line is told as abandoned, once, and named in the report."""
        told = Told()
        async with Supervisor(hooks=[told], **SHORT) as supervisor:
            handle = in_line(supervisor, stubborn, steps)
            await turns(3)
            report = await supervisor.drain()
            names = [*(f"step {depth}" for depth in range(1, steps + 1)), "task"]
            assert [task.name for task in report.abandoned] == names
            assert [event.task.name for event in told.of(TaskAbandoned)] == names
            assert supervisor.stats().abandoned == steps + 1
            assert isinstance(told.seen[-2], ContextSettled)
            gc.collect()  # Python closes the coroutines of both, while the loop runs
            await turns(3)
        assert handle.state is TaskState.ABANDONED
        assert len(told.of(TaskAbandoned)) == steps + 1
        assert told.of(TaskFailed) == []
        assert nothing_left(supervisor)

    async def test_steps_elsewhere(self):
        """S2: a step in line of somebody else is not touched, and ends as it ends."""
        release = asyncio.Event()
        async with Supervisor(**SHORT) as supervisor:
            with supervisor.context() as ctx:
                ctx.route = Execution.SEQUENTIAL
                other = asyncio.ensure_future(ctx.run(release.wait))
                in_line(supervisor, stubborn, 1)
                await turns(3)
                assert len((await supervisor.drain()).abandoned) == 2
                release.set()
                assert (await other).state is TaskState.SUCCEEDED
        assert nothing_left(supervisor)

    async def test_destroyed_beside_the_loop(self):
        """A12: a step whose asyncio task Python destroys while the loop runs is abandoned, not failed."""
        told = Told()
        async with Supervisor(hooks=[told], **SHORT) as supervisor:
            with supervisor.context() as ctx:
                ctx.route = Execution.SEQUENTIAL
                handler = asyncio.ensure_future(ctx.run(stubborn))
                await turns(3)
                handler._log_destroy_pending = False
                asyncio._unregister_task(handler)
                del handler
                gc.collect()
                await turns(2)
                assert [type(event) for event in told.seen[-1:]] == [TaskAbandoned]
        assert told.of(TaskFailed) == []
        assert nothing_left(supervisor)

    async def test_a_step_that_goes_on(self):
        """A14: a step that was abandoned and returns all the same stays abandoned; its caller goes on."""
        release, went_on = asyncio.Event(), []

        async def late():
            while not release.is_set():
                await outcome_of(release.wait())

        async with Supervisor(**SHORT) as supervisor:
            with supervisor.context() as ctx:
                ctx.route = Execution.SEQUENTIAL

                async def task():
                    step = await ctx.run(late)
                    went_on.append(step.state)
                    went_on.append((await ctx.run(fine)).state)

                ctx.defer(task)
            await turns(3)
            assert len((await supervisor.drain()).abandoned) == 2
            release.set()
            await turns(10)
        assert went_on == [TaskState.ABANDONED, TaskState.SUCCEEDED]
        assert nothing_left(supervisor)


@pytest.mark.looptime
class TestInside:
    @pytest.mark.parametrize("steps", [1, 2])
    async def test_waiting_for_oneself(self, steps):
        """S2: a step in line that awaits its own handle, or that of the step around it, is told so at once."""
        answers, handles = [], []

        async def step(depth):
            handles.append(current_task())
            if depth:
                await ctx.run(step, depth - 1)
            else:
                answers.extend([await outcome_of(_wait(handle)) for handle in handles])
                answers.append(await asyncio.create_task(_until_begun(handles[-1])))

        async with Supervisor(**SHORT) as supervisor:
            with supervisor.context() as ctx:
                ctx.route = Execution.SEQUENTIAL
                await asyncio.wait_for(ctx.run(step, steps - 1), 60)
        assert [type(answer) for answer in answers[:-1]] == [RuntimeError] * steps
        assert answers[-1] == "it waits"

    @pytest.mark.parametrize("options", [{}, {"timeout": 1000}])
    @pytest.mark.parametrize("by", ["drain", "handle"])
    async def test_cancelled_with_its_task(self, by, options):
        """DF-08: a step in line that ends because its task was cancelled is told to have ended by the same."""
        told = Told()
        async with Supervisor(hooks=[told], drain_timeout=3) as supervisor:
            with supervisor.context() as ctx:
                ctx.route = Execution.SEQUENTIAL

                async def task():
                    await ctx.run(outer)

                async def outer():
                    await ctx.run(forever)

                handle = ctx.with_options(**options).defer(task)
            await asyncio.sleep(1)
            if by == "handle":
                handle.cancel()
            await supervisor.drain()
        outcome = Outcome.CANCELLED_BY_DRAIN if by == "drain" else Outcome.CANCELLED_BY_HANDLE
        assert [event.outcome for event in told.of(TaskCancelled)] == [outcome] * 3

    async def test_an_error_made_of_a_cancellation(self):
        """S9: a step in line that makes another error of its task's cancellation is not tried again."""

        async def fails():
            try:
                await forever()
            except asyncio.CancelledError:
                raise ConnectionError from None

        told = Told()
        async with Supervisor(hooks=[told]) as supervisor:
            with supervisor.context() as ctx:
                ctx.route = Execution.SEQUENTIAL

                async def task():
                    await ctx.with_options(retry=Retry(on=ConnectionError)).run(fails)

                handle = ctx.defer(task)
            await asyncio.sleep(1)
            handle.cancel()
            await asyncio.sleep(100)
        assert [(type(event.error), event.attempt) for event in told.of(TaskFailed)] == [(ConnectionError, 1)] * 2

    @pytest.mark.parametrize("drain", ["supervisor", "context", "another context"])
    @pytest.mark.parametrize("inside", ["task", "handler"])
    async def test_a_wait_between_attempts(self, inside, drain):
        """A54, RT-32: a step in line that waits for its next attempt beyond a drain's deadline is not waited for."""
        told = Told()

        async def fails():
            raise ConnectionError

        async def step():
            policy = Retry(on=lambda _error: 100.0, timeout=None, attempts=2)
            await ctx.with_options(retry=policy).run(fails)

        async with Supervisor(hooks=[told]) as supervisor:
            with supervisor.context() as other, supervisor.context() as ctx:
                ctx.route = Execution.SEQUENTIAL
                handler = asyncio.ensure_future(outcome_of(step()) if inside == "handler" else fine())
                if inside == "task":
                    ctx.wait_until(step())
                await asyncio.sleep(1)
                drains = {"supervisor": supervisor.drain, "context": ctx.drained, "another context": other.drained}
                await drains[drain](10)
                await handler
            now = asyncio.get_running_loop().time()
        assert now == pytest.approx(100 if (drain, inside) == ("another context", "handler") else 1)
        if drain != "another context":
            assert told.of(TaskFailed)[0].outcome is Outcome.EXHAUSTED_DEADLINE


async def _wait(handle):
    return await handle


async def _until_begun(handle):
    waiting = asyncio.ensure_future(_wait(handle))
    await asyncio.sleep(1)
    assert not waiting.done()
    waiting.cancel()
    return "it waits"


@pytest.mark.parametrize("options", [{}, {"timeout": 60}])
class TestWhereItIs:
    async def test_a_step_knows_itself(self, options):
        """S2, S14: code finds the step that it runs in, one inside another too, whatever its task has around it."""
        found = []

        async def look(deeper):
            found.append(current_task().name)
            if deeper:
                await current_context().with_options(name=deeper[0]).run(look, deeper[1:])
                found.append(current_task().name)

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                ctx.route = Execution.SEQUENTIAL
                handle = ctx.with_options(name="task", **options).defer(look, ("outer", "inner"))
            await handle
        assert found == ["task", "outer", "inner", "outer", "task"]

    @pytest.mark.looptime
    async def test_a_step_that_drains(self, options):
        """S7, S11: a drain in a step waits for everything but the task that the step is in, which could never end."""
        reports = []

        async def drain():
            with supervisor.context() as own:
                own.defer(fine)
            reports.append(await supervisor.drain())

        async def task():
            await current_context().run(drain)

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                ctx.route = Execution.SEQUENTIAL
                handle = ctx.with_options(**options).defer(task)
            await handle
            assert [report.finished for report in reports] == [1]
        assert nothing_left(supervisor)
