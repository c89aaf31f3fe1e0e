"""What may be a hook, and what each is told: A24, A48, S16."""

import asyncio
import contextlib
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest

from deferred import (
    Event,
    Supervisor,
    TaskDeferred,
    TaskFailed,
    TaskRejectedError,
    TaskStarted,
    TaskState,
    TaskSucceeded,
    defer,
)
from tests.faults.support import (
    BareError,
    BoomError,
    Told,
    boom,
    fine,
    nothing_left,
    settled,
    until,
)

ERRORS = [RuntimeError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, BareError, StopIteration]


class TestKinds:
    @pytest.mark.parametrize("make", [Mock, MagicMock, AsyncMock])
    async def test_mocks(self, make):
        """A24: a mock is a hook like any other."""
        hook, error_hook = make(), make()
        async with Supervisor(hooks=[hook], on_error=error_hook) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(boom)
            await settled(handle)
        assert error_hook.call_count == 1
        assert any(isinstance(call.args[0], TaskFailed) for call in hook.call_args_list)

    async def test_a_recorder_with_a_list_of_events(self):
        """S16: an object that keeps what it is told in a list called ``events`` is told everything."""

        class Recorder:
            def __init__(self):
                self.events = []

            def __call__(self, event):
                self.events.append(event)

        recorder = Recorder()
        async with Supervisor(hooks=[recorder]) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(fine)
            await settled(handle)
        assert {TaskDeferred, TaskSucceeded} <= {type(event) for event in recorder.events}

    async def test_a_hook_refused_is_not_installed(self):
        """A24: what `add_hook` refuses is not installed, and work goes on."""

        class Bad:
            events = (3,)

            def __call__(self, event):
                raise AssertionError

        async with Supervisor() as supervisor:
            with contextlib.suppress(TypeError):
                supervisor.add_hook(Bad())
            with supervisor.context() as ctx:
                handle = ctx.defer(boom)
            assert await settled(handle) == [TaskState.FAILED]
        assert nothing_left(supervisor)

    async def test_what_is_no_function(self):
        """A24: what cannot be called is refused where it is given."""
        for bad in (3, "name", None, [3]):
            with pytest.raises(TypeError):
                Supervisor(hooks=[bad])
        with pytest.raises(TypeError):
            Supervisor(on_error=3)

    async def test_a_future_as_the_answer(self):
        """A24: a hook may return any awaitable; what it raises is contained."""
        future = asyncio.get_running_loop().create_future()
        async with Supervisor(on_error=lambda event: future) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(boom)
            await settled(handle)
            future.set_exception(BoomError())
        assert handle.state is TaskState.FAILED

    async def test_told_in_order(self):
        """S16: each task's events come in the order of its life, and the last of them once."""
        told = Told()
        async with Supervisor(hooks=[told]) as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.defer(fine) for _ in range(10)]
            await settled(*handles)
        for handle in handles:
            mine = [type(event) for event in told.seen if getattr(event, "task", None) is handle]
            assert mine == [TaskDeferred, TaskStarted, TaskSucceeded]
        assert all(isinstance(event, Event) for event in told.seen)

    async def test_out_of_scope_with_async_hooks_in_a_thread(self):
        """S8: work ignored in a thread tells asynchronous hooks too, or nobody, without a warning."""
        told = []

        async def hook(event):
            told.append(event)

        async with Supervisor(out_of_scope="ignore", hooks=[hook]):
            handle = await asyncio.to_thread(_defer_outside)
            await until(handle.done)
        assert handle.state is TaskState.DISCARDED
        assert [event.task for event in told if hasattr(event, "task")] == [handle]

    async def test_rejections_are_told(self):
        """A48: a hook is told of what was refused, with the error that was raised."""
        from deferred import TaskRejected

        told = Told()
        async with Supervisor(max_per_context=1, hooks=[told]) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(fine)
                with pytest.raises(TaskRejectedError) as refused:
                    ctx.defer(fine)
        assert [event.error for event in told.of(TaskRejected)] == [refused.value]


def _defer_outside():
    import contextvars

    return contextvars.Context().run(defer, fine)


async def test_a_hook_that_is_told_of_a_success_may_register_more_than_there_is_room_for():
    """S10: Work that a hook of a success registers waits for the slot that this very task gives back."""
    ran = []

    async def more():
        ran.append("more")

    def hook(event):
        if len(ran) < 2:
            ran.append("told")
            contexts[0].wait_until(more())

    hook.events = (TaskSucceeded,)
    contexts = []
    async with Supervisor(max_running=1, hooks=[hook]) as supervisor:
        with supervisor.context() as ctx:
            contexts.append(ctx)
            ctx.defer(fine)
        await until(lambda: ran == ["told", "more"])
        await until(lambda: nothing_left(supervisor))
    assert supervisor.stats().succeeded == 2
