"""One failure touches nothing else: A01 to A10, A42, A65, A66, and errors that fight back."""

import asyncio
import contextlib
import dataclasses
import gc
import logging
import sys
import traceback
import weakref

import pytest

from deferred import Retry, Supervisor, TaskState
from tests.faults.support import (
    BareError,
    BoomError,
    Told,
    boom,
    ended,
    fine,
    forever,
    loop_errors,
    nothing_left,
    settled,
    turns,
)

BASES = [SystemExit, KeyboardInterrupt, GeneratorExit, BareError, MemoryError, RecursionError, StopAsyncIteration]


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """No attribute of it can be set, the traceback included."""

    code: int = 7


class SlottedError(Exception):
    """Refuses every attribute."""

    def __setattr__(self, name, value):
        raise AttributeError(name)


class MuteError(Exception):
    """Cannot be shown."""

    def __str__(self):
        raise ValueError("no text")

    __repr__ = __str__


class FalseError(Exception):
    """Is false, equal to everything and hashed by nothing."""

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self):
        return False

    def __eq__(self, other):
        raise AssertionError


class TracelessError(Exception):
    """Has a traceback that cannot be read."""

    @property
    def __traceback__(self):
        raise RuntimeError("no traceback")


def plain(ctx):
    """Return the context with no options: one attempt and nothing around it."""
    return ctx


def layered(ctx):
    """Return a view whose tasks have a timeout and a retry policy."""
    return ctx.with_options(timeout=50, retry=Retry(on=ZeroDivisionError))


class TestErrors:
    @pytest.mark.parametrize("way", [plain, layered])
    async def test_an_exception(self, way, caplog):
        """A01: a failing task is recorded and told once with its own traceback, and the others run."""
        told, errors = Told(), Told()
        async with Supervisor(on_error=errors, hooks=[told]) as supervisor:
            with supervisor.context("POST /x") as ctx:
                before, bad, after = ctx.defer(fine), way(ctx).defer(boom), ctx.defer(fine)
            states = await settled(before, bad, after)
        assert states == [TaskState.SUCCEEDED, TaskState.FAILED, TaskState.SUCCEEDED]
        assert [errors.errors, told.errors] == [[bad.error], [bad.error]]
        assert traceback.extract_tb(bad.error.__traceback__)[-1].name == "boom"
        assert traceback.extract_tb(bad.error.__traceback__)[0].name == "boom"
        assert sum(record.levelno == logging.ERROR for record in caplog.records) == 1
        assert nothing_left(supervisor)

    @pytest.mark.parametrize("way", [plain, layered])
    @pytest.mark.parametrize("early", [True, False])
    @pytest.mark.parametrize("kind", BASES)
    async def test_what_is_no_exception(self, kind, early, way):
        """A02, A04, A05, A66: whatever a task raises is its own failure, and the loop goes on."""
        errors = Told()
        error = kind("mine")

        async def raises():
            if not early:
                await asyncio.sleep(0)
            raise error

        with loop_errors() as loose:
            async with Supervisor(on_error=errors) as supervisor:
                with supervisor.context() as ctx:
                    handles = way(ctx).defer(raises), way(ctx).wait_until(raises()) if way is plain else ctx.defer(fine)
                    handles += (ctx.defer(fine),)
                await settled(*handles)
                report = await supervisor.drain()
        assert handles[0].state is TaskState.FAILED
        assert handles[2].state is TaskState.SUCCEEDED
        assert errors.errors == [error] * (2 if way is plain else 1)
        assert not loose
        assert not report.abandoned
        assert nothing_left(supervisor)

    @pytest.mark.parametrize("way", [plain, layered])
    @pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BareError])
    async def test_in_a_thread(self, kind, way):
        """A02, A04: a plain function that raises these in its thread fails alone."""

        def raises():
            raise kind("mine")

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle, other = way(ctx).defer(raises), ctx.defer(len, "abc")
            assert await other == 3
            await settled_in_thread(handle)
        assert type(handle.error) is kind
        assert handle.state is TaskState.FAILED

    @pytest.mark.parametrize("way", [plain, layered])
    async def test_stop_iteration(self, way):
        """A06: StopIteration becomes a RuntimeError, from a coroutine and from a thread."""

        async def stops():
            raise StopIteration

        def stops_in_thread():
            raise StopIteration(3)

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handles = [way(ctx).defer(stops), way(ctx).defer(stops_in_thread)]
            await settled_in_thread(*handles)
        assert [type(handle.error) for handle in handles] == [RuntimeError, RuntimeError]
        assert all(isinstance(handle.error.__cause__, StopIteration) for handle in handles)

    @pytest.mark.parametrize("way", [plain, layered])
    async def test_exception_group(self, way):
        """A08: a group is one failure with all its leaves."""
        errors = Told()

        async def several():
            async with asyncio.TaskGroup() as group:
                group.create_task(boom())
                group.create_task(boom())

        async with Supervisor(on_error=errors) as supervisor:
            with supervisor.context() as ctx:
                handle = way(ctx).defer(several)
            await settled(handle)
        (group,) = errors.errors
        assert group is handle.error
        assert [type(leaf) for leaf in group.exceptions] == [BoomError, BoomError]

    async def test_group_of_base_exceptions(self):
        """A08: a group with a SystemExit in it is one failure too."""

        async def several():
            raise BaseExceptionGroup("both", [SystemExit(3), BoomError()])

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(several)
            await settled(handle)
        assert len(handle.error.exceptions) == 2

    @pytest.mark.parametrize("way", [plain, layered])
    @pytest.mark.parametrize("kind", [MuteError, FalseError, FrozenError, SlottedError, TracelessError])
    @pytest.mark.parametrize("early", [True, False])
    async def test_errors_that_fight_back(self, kind, way, early):
        """A09: an error that cannot be shown, compared, hashed or changed is recorded like any other."""
        errors = Told()
        error = kind()

        async def raises():
            if not early:
                await asyncio.sleep(0)
            raise error

        with loop_errors() as loose:
            async with Supervisor(on_error=errors) as supervisor:
                with supervisor.context() as ctx:
                    bad, good = way(ctx).defer(raises), ctx.defer(fine)
                assert await settled(bad, good) == [TaskState.FAILED, TaskState.SUCCEEDED]
        assert bad.error is error
        assert [event.error is error for event in errors.seen] == [True]
        assert not loose
        assert nothing_left(supervisor)

    async def test_a_frozen_error_in_a_sequential_step(self):
        """A09: a step before the answer raises its own error, also one that nothing can be set on."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                ctx.route = _sequential()
                with pytest.raises(FrozenError):
                    await ctx.run(_raise, FrozenError())
        assert supervisor.stats().failed == 1

    async def test_the_same_error_of_many_tasks(self):
        """A01: one exception object raised by many tasks is told for each of them."""
        errors = Told()
        shared = BoomError("shared")

        async def raises():
            raise shared

        async with Supervisor(on_error=errors) as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.defer(raises) for _ in range(5)]
            await settled(*handles)
        assert errors.errors == [shared] * 5

    async def test_a_future_of_another_loop(self):
        """A42: waiting for a future of another loop fails that task alone."""
        other = asyncio.new_event_loop()
        try:
            foreign = other.create_future()

            async def waits():
                await foreign

            async with Supervisor() as supervisor:
                with supervisor.context() as ctx:
                    handles = ctx.defer(waits), ctx.wait_until(foreign), ctx.defer(fine)
                states = await settled(*handles)
            assert states == [TaskState.FAILED, TaskState.FAILED, TaskState.SUCCEEDED]
        finally:
            other.close()

    async def test_nobody_awaits_the_result(self):
        """A65: an error that nobody asks for is never reported by asyncio as "never retrieved"."""
        with loop_errors() as loose:
            async with Supervisor() as supervisor:
                with supervisor.context() as ctx:
                    handle = ctx.defer(boom)
                    waited = ctx.wait_until(boom())
                await settled(handle, waited)
                del handle, waited
                gc.collect()
                await asyncio.sleep(0)
        assert not loose


class TestResults:
    async def test_asking_again_changes_nothing(self):
        """A01: the error a handle raises keeps the traceback of the task, however often it is asked."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(boom)
            await settled(handle)
            for _ in range(5):
                with pytest.raises(BoomError):
                    handle.result()
                with pytest.raises(BoomError):
                    await handle
        assert len(traceback.extract_tb(handle.error.__traceback__)) <= 4

    async def test_failures_do_not_leak(self):
        """A10: ten thousand failures with large locals leave nothing behind once the collector has run."""

        class Ballast:
            pass

        alive = weakref.WeakSet()

        async def fails():
            ballast = Ballast()
            ballast.data = bytes(1000)
            alive.add(ballast)
            raise BoomError("boom")

        async with Supervisor(max_per_context=20_000) as supervisor:
            logging.getLogger("deferred").disabled = True
            try:
                with supervisor.context() as ctx:
                    for _ in range(10_000):
                        ctx.defer(fails)
                await ctx.drained()
            finally:
                logging.getLogger("deferred").disabled = False
            assert supervisor.stats().failed == 10_000
            await turns(2)  # the loop itself holds the last one until its callbacks are through
            gc.collect()
            assert not alive
            assert nothing_left(supervisor)


class TestSurvivors:
    @pytest.mark.parametrize(
        "by",
        [
            pytest.param("eager start", marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="came with 3.12")),
            "task factory",
        ],
    )
    async def test_a_task_that_cannot_be_made(self, by, monkeypatch):
        """A66: without memory for an asyncio task that one fails, and the rest of its batch runs."""
        from deferred import _launch, _task

        calls = []

        def scarce(loop, coroutine, **kwargs):
            if coroutine.cr_code in _task.runner_codes:
                calls.append(coroutine)
                if len(calls) == 2:
                    raise MemoryError
            return asyncio.Task(coroutine, loop=loop, **kwargs)

        if by == "task factory":
            asyncio.get_running_loop().set_task_factory(scarce)
        else:
            monkeypatch.setattr(_launch, "_Task", lambda coroutine, *, loop, **how: scarce(loop, coroutine, **how))
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.defer(fine) for _ in range(3)]
            states = await settled(*handles)
        assert states == [TaskState.SUCCEEDED, TaskState.FAILED, TaskState.SUCCEEDED]
        assert type(handles[1].error) is MemoryError
        assert ended(supervisor) == 3

    async def test_no_reference_is_kept_to_what_waits(self):
        """A46: the collector takes no task whose only owner is the supervisor, in any state."""
        async with Supervisor(max_running=2) as supervisor:
            release = asyncio.Event()
            done = []

            async def waits(number):
                await release.wait()
                done.append(number)

            with supervisor.context() as ctx:
                for number in range(6):
                    ctx.defer(waits, number)
            del ctx
            for _ in range(3):
                gc.collect()
                await asyncio.sleep(0)
            release.set()
            await supervisor.drain()
        assert sorted(done) == list(range(6))

    async def test_a_task_waiting_on_nothing_else(self):
        """A46: a task that only a cycle of its own refers to survives the collector."""
        async with Supervisor(cancel_grace=0) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(forever)
            await asyncio.sleep(0)
            gc.collect()
            assert supervisor.stats().running == 1
            handle.cancel()
            assert await settled(handle) == [TaskState.CANCELLED]


async def _raise(error):
    raise error


def _sequential():
    from deferred.execution import Execution

    return Execution.SEQUENTIAL


async def settled_in_thread(*handles):
    """Wait for tasks that end in threads."""
    for handle in handles:
        await asyncio.wait([asyncio.ensure_future(_quiet(handle))])


async def _quiet(handle):
    with contextlib.suppress(BaseException):
        await handle
