"""Plain functions: A21, A22, A40, S13, and executors that fail, shut down or never answer."""

import asyncio
import concurrent.futures
import gc
import os
import threading

import pytest

from deferred import Supervisor, TaskState
from deferred._offload import DaemonThreads
from tests.faults.support import Told, fine, loop_errors, nothing_left, settled, turns, until

SHORT = {"drain_timeout": 0, "cancel_grace": 0.05}


class Never(concurrent.futures.Executor):
    """Takes everything, answers nothing."""

    def submit(self, fn, /, *args, **kwargs):
        """Promise."""
        return concurrent.futures.Future()


class Refuses(concurrent.futures.Executor):
    """Takes nothing."""

    def __init__(self, error):
        self.error = error

    def submit(self, fn, /, *args, **kwargs):
        """Raise."""
        raise self.error


class Garbage(concurrent.futures.Executor):
    """Answers with what is no future."""

    def submit(self, fn, /, *args, **kwargs):
        """Answer."""
        return 3


def square(number):
    """Be a function that can be sent to a process."""
    return number * number, os.getpid()


class TestExecutors:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: Refuses(RuntimeError("shut down")),
            lambda: Refuses(SystemExit(3)),
            lambda: Refuses(MemoryError()),
            Garbage,
            lambda: _shut(concurrent.futures.ThreadPoolExecutor()),
            lambda: _shut(DaemonThreads()),
        ],
    )
    async def test_that_take_nothing(self, make):
        """S13: an executor that is shut down or fails makes its tasks fail, and coroutines run as before."""
        told = Told()
        async with Supervisor(offload=make(), on_error=told) as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.defer(len, "abc"), ctx.defer(fine)]
            assert await settled(*handles) == [TaskState.FAILED, TaskState.SUCCEEDED]
        assert told.errors == [handles[0].error]
        assert nothing_left(supervisor)

    async def test_that_never_answer(self):
        """A22: work in an executor that never answers is cut by the drain."""
        async with Supervisor(offload=Never(), **SHORT) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(len, "abc")
            await turns(3)
            report = await supervisor.drain()
            assert len(report.cancelled) + len(report.abandoned) == 1
        assert handle.done()
        assert nothing_left(supervisor)

    async def test_no_executor(self):
        """S13: what is no executor is refused."""
        with pytest.raises(TypeError):
            Supervisor(offload=object())


class TestThreads:
    async def test_blocking_at_the_end(self):
        """A22: a thread that blocks is abandoned by the drain, by name, and counted once when it ends late."""
        release, entered = threading.Event(), threading.Event()

        def blocks():
            entered.set()
            release.wait()

        async with Supervisor(**SHORT) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(name="blocks").defer(blocks)
            await until(entered.is_set)
            report = await supervisor.drain()
            assert [task.name for task in report.abandoned] == ["blocks"]
            release.set()
            await turns(10)
            assert handle.state is TaskState.ABANDONED
        assert supervisor.stats().abandoned == 1
        assert nothing_left(supervisor)

    async def test_pending_until_done(self):
        """S13: a thread counts as running until it has returned, also when its task is cancelled."""
        release, entered = threading.Event(), threading.Event()

        def blocks():
            entered.set()
            release.wait()
            return "done"

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(blocks)
            await until(entered.is_set)
            for _ in range(3):
                handle.cancel()
                await turns(5)
            assert supervisor.stats().running == 1
            release.set()
            assert await handle == "done"
        assert nothing_left(supervisor)

    async def test_cancelled_before_its_thread(self):
        """A64, S13: a function that waits for a thread and is cancelled never runs."""
        release, ran = threading.Event(), []
        async with Supervisor(offload=DaemonThreads(1)) as supervisor:
            with supervisor.context() as ctx:
                first, second = ctx.defer(release.wait), ctx.defer(ran.append, 1)
            await turns(5)
            second.cancel()
            assert await settled(second) == [TaskState.CANCELLED]
            release.set()
            await first
        assert ran == []

    @pytest.mark.looptime
    async def test_a_thread_that_fails_after_its_attempt(self, caplog):
        """A65, S13: what a thread raises that a timeout has left behind is logged by us, not lost to the loop."""
        given = []

        class Keeps(concurrent.futures.Executor):
            def submit(self, fn, /, *args, **kwargs):
                given.append(concurrent.futures.Future())
                given[-1].set_running_or_notify_cancel()
                return given[-1]

        async with Supervisor(offload=Keeps()) as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.with_options(timeout=1).defer(len, ()) for _ in range(2)]
            for handle in handles:
                await handle.settled()
            caplog.clear()
            with loop_errors() as loose:
                given[0].set_exception(OSError("late"))
                given[1].set_result("late")
                given.clear()
                await turns(5)
                gc.collect()
        (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
        assert record.getMessage() == "a thread of task 'len', left behind by its attempt, has failed"
        assert str(record.exc_info[1]) == "late"
        assert not loose

    async def test_no_thread_can_be_started(self, monkeypatch):
        """A66, S13: where no thread can be started that task fails and never runs later; the next one runs."""
        ran = []
        async with Supervisor(offload=DaemonThreads(1)) as supervisor:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", _no_thread)
                with supervisor.context() as ctx:
                    failed = ctx.defer(ran.append, "failed")
                assert await settled(failed) == [TaskState.FAILED]
            with supervisor.context() as ctx:
                handle = ctx.defer(ran.append, "next")
            await asyncio.wait_for(_wait(handle), 30)
        assert ran == ["next"]

    async def test_many(self):
        """S13: more functions than threads all run, and nothing is left."""
        async with Supervisor(offload=DaemonThreads(3)) as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.defer(square, number) for number in range(100)]
            assert [(await handle)[0] for handle in handles] == [number**2 for number in range(100)]
        assert nothing_left(supervisor)

    async def test_the_loop_is_free(self):
        """A21: while a plain function blocks its thread, the loop serves everybody else."""
        release = threading.Event()
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                blocked, other = ctx.defer(release.wait), ctx.defer(fine)
            assert await other == "fine"
            assert not blocked.done()
            release.set()
            await blocked


def _no_thread(self):
    raise RuntimeError("can't start new thread")


def _shut(executor):
    executor.shutdown()
    return executor


async def _wait(handle):
    return await handle
