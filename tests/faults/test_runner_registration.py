"""Who may register, where and when: A17, A20, A37 to A42, A60 to A62, S8."""

import asyncio
import contextvars
import gc
import logging
import threading

import pytest

from deferred import (
    ContextClosedError,
    ContextSettled,
    EventLoopError,
    NoCurrentContextError,
    Supervisor,
    SupervisorClosedError,
    TaskState,
    TaskSucceeded,
    current_context,
    current_task,
    defer,
    execution,
    wait_until,
)
from tests.faults.support import Told, fine, forever, idle, nothing_left, settled, turns, until

value = contextvars.ContextVar("value", default="nothing")


class TestContexts:
    async def test_too_late(self):
        """A37: once a context has ended and nothing of it is pending, every way in raises and says the mend."""
        async with Supervisor() as supervisor:
            with supervisor.context("GET /x") as ctx:
                pass
            for register in (
                lambda: ctx.defer(fine),
                lambda: ctx.wait_until(fine()),
                lambda: ctx.with_options(name="x").defer(fine),
                lambda: ctx.with_options(name="x").wait_until(fine()),
            ):
                with pytest.raises(ContextClosedError, match="GET /x"):
                    register()
            with pytest.raises(ContextClosedError):
                await ctx.run(fine)
        assert supervisor.stats().pending == 0

    async def test_as_long_as_something_is_pending(self):
        """S7, A17: until then its tasks may register, and so may those who hold it; a drain waits for all."""
        ran = []

        async def child(depth):
            await asyncio.sleep(0)
            ran.append(depth)
            if depth:
                defer(child, depth - 1)
                current_context().wait_until(child(0))

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(child, 3)
            ctx.defer(child, 0)
            await supervisor.drain()
            assert sorted(ran) == [0, 0, 0, 0, 0, 1, 2, 3]
            with pytest.raises(ContextClosedError):
                ctx.defer(child, 0)

    async def test_outside(self):
        """A38: outside any context both functions raise, and a coroutine is closed."""

        def outside():
            coroutine = fine()
            with pytest.raises(NoCurrentContextError):
                wait_until(coroutine)
            assert coroutine.cr_frame is None
            with pytest.raises(NoCurrentContextError):
                defer(fine)
            with pytest.raises(NoCurrentContextError):
                current_context()

        async with Supervisor():
            contextvars.Context().run(outside)
        contextvars.Context().run(outside)

    async def test_outside_run(self):
        """A38: with ``out_of_scope="run"`` it is work of the app: it starts, is drained, and ends with the app."""
        async with Supervisor(out_of_scope="run") as supervisor:
            handles = contextvars.Context().run(lambda: [defer(fine), wait_until(fine())])
            await supervisor.drain()
            assert [handle.state for handle in handles] == [TaskState.SUCCEEDED] * 2
        with pytest.raises((NoCurrentContextError, SupervisorClosedError)):
            contextvars.Context().run(defer, fine)

    async def test_outside_ignored(self, caplog):
        """A38, S8: with ``out_of_scope="ignore"`` it is closed and discarded, with one warning in all."""
        async with Supervisor(out_of_scope="ignore") as supervisor:
            coroutine = fine()
            handles = contextvars.Context().run(lambda: [defer(fine), wait_until(coroutine), defer(fine)])
        assert [handle.state for handle in handles] == [TaskState.DISCARDED] * 3
        assert coroutine.cr_frame is None
        assert sum(record.levelno == logging.WARNING for record in caplog.records) == 1
        assert nothing_left(supervisor)

    async def test_dropped_without_being_left(self, caplog):
        """A46: a context that is entered and forgotten is closed by the collector, and its work runs."""
        ran = []
        async with Supervisor() as supervisor:

            async def forgets():
                scope = supervisor.context("forgotten")
                scope.__enter__().defer(ran.append, 1)

            await asyncio.create_task(forgets())
            gc.collect()
            await idle(supervisor)
        assert ran == [1]
        assert "forgotten" in caplog.text

    async def test_a_plain_task_is_nobodys(self):
        """A20: what a task starts with ``create_task`` is not tracked: nobody waits for it, nothing counts it."""
        started = []

        async def starts():
            started.append(asyncio.get_running_loop().create_task(forever()))

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(starts)
            await supervisor.drain()
            assert not started[0].done()
        started[0].cancel()

    async def test_views_of_views(self):
        """S7: views nested in views are the same context: counts, tasks, hooks and end."""
        told = []
        async with Supervisor() as supervisor:
            with supervisor.context("label") as ctx:
                view = ctx
                for depth in range(20):
                    view = view.with_options(name=f"depth {depth}")
                view.on_error(told.append)
                handle = view.defer(fine)
                assert (view.id, view.label, view.pending, view.tasks) == (ctx.id, "label", 1, (handle,))
                assert handle.name == "depth 19"
                ctx.defer(_boom)
                report = asyncio.ensure_future(view.drained())
                await turns(2)
            assert (await report).finished == 1
            with pytest.raises(ContextClosedError):
                view.defer(fine)
        assert len(told) == 1


class TestVariables:
    async def test_a_copy_each(self):
        """A61, S6: a task has the variables of its registration; what it sets reaches nobody."""
        seen = []

        async def looks(mine):
            seen.append(value.get())
            value.set(mine)
            await turns(3)
            assert value.get() == mine

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                value.set("handler")
                handles = [ctx.defer(looks, "a"), ctx.defer(looks, "b"), ctx.wait_until(looks("c"))]
                value.set("later")
            assert await settled(*handles) == [TaskState.SUCCEEDED] * 3
            assert value.get() == "later"
        assert seen == ["handler"] * 3

    async def test_in_threads(self):
        """S6, S13: functions in threads see the variables of their registration, and change none."""

        def looks(mine):
            before = value.get()
            value.set(mine)
            return before, current_context() is ctx, current_task() is not None

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                value.set("handler")
                handles = [ctx.defer(looks, number) for number in range(5)]
                value.set("later")
            assert [await handle for handle in handles] == [("handler", True, True)] * 5

    async def test_of_each_attempt(self):
        """A61: an attempt sees what it set in the one before, as in any coroutine that loops; nobody else does."""
        from deferred import Retry

        seen = []

        async def fails():
            seen.append(value.get())
            value.set("mine")
            raise OSError

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                value.set("handler")
                policy = Retry(on=OSError, wait_initial=0, wait_max=0)
                handle = ctx.with_options(retry=policy).defer(fails)
                other = ctx.defer(_get)
            await settled(handle)
            assert await other == "handler"
        assert seen[0] == "handler"

    async def test_the_task_of_this_code(self):
        """S6: `current_task` is the task whose code runs, not the one whose variables were copied."""
        seen = {}

        async def parent():
            seen["parent"] = current_task()
            seen["child"] = (defer(child), None)

        async def child():
            seen["child"] = (seen["child"][0], current_task())

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(parent)
            await idle(supervisor)
        assert seen["parent"] is handle
        assert seen["child"][0] is seen["child"][1]
        assert current_task() is None


class TestThreads:
    async def test_many_at_once(self):
        """A39, A40, S6: threads register at the same time; each task runs once, with its thread's variables."""
        ran, barrier = [], threading.Barrier(8)

        async def note(what):
            ran.append((what, value.get()))

        def register(ctx, number):
            value.set(number)
            barrier.wait()
            for index in range(20):
                ctx.defer(note, (number, index))

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                loop = asyncio.get_running_loop()
                pool = [threading.Thread(target=register, args=(ctx, number)) for number in range(8)]
                for thread in pool:
                    thread.start()
                for thread in pool:
                    await loop.run_in_executor(None, thread.join)
                assert ran == []
            await idle(supervisor)
        assert sorted(ran) == sorted(((number, index), number) for number in range(8) for index in range(20))
        for number in range(8):
            assert [what[1] for what, _ in ran if what[0] == number] == list(range(20))
        assert ctx.pending == 0

    async def test_a_coroutine_from_a_thread(self):
        """A39: a coroutine made in a thread is started on the loop."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = await asyncio.to_thread(lambda: ctx.wait_until(fine("from a thread")))
                assert await handle == "from a thread"

    async def test_refused_in_a_thread(self):
        """A37, A48: a thread gets the same refusals, at its call."""
        async with Supervisor(max_per_context=1) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(fine)
                error = await asyncio.to_thread(_error_of, lambda: ctx.defer(fine))
                assert type(error).__name__ == "TaskRejectedError"
            await idle(supervisor)
            error = await asyncio.to_thread(_error_of, lambda: ctx.defer(fine))
            assert type(error) is ContextClosedError
        error = await asyncio.to_thread(_error_of, lambda: ctx.wait_until(fine()))
        assert type(error) in {SupervisorClosedError, ContextClosedError}
        assert nothing_left(supervisor)

    async def test_its_context_ends_as_it_looks(self):
        """S6, A37: a thread that finds its context open, which then ends, is refused: what has settled stays so."""

        class Lock:
            def __init__(self):
                self.lock, self.asked, self.go = threading.Lock(), threading.Event(), threading.Event()

            def __enter__(self):
                if threading.current_thread() is not threading.main_thread():
                    self.asked.set()
                    self.go.wait()
                self.lock.acquire()

            def __exit__(self, *_):
                self.lock.release()

        told = Told()
        async with Supervisor(hooks=[told]) as supervisor:
            lock = supervisor._launcher.lock = Lock()
            with supervisor.context() as ctx:
                registering = asyncio.create_task(asyncio.to_thread(_error_of, lambda: ctx.defer(fine)))
                await asyncio.to_thread(lock.asked.wait)
            assert [event.context for event in told.of(ContextSettled)] == [ctx]
            lock.go.set()
            assert type(await registering) is ContextClosedError
            await idle(supervisor)
        assert len(told.of(ContextSettled)) == 1

    async def test_its_context_ends_as_it_is_counted(self, monkeypatch):
        """S6: a context that ends while a thread registers has settled when that work has: it is told once."""
        met = threading.Event()

        class Lock:
            def __init__(self):
                self.lock = threading.Lock()

            def __enter__(self):
                if threading.current_thread() is threading.main_thread():
                    met.set()
                self.lock.__enter__()  # it is not held for long

            def __exit__(self, *_):
                self.lock.release()

        def end():
            ctx.end()
            met.set()

        def admit(self, task, context):
            loop.call_soon_threadsafe(end)
            met.wait()
            return admitted(self, task, context)

        told = Told()
        loop = asyncio.get_running_loop()
        async with Supervisor(hooks=[told]) as supervisor:
            supervisor._launcher.lock = Lock()
            with supervisor.context() as ctx:
                admitted = type(supervisor._launcher).admit
                with monkeypatch.context() as patch:
                    patch.setattr(type(supervisor._launcher), "admit", admit)
                    handle = await asyncio.to_thread(ctx.defer, fine)
                await settled(handle)
            await idle(supervisor)
        kinds = [type(event) for event in told.seen if isinstance(event, TaskSucceeded | ContextSettled)]
        assert kinds == [TaskSucceeded, ContextSettled]

    def test_no_loop_at_all(self):
        """A41: without any loop registering says so, and the coroutine is closed."""
        supervisor = Supervisor()
        with supervisor.context() as ctx:
            coroutine = fine()
            with pytest.raises(EventLoopError, match="no asyncio event loop"):
                ctx.wait_until(coroutine)
            with pytest.raises(EventLoopError, match="no asyncio event loop"):
                ctx.defer(fine)
            assert coroutine.cr_frame is None


class TestMarks:
    async def test_nested(self):
        """S2: a marked function called by another runs its own steps its way, and then the outer mark holds again."""
        seen = []

        @execution.sequential
        async def inner(ctx):
            seen.append((await ctx.run(fine)).execution.value)

        @execution.concurrent
        async def outer(ctx):
            seen.append((await ctx.run(fine)).execution.value)
            await inner(ctx)
            seen.append((await ctx.run(fine)).execution.value)

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                await outer(ctx)
        assert seen == ["concurrent", "sequential", "concurrent"]

    @pytest.mark.parametrize("mark", [execution.sequential, execution.concurrent, execution.fire_and_forget])
    async def test_raising(self, mark):
        """S2: a marked function that raises leaves the mark of the one that called it."""

        @mark
        async def inner():
            raise OSError

        @execution.deferred
        async def outer(ctx):
            with pytest.raises(OSError):
                await inner()
            return await ctx.run(fine)

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = await outer(ctx)
        assert handle.execution.value == "deferred"

    async def test_fire_and_forget_and_the_end(self):
        """S2: a fire-and-forget step outlives no supervisor: no drain waits for it, and its end is recorded."""

        @execution.fire_and_forget
        async def handler(ctx):
            return await ctx.run(forever)

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = await handler(ctx)
            await turns(3)
            report = await supervisor.drain()
            assert (report.cancelled, report.abandoned) == ((), ())
            assert not handle.done()
        await until(handle.done)
        assert handle.state in {TaskState.ABANDONED, TaskState.CANCELLED}
        assert nothing_left(supervisor)


async def _boom():
    raise OSError


async def _get():
    return value.get()


def _error_of(call):
    try:
        return call()
    except Exception as error:  # noqa: BLE001  # the test looks at it
        return error
