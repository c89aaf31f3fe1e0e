"""NX: callables, awaitables, and what keeps them alive."""

import asyncio
import contextvars

import pytest

from deferred import ContextClosed, ContextSettled, EventLoopError, NoCurrentContextError, Supervisor, defer
from deferred.integrations.asgi import DeferredMiddleware
from tests.integrations.asgi_client import Client, idle, turns
from tests.integrations.raw_app import answer, finish

variable = contextvars.ContextVar("variable", default="unset")


async def test_no_callable_starts_while_the_response_is_open(supervisor, script):
    """NX-01: two callables wait for the close, the awaitable does not, and each runs exactly once."""
    with supervisor.context() as ctx:
        ctx.defer(script.work, "a")
        ctx.wait_until(script.work("awaitable"))
        ctx.defer(script.work, "b")
        await turns(10)
        assert script.noted == ["awaitable"]
    await idle(supervisor)
    assert script.noted == ["awaitable", "a", "b"]


@pytest.mark.parametrize("count", [1, 2, 100])
async def test_any_number_of_callables_is_one_close_and_one_settlement(watched, told, script, count):
    """NX-02: however many callables there are, the context closes once and settles once, after all of them."""
    with watched.context() as ctx:
        for number in range(count):
            ctx.defer(script.work, str(number))
    await idle(watched)
    assert len(script.noted) == count
    assert len(told.of(ContextClosed)) == 1
    assert told.of(ContextSettled) == [told[-1]]


async def test_a_handler_that_raises_has_its_callables_run_after_the_close(supervisor, script, errors):
    """NX-04: a callable runs once after the close of a handler that raised, whose exception stays out of it."""
    with pytest.raises(ZeroDivisionError), supervisor.context() as ctx:
        handle = ctx.defer(script.work)
        await turns(5)
        assert script.noted == []
        raise ZeroDivisionError
    await handle
    report = await ctx.drained()
    assert script.noted == ["work"]
    assert (report.finished, report.failed, errors) == (1, 0, [])


async def test_a_context_without_work_binds_nothing():
    """NX-05: before the first registration, mid-stream here, nothing of the event loop is used."""
    supervisor = Supervisor()
    seen = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        seen.append((supervisor._launcher.loop, len(asyncio.all_tasks())))
        defer(turns, 1)
        seen.append((supervisor._launcher.loop, len(asyncio.all_tasks())))
        await send({"type": "http.response.body", "body": b"b"})

    supervisor._launcher.opened = True  # it is never opened here, and warns of that once bound
    await finish(DeferredMiddleware(app, supervisor))
    await idle(supervisor)
    (before, tasks), (after, tasks_later) = seen
    assert before is None
    assert after is asyncio.get_running_loop()
    assert tasks == tasks_later, "waiting for the close takes no asyncio task"


async def test_a_nested_callable_is_covered_by_the_same_drain(supervisor, script):
    """NX-07: what a callable registers after it has awaited runs once, and the drain of its context waits for it."""

    async def outer():
        await turns(3)
        ctx.defer(script.work, "nested")

    with supervisor.context() as ctx:
        ctx.defer(outer)
    report = await ctx.drained()
    assert script.noted == ["nested"]
    assert report.finished == 2


async def test_a_nested_callable_waits_for_its_registering_line(supervisor, script, gate):
    """NX-08: a nested callable does not run before its registering line is reached."""

    async def outer():
        await gate.wait()
        script.note("registering")
        ctx.defer(script.work, "nested")

    with supervisor.context() as ctx:
        ctx.defer(outer)
    await turns(10)
    assert script.noted == []
    gate.set()
    await ctx.drained()
    assert script.noted == ["registering", "nested"]


async def test_an_awaitable_may_register_a_callable_after_the_close(supervisor, script, gate):
    """NX-10: where only awaitables had been registered, a callable that one of them adds later runs, and is awaited."""

    async def awaitable():
        await gate.wait()
        ctx.defer(script.work, "added")

    with supervisor.context() as ctx:
        ctx.wait_until(awaitable())
    await turns(5)
    assert ctx.closed
    gate.set()
    assert (await ctx.drained()).finished == 2
    assert script.noted == ["added"]


async def test_a_callable_registered_after_the_close_starts_on_a_later_turn(supervisor, script):
    """NX-11: it never starts inside the registering call, nor on the same turn."""

    async def outer():
        ctx.defer(script.work, "nested")
        script.note("registered")

    with supervisor.context() as ctx:
        ctx.defer(outer)
    await ctx.drained()
    assert script.noted == ["registered", "nested"]
    assert script.turn_of("nested") > script.turn_of("registered")


def raises_at_once():
    """Fail in the call, not in a coroutine."""
    raise ValueError("at once")


async def raises_later():
    """Fail in the coroutine."""
    raise KeyError("later")


async def mixed_failures(supervisor, script):
    """Register every kind of failure between two tasks that are well; return the errors."""
    failed = asyncio.get_running_loop().create_future()
    failed.set_exception(OSError("already"))
    with supervisor.context() as ctx:
        ctx.defer(script.work, "first")
        handles = [ctx.defer(raises_at_once), ctx.defer(raises_later), ctx.wait_until(failed)]
        ctx.defer(script.work, "last")
    report = await ctx.drained()
    assert (report.finished, report.failed) == (2, 3)
    return [handle.error for handle in handles]


async def test_mixed_failures_stop_nobody(supervisor, script):
    """NX-13: a callable that raises, one whose coroutine raises and a failed awaitable leave the others running."""
    await mixed_failures(supervisor, script)
    assert script.noted == ["first", "last"]


async def test_each_failure_is_told_once_with_its_own_exception(supervisor, script, errors):
    """NX-14: the error hook gets each of them exactly once, the original object."""
    raised = await mixed_failures(supervisor, script)
    assert {type(error) for error in raised} == {ValueError, KeyError, OSError}
    assert sorted(id(event.error) for event in errors) == sorted(id(error) for error in raised)


def test_without_an_event_loop_registering_raises_at_the_call(script):
    """NX-16: with no loop and nothing that could keep work alive, registration raises and nothing runs."""
    with pytest.raises(NoCurrentContextError):
        defer(script.work)
    with Supervisor().context() as ctx, pytest.raises(EventLoopError, match="no asyncio event loop"):
        ctx.defer(script.work)
    assert ctx.tasks == ()
    assert script.noted == []


async def test_the_callable_sees_the_identical_objects_of_its_request(supervisor):
    """NX-17: a context variable's value in the callable is the very object of the registration."""
    value, seen = object(), []

    async def look():
        seen.append(variable.get())

    with supervisor.context() as ctx:
        variable.set(value)
        ctx.defer(look)
        variable.set("another")
    await ctx.drained()
    assert seen[0] is value


async def test_a_nested_callable_sees_the_variables_of_its_own_registration(supervisor):
    """NX-19: the values are those at the nested registration, and siblings share nothing."""
    seen = []

    async def look():
        seen.append(variable.get())

    async def outer(name):
        variable.set(name)
        await turns(2)
        ctx.defer(look)
        variable.set("after")

    with supervisor.context() as ctx:
        variable.set("request")
        ctx.defer(outer, "a")
        ctx.defer(outer, "b")
        ctx.defer(look)
    await ctx.drained()
    assert seen == ["request", "a", "b"]


async def test_an_awaitable_alone_needs_no_close(supervisor, script):
    """NX-20: an awaitable runs to its end while the context stays open."""
    with supervisor.context() as ctx:
        handle = ctx.wait_until(script.work())
        await handle
        assert not ctx.closed
        assert ctx.tasks == ()


@pytest.mark.parametrize("value", [None, 1, "text", [], {}, object()], ids=repr)
async def test_what_is_neither_callable_nor_awaitable_is_rejected(supervisor, value):
    """NX-22: both entry points refuse it at the call, and name its type."""
    with supervisor.context() as ctx:
        for register in (ctx.defer, ctx.wait_until):
            with pytest.raises(TypeError, match=type(value).__name__):
                register(value)
        assert ctx.tasks == ()


async def test_a_raising_error_hook_is_contained(script, caplog):
    """NX-23: it is logged with the original as its cause, and the other hooks, tasks and the drain go on."""
    original, told = ValueError("original"), []

    async def fails():
        raise original

    def broken(event):
        raise RuntimeError("the hook")

    async with Supervisor(on_error=[broken, told.append]) as supervisor:
        with supervisor.context() as ctx:
            ctx.defer(fails)
            ctx.defer(script.work)
        report = await ctx.drained()
    assert (report.finished, report.failed) == (1, 1)
    assert [event.error for event in told] == [original]
    (logged,) = [record.exc_info[1] for record in caplog.records if record.message.startswith("hook")]
    assert isinstance(logged, RuntimeError)
    assert logged.__cause__ is original


@pytest.mark.parametrize("count", [3, 100])
async def test_callables_start_in_the_order_of_registration(supervisor, script, gate, count):
    """NX-25: FIFO whatever their number and kind of options, and all of them concurrently."""

    async def work(number):
        script.note(number)
        await gate.wait()

    with supervisor.context() as ctx:
        for number in range(count):
            view = ctx.with_options(timeout=5) if number % 3 == 1 else ctx
            view.defer(work, number)
    await turns(30)
    assert script.noted == list(range(count))
    assert supervisor.stats().running == count
    gate.set()
    await ctx.drained()


async def test_callables_of_an_app_start_in_the_order_of_registration(supervisor, script):
    """NX-25: so they do behind the middleware, when tasks add to them."""

    async def parent(name):
        script.note(name)
        defer(script.work, f"child of {name}")

    async def app(scope, receive, send):
        for name in "abc":
            defer(parent, name)
        await answer(send, 200, b"")

    await Client(DeferredMiddleware(app, supervisor)).get("/")
    await idle(supervisor)
    assert script.noted == ["a", "b", "c", "child of a", "child of b", "child of c"]


async def test_a_callable_cancelled_before_the_close_never_runs(supervisor, script):
    """NX-01: called exactly once, unless it is cancelled first; its neighbours are."""
    with supervisor.context() as ctx:
        ctx.defer(script.work, "before")
        handle = ctx.defer(script.work, "cancelled")
        ctx.defer(script.work, "after")
        assert handle.cancel()
        assert handle.done()
    await idle(supervisor)
    assert script.noted == ["before", "after"]
