"""Middleware and scopes around the attempts: S14, and what they may do wrong."""

import asyncio
import gc
import warnings
from contextlib import asynccontextmanager

import pytest

from deferred import Retry, Supervisor, TaskState, current_task
from tests.faults.support import BoomError, Told, boom, ended, fine, forever, nothing_left, settled, turns


async def never(task, call_next):
    """Answer without the work."""
    return "short"


async def twice(task, call_next):
    """Run the work twice."""
    return await call_next(), await call_next()


async def swallows(task, call_next):
    """Hide the failure."""
    try:
        return await call_next()
    except BoomError:
        return "hidden"


async def raises(task, call_next):
    """Fail after the work."""
    await call_next()
    raise LookupError


async def raises_before(task, call_next):
    """Fail instead of the work."""
    raise LookupError


async def kills(task, call_next):
    """Leave as no middleware may."""
    raise SystemExit(3)


async def cancels(task, call_next):
    """Cancel the task it is around."""
    task.cancel()
    return await call_next()


async def swallows_cancel(task, call_next):
    """Hide the cancellation."""
    try:
        return await call_next()
    except asyncio.CancelledError:
        return "hidden"


def no_coroutine(task, call_next):
    """Be no async function."""
    return 3


class TestMiddleware:
    @pytest.mark.parametrize(
        ("middleware", "work", "state", "calls"),
        [
            (never, fine, TaskState.SUCCEEDED, 0),
            (twice, fine, TaskState.SUCCEEDED, 2),
            (swallows, boom, TaskState.SUCCEEDED, 1),
            (raises, fine, TaskState.FAILED, 1),
            (raises_before, fine, TaskState.FAILED, 0),
            (kills, fine, TaskState.FAILED, 0),
            (cancels, forever, TaskState.CANCELLED, 1),
            (no_coroutine, fine, TaskState.FAILED, 0),
        ],
    )
    @pytest.mark.parametrize("where", ["supervisor", "view"])
    async def test_what_it_may_do(self, middleware, work, state, calls, where):
        """S14: whatever a middleware does, the task ends once, in the state that follows."""
        ran = 0

        async def counted():
            nonlocal ran
            ran += 1
            return await work()

        layers, told = [middleware], Told()
        async with Supervisor(middleware=layers if where == "supervisor" else (), hooks=[told]) as supervisor:
            with supervisor.context() as ctx:
                view = ctx if where == "supervisor" else ctx.with_options(middleware=layers)
                handle = view.defer(counted)
            assert await settled(handle) == [state]
        assert ran == calls
        assert len(told.errors) == (state is TaskState.FAILED)
        assert ended(supervisor) == 1
        assert nothing_left(supervisor)

    @pytest.mark.parametrize("middleware", [never, raises_before, kills, no_coroutine])
    async def test_around_a_coroutine(self, middleware):
        """A36, S14: a coroutine that a middleware keeps from running is closed, without a warning."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                coroutine = fine()
                handle = ctx.with_options(middleware=[middleware]).wait_until(coroutine)
            await settled(handle)
        assert coroutine.cr_frame is None

    async def test_around_a_coroutine_twice(self):
        """S14: a coroutine cannot be run twice: a middleware that tries makes the task fail."""
        async with Supervisor(middleware=[twice]) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.wait_until(fine())
            assert await settled(handle) == [TaskState.FAILED]
        assert type(handle.error) is RuntimeError

    async def test_hiding_a_cancellation(self):
        """A14, S14: a middleware that hides a cancellation lets the task succeed, once."""
        async with Supervisor(middleware=[swallows_cancel]) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(forever)
            await turns(3)
            handle.cancel()
            assert await settled(handle) == [TaskState.SUCCEEDED]
        assert ended(supervisor) == 1

    async def test_views_of_views(self):
        """S14: middleware of nested views runs from the outermost to the innermost, around every attempt."""
        order = []

        def layer(name):
            async def middleware(task, call_next):
                order.append(name)
                return await call_next()

            return middleware

        policy = Retry(on=BoomError, wait_initial=0, wait_max=0, attempts=2)
        async with Supervisor(middleware=[layer("a")], retry=policy) as supervisor:
            with supervisor.context() as ctx:
                view = ctx.with_options(middleware=[layer("b")]).with_options(middleware=[layer("c")], name="n")
                handle = view.defer(boom)
                plain = ctx.with_options(retry=None).defer(fine)
            await settled(handle)
            await settled(plain)
        assert handle.name == "n"
        assert sorted(order) == sorted("abcabc" + "a")

    async def test_it_defers(self):
        """S7, S14: a middleware may defer; the drain waits for it."""
        ran = []

        async def defers(task, call_next):
            if task.name != "note":
                ctx.with_options(name="note").defer(ran.append, 1)
            return await call_next()

        async with Supervisor(middleware=[defers]) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(fine)
        assert ran == [1]


def failing_at(place, error):
    """Return a scope that raises this at that place."""

    @asynccontextmanager
    async def scope():
        if place == "enter":
            raise error
        yield "scope"
        raise error

    return scope


class TestScopes:
    @pytest.mark.parametrize("place", ["enter", "exit"])
    @pytest.mark.parametrize(
        "error", [LookupError(), SystemExit(), asyncio.CancelledError(), StopIteration()], ids=repr
    )
    async def test_it_raises(self, place, error):
        """S14: a scope that cannot be entered or left fails that task alone."""
        async with Supervisor(task_scope=failing_at(place, error)) as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.defer(fine), ctx.wait_until(fine())]
            states = await settled(*handles)
        expected = TaskState.CANCELLED if isinstance(error, asyncio.CancelledError) else TaskState.FAILED
        assert states == [expected] * 2
        assert nothing_left(supervisor)

    async def test_a_coroutine_it_keeps_out(self):
        """A36, S14: a coroutine whose scope could not be entered is closed, without a warning."""
        async with Supervisor(task_scope=failing_at("enter", LookupError())) as supervisor:
            with supervisor.context() as ctx:
                coroutine = fine()
                handle = ctx.wait_until(coroutine)
            await settled(handle)
        assert coroutine.cr_frame is None

    @pytest.mark.parametrize("factory", [lambda: None, lambda: 3, object])
    async def test_no_context_manager(self, factory):
        """S14: a factory that gives no context manager fails the task."""
        async with Supervisor(task_scope=factory) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(fine)
            assert await settled(handle) == [TaskState.FAILED]

    async def test_one_for_each_attempt(self):
        """S14: every attempt has a scope of its own, closed before the next begins, also when cancelled."""
        opened, closed, seen = [], [], []

        @asynccontextmanager
        async def scope(task):
            opened.append(task.attempts)
            try:
                yield object()
            finally:
                closed.append(task.attempts)

        async def fails():
            seen.append(current_task().scope)
            raise BoomError

        policy = Retry(on=BoomError, wait_initial=0, wait_max=0)
        async with Supervisor(task_scope=scope, retry=policy) as supervisor:
            with supervisor.context() as ctx:
                handle, hung = ctx.defer(fails), ctx.defer(forever)
            await settled(handle)
            hung.cancel()
            await settled(hung)
        assert len(set(map(id, seen))) == 3
        assert sorted(opened) == sorted(closed) == [1, 1, 2, 3]
        assert handle.scope is None

    @pytest.mark.looptime
    async def test_it_hangs(self):
        """S11, S14: a scope that hangs on its way in or out is cut by the drain."""

        @asynccontextmanager
        async def slow():
            yield await forever()

        async with Supervisor(task_scope=slow, drain_timeout=20) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(fine)
            report = await supervisor.drain()
        assert len(report.cancelled) == 1
        assert asyncio.get_running_loop().time() == pytest.approx(20)

    async def test_it_hides_the_failure(self):
        """S14: a scope may swallow the error of the work, as any context manager does."""

        class Hides:
            async def __aenter__(self):
                return self

            async def __aexit__(self, *exc):
                return True

        async with Supervisor(task_scope=Hides) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(boom)
            assert await settled(handle) == [TaskState.SUCCEEDED]

    async def test_nothing_warns(self):
        """A36: none of this leaves a coroutine that was never awaited."""
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            async with Supervisor(task_scope=failing_at("enter", LookupError())) as supervisor:
                with supervisor.context() as ctx:
                    handle = ctx.with_options(middleware=[never]).wait_until(fine())
                await settled(handle)
            del handle, ctx
            gc.collect()
        assert not [warning for warning in found if "never awaited" in str(warning.message)]
