"""Cancelling: A12 to A14, A64; tasks that cancel each other, themselves, and those that will not end."""

import asyncio

import pytest

from deferred import Retry, Supervisor, TaskState
from tests.faults.support import (
    BoomError,
    Told,
    ended,
    fine,
    forever,
    nothing_left,
    settled,
    turns,
    until,
)

SHORT = {"drain_timeout": 0, "cancel_grace": 0.05}
RETRY = Retry(on=ConnectionError, wait_initial=0, wait_max=0, attempts=5, timeout=None)


class Stubborn:
    """Work that ignores its cancellation until it is let go."""

    def __init__(self, answer=None):
        self.go, self.answer, self.asked, self.calls = asyncio.Event(), answer, 0, 0

    async def __call__(self):
        """Ignore every cancellation."""
        self.calls += 1
        while not self.go.is_set():
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.asked += 1
        if self.answer is not None:
            raise self.answer


class TestUnwilling:
    async def test_abandoned_by_name(self):
        """A12, A13: work that ignores every cancellation is abandoned after the grace period, by name."""
        work = Stubborn()
        async with Supervisor(**SHORT) as supervisor:
            with supervisor.context("POST /x") as ctx:
                handle = ctx.with_options(name="stubborn").defer(work)
            await until(lambda: work.calls)
            report = await supervisor.drain()
            assert [(task.name, task.label, task.attempt) for task in report.abandoned] == [("stubborn", "POST /x", 1)]
            assert handle.state is TaskState.ABANDONED
            assert nothing_left(supervisor)
            assert work.asked <= 2
            work.go.set()
            await turns(5)
            assert handle.state is TaskState.ABANDONED

    @pytest.mark.parametrize("options", [{}, {"retry": RETRY}, {"timeout": 100}])
    async def test_abandoned_work_is_not_tried_again(self, options):
        """A12: abandoned work that fails in the end is not started again, and not told twice."""
        work, told = Stubborn(ConnectionError()), Told()
        async with Supervisor(hooks=[told], **SHORT) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(**options).defer(work)
            await until(lambda: work.calls)
            await supervisor.drain()
            work.go.set()
            await turns(30)
        assert (work.calls, handle.state, told.errors) == (1, TaskState.ABANDONED, [])
        assert ended(supervisor) == 1

    @pytest.mark.looptime
    async def test_it_never_spins(self):
        """A13: a drain of work that ignores everything takes its deadline and grace, in a handful of turns."""
        loop = asyncio.get_running_loop()
        work, steps = Stubborn(), 0
        once = loop._run_once

        def counted():
            nonlocal steps
            steps += 1
            once()

        async with Supervisor(drain_timeout=20, cancel_grace=2) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(work)
            loop._run_once = counted
            await supervisor.drain()
            assert loop.time() == pytest.approx(22)
            loop._run_once = once
            work.go.set()
        assert steps < 400

    async def test_it_returns_all_the_same(self):
        """A14: work that swallows the cancellation and returns has succeeded, and nothing else as well."""

        async def swallows():
            try:
                await forever()
            except asyncio.CancelledError:
                return "late"

        told = Told()
        async with Supervisor(hooks=[told]) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(swallows)
            await turns(3)
            assert handle.cancel()
            assert await handle == "late"
        stats = supervisor.stats()
        assert (stats.succeeded, stats.cancelled, stats.failed) == (1, 0, 0)

    async def test_it_fails_instead(self):
        """A14: work that answers its cancellation with an error has failed with that, once."""

        async def converts():
            try:
                await forever()
            except asyncio.CancelledError:
                raise BoomError from None

        told = Told()
        async with Supervisor(hooks=[told]) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(converts)
            await turns(3)
            handle.cancel()
            await settled(handle)
        assert told.errors == [handle.error]
        assert ended(supervisor) == 1

    async def test_cancelled_work_is_not_tried_again(self):
        """A64: a cancelled task that answers with a retryable error ends; a cancellation is no failure to retry."""
        calls = 0

        async def converts():
            nonlocal calls
            calls += 1
            try:
                await forever()
            except asyncio.CancelledError:
                raise ConnectionError from None

        async with Supervisor(**SHORT) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(retry=RETRY).defer(converts)
            await until(lambda: calls)
            handle.cancel()
            await turns(50)
            assert handle.done()
        assert calls == 1

    @pytest.mark.looptime
    async def test_a_timeout_that_is_swallowed(self):
        """A14: work that swallows its timeout and returns has one state, whichever it is."""

        async def swallows():
            try:
                await forever()
            except asyncio.CancelledError:
                return "late"

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(timeout=3).defer(swallows)
            await supervisor.drain()
        assert handle.state in {TaskState.SUCCEEDED, TaskState.FAILED}
        assert ended(supervisor) == 1


class TestTwice:
    @pytest.mark.parametrize("kind", ["deferred", "waited", "thread", "retry", "future"])
    async def test_cancel_again(self, kind):
        """A64: cancelling twice, or after the end, changes nothing."""
        async with Supervisor(**SHORT) as supervisor:
            with supervisor.context() as ctx:
                make = {
                    "deferred": lambda: ctx.defer(forever),
                    "waited": lambda: ctx.wait_until(forever()),
                    "thread": lambda: ctx.defer(len, "abc"),
                    "retry": lambda: ctx.with_options(retry=RETRY).defer(forever),
                    "future": lambda: ctx.wait_until(asyncio.get_running_loop().create_future()),
                }
                handle = make[kind]()
                assert handle.cancel() is True
                handle.cancel()
            await settled(handle)
            assert handle.state is TaskState.CANCELLED
            assert handle.cancel() is False
            await turns(5)
        assert (ended(supervisor), supervisor.stats().cancelled) == (1, 1)
        assert nothing_left(supervisor)

    async def test_a_cancelled_task_never_starts(self):
        """A64: what was cancelled before the response is out is not started after it."""
        ran = []
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(ran.append, 1)
                assert handle.cancel()
            await turns(10)
        assert ran == []

    async def test_from_a_thread(self):
        """A64: a handle may be cancelled from any thread."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(forever)
            await turns(3)
            await asyncio.to_thread(handle.cancel)
            assert await settled(handle) == [TaskState.CANCELLED]

    def test_after_the_loop_has_closed(self):
        """A44, A64: cancelling what a closed loop has left behind ends it; there is nothing to wait for."""
        supervisor = Supervisor()
        kept = []

        async def main():
            scope = supervisor.context()
            kept.append((scope, scope.__enter__().defer(fine)))

        asyncio.run(main())
        scope, handle = kept[0]
        handle.cancel()
        assert handle.state in {TaskState.CANCELLED, TaskState.ABANDONED}
        assert handle.cancel() is False
        scope.__exit__(None, None, None)
