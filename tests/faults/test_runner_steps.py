"""Steps in line inside tasks that are left behind: S2, S11, A12."""

import asyncio
import contextlib
import gc

import pytest

from deferred import ContextSettled, Execution, Supervisor, TaskAbandoned, TaskFailed, TaskState
from tests.faults.support import Told, fine, nothing_left, outcome_of, turns

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
