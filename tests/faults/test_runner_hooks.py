"""A hook can break nothing: A24 to A28, hooks that defer, drain, cancel, raise anything or hang."""

import asyncio
import logging

import pytest

from deferred import (
    DrainFinished,
    Supervisor,
    TaskDeferred,
    TaskFailed,
    TaskStarted,
    TaskState,
    TaskSucceeded,
)
from tests.faults.support import (
    BareError,
    BoomError,
    Told,
    boom,
    fine,
    forever,
    loop_errors,
    nothing_left,
    settled,
)

ERRORS = [RuntimeError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, BareError, StopIteration]


def raising(kind):
    """Return a hook that raises this, and one that does so asynchronously."""

    def hook(event):
        raise kind("the hook's")

    async def hook_async(event):
        await asyncio.sleep(0)
        raise kind("the hook's")

    return hook, hook_async


class TestRaising:
    @pytest.mark.parametrize("kind", ERRORS)
    @pytest.mark.parametrize("which", [0, 1])
    async def test_an_error_hook(self, kind, which, caplog):
        """A24, A26: an error hook that raises is logged once, and neither state nor other hooks change."""
        after = Told()
        with loop_errors() as loose:
            async with Supervisor(on_error=[raising(kind)[which], after]) as supervisor:
                with supervisor.context() as ctx:
                    handle, other = ctx.defer(boom), ctx.defer(fine)
                assert await settled(handle, other) == [TaskState.FAILED, TaskState.SUCCEEDED]
        assert after.errors == [handle.error]
        assert sum("it is contained" in record.message for record in caplog.records) == 1
        assert not loose
        assert nothing_left(supervisor)

    @pytest.mark.parametrize("kind", ERRORS)
    @pytest.mark.parametrize("which", [0, 1])
    async def test_a_hook_of_everything(self, kind, which):
        """A24, A28: an exporter that raises at every event changes no result."""
        with loop_errors() as loose:
            async with Supervisor(hooks=[raising(kind)[which]]) as supervisor:
                with supervisor.context() as ctx:
                    handles = [ctx.defer(fine), ctx.defer(boom), ctx.wait_until(fine()), ctx.defer(forever)]
                await settled(*handles[:3])
                handles[3].cancel()
                await settled(*handles)
        states = [TaskState.SUCCEEDED, TaskState.FAILED, TaskState.SUCCEEDED, TaskState.CANCELLED]
        assert [handle.state for handle in handles] == states
        assert not loose
        assert nothing_left(supervisor)

    @pytest.mark.parametrize("where", ["supervisor", "context", "view"])
    async def test_wherever_it_hangs(self, where):
        """A24: the hooks of the supervisor, the context and the view are contained alike."""
        hook, told = raising(ZeroDivisionError)[0], Told()
        async with Supervisor(on_error=[told, hook] if where == "supervisor" else told) as supervisor:
            with supervisor.context() as ctx:
                if where == "context":
                    ctx.on_error(hook)
                view = ctx.with_options(on_error=hook) if where == "view" else ctx
                handle = view.defer(boom)
            assert await settled(handle) == [TaskState.FAILED]
        assert told.errors == [handle.error]

    async def test_a_log_handler(self):
        """A28: a handler of the logger that raises breaks no task, no slot and no drain."""

        class Broken(logging.Handler):
            def emit(self, record):
                raise OSError("the log is full")

        broken, told = Broken(), Told()
        logger = logging.getLogger("deferred")
        logger.addHandler(broken)
        try:
            with loop_errors() as loose:
                async with Supervisor(on_error=told) as supervisor:
                    with supervisor.context() as ctx:
                        handles = [ctx.defer(boom), ctx.defer(fine), ctx.wait_until(boom())]
                    states = await settled(*handles)
                    assert states == [TaskState.FAILED, TaskState.SUCCEEDED, TaskState.FAILED]
        finally:
            logger.removeHandler(broken)
        assert len(told.errors) == 2
        assert not loose
        assert nothing_left(supervisor)

    async def test_a_hook_that_cannot_be_shown(self):
        """A24: a failing hook without a usable repr is contained like any other."""

        class Hidden:
            def __call__(self, event):
                raise BoomError

            def __repr__(self):
                raise RuntimeError("no repr")

        told = Told()
        async with Supervisor(on_error=[Hidden(), told]) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(boom)
            assert await settled(handle) == [TaskState.FAILED]
        assert told.errors == [handle.error]
        assert nothing_left(supervisor)

    async def test_the_error_of_the_task_is_the_cause(self, caplog):
        """A24: the log of a failing hook shows the failure of the task too."""
        async with Supervisor(on_error=raising(LookupError)[0]) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(boom)
            await settled(handle)
        (record,) = [record for record in caplog.records if "it is contained" in record.message]
        assert record.exc_info[1].__cause__ is handle.error

    async def test_a_hook_that_raises_what_cannot_be_changed(self):
        """A24: a hook that raises an error nothing can be set on is contained."""
        from tests.faults.test_runner_failures import FrozenError

        told = Told()

        def hook(event):
            raise FrozenError

        async with Supervisor(on_error=[hook, told]) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(boom)
            assert await settled(handle) == [TaskState.FAILED]
        assert told.errors == [handle.error]
        assert nothing_left(supervisor)


@pytest.mark.looptime
class TestHanging:
    async def test_a_hook_that_hangs(self, caplog):
        """A25: a hook that hangs is cancelled at its limit, and the drain reports as without it."""

        async def hangs(event):
            await forever()

        loop = asyncio.get_running_loop()
        async with Supervisor(on_error=hangs, hook_timeout=3) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(boom)
            report = await supervisor.drain()
            assert loop.time() == pytest.approx(3)
        assert (report.failed, report.abandoned) == (1, ())
        assert "did not finish within 3 s" in caplog.text

    async def test_a_hook_that_ignores_its_end(self, caplog):
        """A25: a hook that swallows its cancellation is left behind, and the drain ends."""
        stop = asyncio.Event()

        async def stubborn(event):
            while not stop.is_set():
                try:
                    await stop.wait()
                except asyncio.CancelledError:
                    continue

        loop = asyncio.get_running_loop()
        async with Supervisor(on_error=stubborn, hook_timeout=3, cancel_grace=2) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(boom)
        assert loop.time() == pytest.approx(5)
        assert "left behind" in caplog.text
        stop.set()

    async def test_a_hanging_hook_holds_up_no_task(self):
        """A25, A28: tasks start, end and are told while a hook hangs at every event."""

        async def hangs(event):
            await forever()

        loop = asyncio.get_running_loop()
        async with Supervisor(hooks=[hangs], hook_timeout=3) as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.defer(fine) for _ in range(5)]
            await settled(*handles)
            assert loop.time() == pytest.approx(0)


class TestDoing:
    async def test_deferring(self):
        """A24: a hook may defer; a drain waits for what it has deferred."""
        ran = []

        async def mourn():
            ran.append("mourned")

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                ctx.on_error(lambda event: ctx.defer(mourn))
                ctx.defer(boom)
                ctx.defer(fine)
            await supervisor.drain()
            assert ran == ["mourned"]
        assert nothing_left(supervisor)

    async def test_deferring_failing_work_for_ever(self):
        """A18, A24: an error hook that defers failing work is stopped by the context's cap."""
        refused = []

        async with Supervisor(max_per_context=50) as supervisor:
            with supervisor.context() as ctx:

                def again(event):
                    try:
                        ctx.defer(boom)
                    except Exception as error:
                        refused.append(error)
                        raise

                ctx.on_error(again)
                ctx.defer(boom)
            await supervisor.drain()
        assert len(refused) == 1
        assert nothing_left(supervisor)

    async def test_deferring_at_every_registration(self):
        """A24: a hook that defers whenever something is deferred stops at the cap; the first task runs."""

        class Echo:
            events = (TaskDeferred,)

            def __call__(self, event):
                ctx.defer(fine)

        async with Supervisor(max_per_context=20, hooks=[Echo()]) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(fine)
            assert await settled(handle) == [TaskState.SUCCEEDED]
        assert supervisor.stats().succeeded == 20
        assert nothing_left(supervisor)

    @pytest.mark.parametrize("moment", [TaskFailed, DrainFinished])
    @pytest.mark.parametrize("late", [True, False])
    async def test_deferring_at_the_end_of_the_drain(self, moment, late):
        """S7, S11: work that a hook registers while the supervisor closes is run, never left behind."""
        accepted = []

        def register():
            with supervisor.context() as ctx:
                accepted.append(ctx.defer(fine))

        async def slowly():
            for _ in range(5):
                await asyncio.sleep(0)
            register()

        class Hook:
            events = (moment,)

            def __call__(self, event):
                return slowly() if late else register()

        async with Supervisor(hooks=[Hook()]) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(boom)
        assert [handle.state for handle in accepted] == [TaskState.SUCCEEDED]
        assert nothing_left(supervisor)

    async def test_draining(self):
        """A24: a hook that drains the supervisor, while it is drained, holds up nothing."""

        async def drains(event):
            await supervisor.drain()

        async with Supervisor(on_error=drains) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(boom)
                ctx.defer(fine)
            report = await supervisor.drain()
        assert (report.finished, report.failed) == (1, 1)

    @pytest.mark.parametrize("moment", [TaskStarted, TaskDeferred])
    async def test_cancelling_the_task(self, moment):
        """A64: a hook that cancels the task as it is deferred or started ends it, once."""

        class Assassin:
            events = (moment,)

            def __call__(self, event):
                event.task.cancel()

        async with Supervisor(hooks=[Assassin()]) as supervisor:
            with supervisor.context() as ctx:
                handle, waited = ctx.defer(forever), ctx.wait_until(forever())
            assert await settled(handle, waited) == [TaskState.CANCELLED] * 2
        assert supervisor.stats().cancelled == 2
        assert nothing_left(supervisor)

    async def test_cancelling_everything_at_a_failure(self):
        """A64: an error hook that cancels every other task of the context ends each of them once."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                ctx.on_error(lambda event: [task.cancel() for task in ctx.tasks])
                others = [ctx.defer(forever) for _ in range(3)]
                ctx.defer(boom)
                late = ctx.defer(fine)
            states = await settled(*others, late)
        assert states == [TaskState.CANCELLED] * 4
        assert nothing_left(supervisor)

    async def test_removing_itself(self):
        """A24: a hook that removes itself, or adds another, is told no more, and the others are."""
        told = Told()

        def once(event):
            supervisor.remove_hook(once)
            supervisor.add_hook(told)

        async with Supervisor(hooks=[once]) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(fine)
            await settled(handle)
        assert len(told.of(TaskSucceeded)) == 1
