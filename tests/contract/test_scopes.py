"""WD and ST: being inside a unit of work or not, command lines, outcomes."""

import asyncio
import gc
import logging

import pytest

from deferred import (
    ContextSettled,
    NoCurrentContextError,
    Outcome,
    Supervisor,
    TaskEvent,
    TaskState,
    current_context,
    defer,
    wait_until,
)
from tests.integrations.asgi_client import idle, turns


async def fails():
    """Fail."""
    raise ValueError("background")


async def test_outside_any_request_there_is_a_scope_error(supervisor, script):
    """WD-01: each of the three imported functions raises it, and it says what to do."""
    coroutine = script.work()
    for call in (current_context, lambda: defer(script.work), lambda: wait_until(coroutine)):
        with pytest.raises(NoCurrentContextError, match="context"):
            call()
    await turns(3)
    assert script.noted == []


async def test_the_method_and_the_imported_function_both_complete(supervisor, script):
    """WD-02: either form is registered in the same context, in one order."""
    with supervisor.context() as ctx:
        ctx.defer(script.work, "method")
        defer(script.work, "function")
        handles = [ctx.wait_until(script.work("now")), wait_until(script.work("now, too"))]
        assert {handle.context_id for handle in handles} == {ctx.id}
    await ctx.drained()
    assert script.noted == ["now", "now, too", "method", "function"]


async def test_the_imported_function_works_deep_inside_helpers(supervisor, script):
    """WD-03: nobody has to pass the context through."""

    async def deepest():
        defer(script.work)

    async def deeper():
        async with asyncio.TaskGroup() as group:
            group.create_task(deepest())

    with supervisor.context() as ctx:
        await deeper()
        assert len(ctx.tasks) == 1
    await ctx.drained()
    assert script.noted == ["work"]


async def test_a_method_detached_from_its_context_works(supervisor, script):
    """WD-04: it is bound, and stays that of its own context inside another."""
    with supervisor.context() as ctx:
        detached = ctx.defer, ctx.wait_until, ctx.run
        with supervisor.context():
            handles = [
                detached[0](script.work, "a"),
                detached[1](script.work("b")),
                await detached[2](script.work, "c"),
            ]
    await ctx.drained()
    assert {handle.context_id for handle in handles} == {ctx.id}
    assert sorted(script.noted) == ["a", "b", "c"]


async def test_a_context_dropped_without_its_end_is_logged(supervisor, script, caplog):
    """WD-26: the line names it and counts its work, which runs all the same."""
    scope = supervisor.context("nightly")
    ctx = scope.__enter__()
    ctx.defer(script.work)
    del scope, ctx
    gc.collect()
    await idle(supervisor)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "'nightly'" in record.message
    assert "1 task" in record.message
    assert script.noted == ["work"]


async def test_the_outcome_is_one_of_a_closed_set(watched, told, script):
    """WD-27: whatever happens to a task, its outcome is an `Outcome` and its state follows from it."""
    gate = asyncio.Event()

    async def cancels_itself():
        raise asyncio.CancelledError

    with watched.context() as ctx:
        handles = {
            ctx.defer(script.work): Outcome.SUCCEEDED,
            ctx.defer(fails): Outcome.FAILED,
            ctx.defer(cancels_itself): Outcome.CANCELLED_BY_ITSELF,
            ctx.with_options(when="error").defer(script.work): Outcome.DISCARDED_BY_WHEN,
        }
        cancelled = ctx.wait_until(gate.wait())
        await turns(2)
        cancelled.cancel()
        handles[cancelled] = Outcome.CANCELLED_BY_HANDLE
    await ctx.drained()
    for handle, outcome in handles.items():
        assert handle.outcome is outcome
        assert handle.state is outcome.state
    assert all(isinstance(outcome.state, TaskState) for outcome in Outcome)


async def test_the_event_of_the_end_comes_last(watched, told, script):
    """WD-40: after every event of deferred work, nested and failing work included."""

    async def outer():
        await turns(3)
        defer(fails)
        defer(script.work)

    with watched.context() as ctx:
        ctx.defer(outer)
    await idle(watched)
    assert isinstance(told[-1], ContextSettled)
    assert len(told.of(ContextSettled)) == 1
    assert len(told.of(TaskEvent)) >= 9
    assert ctx.tasks == ()


@pytest.mark.parametrize("form", [defer, wait_until])
def test_failing_work_of_a_command_line_fails_the_command(form):
    """ST-03, ST-04: in a strict scope the failure of a callable or awaitable leaves the entry point, as itself."""
    supervisor = Supervisor()

    @supervisor.wrap
    async def lenient():
        form(fails if form is defer else fails())
        return 0

    async def build():
        form(fails if form is defer else fails())
        return 0

    assert asyncio.run(lenient()) == 0
    with pytest.raises(ValueError, match="background"):
        asyncio.run(supervisor.wrap(build, strict=True)())


def test_several_failures_of_a_command_line_come_as_a_group():
    """ST-03: none of them hides another, and work that is well has been waited for."""
    supervisor = Supervisor()
    done = []

    async def works():
        await turns(5)
        done.append("work")

    async def build():
        defer(fails)
        defer(works)
        wait_until(fails())

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(supervisor.wrap(build, strict=True)())
    assert [type(error) for error in caught.value.exceptions] == [ValueError, ValueError]
    assert done == ["work"]


async def test_outside_any_request_the_supervisor_opened_last_decides(script):
    """WD-01: where supervisors take work out of scope, it goes to the open one, not to one that never was."""
    gc.collect()  # supervisors of other tests
    never_opened = Supervisor(out_of_scope="run")
    async with Supervisor(out_of_scope="run") as supervisor:
        defer(script.work)
        await supervisor.drain()
    assert script.noted == ["work"]
    assert supervisor.stats().succeeded == 1
    assert never_opened.stats().succeeded == 0
