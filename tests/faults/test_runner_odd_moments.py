"""Odd moments, odd errors, odd places: of the same kinds as the listed ones, and stranger."""

import asyncio
import contextvars
import threading
from unittest import mock

import anyio
import pytest

from deferred import Outcome, Retry, Supervisor, TaskState, current_task, defer, wait_until
from tests.faults.support import (
    BoomError,
    Told,
    boom,
    fine,
    forever,
    loop_errors,
    nothing_left,
    settled,
    turns,
)


def _done(value):
    future = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


@pytest.mark.parametrize("options", [{}, {"timeout": 60}], ids=["plain", "dressed"])
class TestMoments:
    @pytest.mark.parametrize("when", ["before the close", "at the close", "first step", "second step", "last step"])
    async def test_a_cancel_at_any_moment(self, options, when):
        """A64: wherever a cancel falls, a task ends once, and as cancelled unless it was done."""
        handle = None
        async with Supervisor() as supervisor:

            async def work():
                if when == "first step":
                    handle.cancel()
                await asyncio.sleep(0)
                if when == "second step":
                    handle.cancel()
                await asyncio.sleep(0)
                handle.cancel()
                return "done"

            with supervisor.context() as ctx:
                handle = ctx.with_options(**options).defer(work)
                if when == "before the close":
                    handle.cancel()
            if when == "at the close":
                handle.cancel()
            (state,) = await settled(handle)
        assert state is (TaskState.SUCCEEDED if when == "last step" else TaskState.CANCELLED)
        assert not handle.cancel()
        assert nothing_left(supervisor)

    async def test_cancelled_and_failing(self, options):
        """A14: a task that answers its cancel with an error of its own has failed with that one."""

        async def work():
            try:
                await forever()
            finally:
                raise BoomError("boom")

        told = Told()
        async with Supervisor(on_error=told) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(**options).defer(work)
            await turns(3)
            handle.cancel()
            assert await settled(handle) == [TaskState.FAILED]
        assert told.errors == [handle.error]
        assert isinstance(handle.error.__context__, asyncio.CancelledError)

    async def test_a_task_that_uncancels_itself(self, options):
        """A14: a task that takes its cancellation back and goes on has succeeded."""

        async def work():
            try:
                await forever()
            except asyncio.CancelledError:
                asyncio.current_task().uncancel()
            return await fine("after all")

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(**options).defer(work)
            await turns(3)
            handle.cancel()
            assert await handle == "after all"

    async def test_its_own_timeouts(self, options):
        """S9: timeouts, task groups and cancel scopes inside a task are its own affair."""

        async def work():
            found = []
            try:
                async with asyncio.timeout(0):
                    await forever()
            except TimeoutError:
                found.append("asyncio")
            with anyio.move_on_after(0) as scope:
                await forever()
            found.append(scope.cancelled_caught)
            async with asyncio.TaskGroup() as group:
                child = group.create_task(fine(1))
            async with anyio.create_task_group() as other:
                other.start_soon(forever)
                other.cancel_scope.cancel()
            return [*found, child.result(), asyncio.current_task().cancelling()]

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(**options).defer(work)
            assert await handle == ["asyncio", True, 1, 0]

    async def test_a_group_that_fails(self, options):
        """A08: a task group of several failures is one failed task with all of them."""

        async def work():
            async with asyncio.TaskGroup() as group:
                group.create_task(boom())
                group.create_task(boom())

        told = Told()
        async with Supervisor(on_error=told) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(**options).defer(work)
            assert await settled(handle) == [TaskState.FAILED]
        ((first, second),) = [error.exceptions for error in told.errors]
        assert type(first) is type(second) is BoomError

    async def test_tokens_of_context_variables(self, options):
        """S6, A61: a task cannot reset what its handler has set, and what it sets itself it can."""
        variable = contextvars.ContextVar("variable", default="nobody's")
        token = variable.set("the handler's")

        async def work():
            mine = variable.set("the task's")
            await asyncio.sleep(0)
            variable.reset(mine)
            seen = variable.get()
            with pytest.raises(ValueError, match="different Context"):
                variable.reset(token)
            return seen

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(**options).defer(work)
            assert await handle == "the handler's"
        variable.reset(token)
        assert variable.get() == "nobody's"

    async def test_contexts_inside_a_task(self, options):
        """S6, B38: a task may open a context of its own; its work belongs there, and afterwards to the task's again."""
        journal = []

        async def work():
            with supervisor.context("inner") as inner:
                journal.append(defer(fine).label)
            journal.append(defer(fine).label)
            await inner.drained()
            journal.append(current_task().label)

        async with Supervisor() as supervisor:
            with supervisor.context("outer") as ctx:
                handle = ctx.with_options(**options).defer(work)
            await handle
        assert journal == ["inner", "outer", "outer"]
        assert nothing_left(supervisor)

    async def test_generators_that_hold_a_context(self, options):
        """S7: a context that an asynchronous generator holds across its yields closes when that is closed."""

        async def rows():
            with supervisor.context("rows") as inner:
                inner.with_options(**options).defer(ended.append, "row")
                yield 1

        ended = []
        async with Supervisor() as supervisor:
            generator = rows()
            assert await anext(generator) == 1
            await turns(5)
            assert ended == []
            await generator.aclose()
        assert ended == ["row"]
        assert nothing_left(supervisor)


@pytest.mark.parametrize("kind", ["wait_until", "defer"])
async def test_work_from_where_the_loop_calls_back(kind):
    """S6: callbacks of the loop and of futures register work as the code that made them would."""
    async with Supervisor() as supervisor:
        with supervisor.context("mine") as ctx:
            handles = []

            def register(*_ignored):
                handles.append(defer(fine) if kind == "defer" else wait_until(fine()))

            loop = asyncio.get_running_loop()
            loop.call_soon(register)
            loop.call_later(0, register)
            loop.create_future().add_done_callback(register)
            _done(1).add_done_callback(register)
            thread = threading.Thread(target=loop.call_soon_threadsafe, args=(ctx.defer, fine))
            thread.start()
            thread.join()
            await turns(10)
            assert len(ctx.tasks) + (kind == "wait_until") * 3 == 4
        await ctx.drained()
        assert [(handle.label, handle.state) for handle in handles] == [("mine", TaskState.SUCCEEDED)] * 3


class SlyError(Exception):
    """Says that it is of another class, and breaks when it is compared, shown, hashed or copied."""

    __class__ = property(lambda self: KeyboardInterrupt)

    def __eq__(self, other):
        raise AssertionError

    def __hash__(self):
        raise AssertionError

    def __reduce__(self):
        raise AssertionError

    def __str__(self):
        raise SystemExit

    __repr__ = __str__


@pytest.mark.parametrize("options", [{}, {"timeout": 9}, {"retry": Retry(on=SlyError, wait_initial=0, wait_max=0)}])
async def test_an_error_that_lies(options):
    """A09, A04: an error that says it is another and fights every look at it is one failed task, told once."""

    async def lies():
        raise SlyError

    told = Told()
    with loop_errors() as loose:
        async with Supervisor(on_error=told) as supervisor:
            with supervisor.context() as ctx:
                bad, good = ctx.with_options(**options).defer(lies), ctx.defer(fine)
            assert await settled(bad, good) == [TaskState.FAILED, TaskState.SUCCEEDED]
    assert [type(error) for error in told.errors] == [SlyError]
    assert loose == []
    assert nothing_left(supervisor)


async def test_a_predicate_that_registers_work():
    """S7, S9: a retry predicate, a middleware and a hook may defer; what they defer belongs to the task's context."""
    ran = []

    async def work():
        raise BoomError("boom")

    def predicate(error):
        defer(ran.append, "predicate")
        return False

    async def middleware(task, call_next):
        defer(ran.append, "middleware")
        return await call_next(task)

    def on_error(event):
        defer(ran.append, "hook")

    async with Supervisor(on_error=on_error) as supervisor:
        with supervisor.context() as ctx:
            handle = ctx.with_options(retry=Retry(on=predicate), middleware=[middleware]).defer(work)
        await ctx.drained()
    assert sorted(ran) == ["hook", "middleware", "predicate"]
    assert handle.outcome is Outcome.FAILED
    assert nothing_left(supervisor)


async def test_results_that_fight_back():
    """S1: what a task returns is given as it is: an error, another handle, or what compares with nothing."""
    strange = [BoomError("returned, not raised"), object(), NotImplemented, SlyError(), mock.sentinel.value]

    async def give(value):
        return value

    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            handles = [ctx.with_options(timeout=9 * (i % 2) or None).defer(give, v) for i, v in enumerate(strange)]
            other = ctx.defer(give, handles[0])
        await ctx.drained()
        results = [handle.result() for handle in handles]
        assert all(result is value for result, value in zip(results, strange, strict=True))
        assert await other is handles[0]
