"""Plain async functions: consumers, cron jobs, Lambda-style handlers, by ``supervisor.wrap``."""

import asyncio
import contextlib

import pytest

from deferred import (
    ContextClosedError,
    DeferredContext,
    Supervisor,
    TaskUnfinishedError,
    current_context,
    defer,
    fire_and_forget,
    sequential,
    wait_until,
)
from tests.integrations.asgi_client import turns
from tests.integrations.script import BoomError


async def test_a_call_returns_when_its_work_is_done(script):
    """VP-14: the deferred work starts after the function and is done before the caller has the answer."""
    supervisor = Supervisor()

    @supervisor.wrap
    async def handle(message):
        defer(script.work, message)
        assert script.noted == []
        return message.upper()

    assert await handle("hello") == "HELLO"
    assert script.noted == ["hello"]
    assert handle.__name__ == "handle"


async def test_a_failing_call_runs_its_work_and_raises(script):
    """VP-14: the work runs as well when the function raises, by its policy; the caller gets the very exception."""
    supervisor = Supervisor()
    error = BoomError("ours")

    @supervisor.wrap
    async def handle():
        for when in ("always", "success", "error"):
            current_context().with_options(when=when).defer(script.work, when)
        raise error

    with pytest.raises(BoomError) as caught:
        await handle()
    assert caught.value is error
    assert script.noted == ["always", "error"]


async def test_nested_calls_drain_from_the_inside(script):
    """B38: contexts nest; the inner call's work is done before the outer function goes on, the outer's after it."""
    supervisor = Supervisor()
    contexts = []

    @supervisor.wrap
    async def inner():
        contexts.append(current_context())
        defer(script.work, "inner")

    @supervisor.wrap
    async def outer():
        contexts.append(current_context())
        defer(script.work, "outer")
        await inner()
        assert current_context() is contexts[0]
        script.note("goes on")

    await outer()
    assert script.noted == ["inner", "goes on", "outer"]
    assert contexts[0] is not contexts[1]
    assert all(isinstance(context, DeferredContext) for context in contexts)


async def test_a_wrapped_function_inside_a_task_of_another(script):
    """B38: a deferred task may call a wrapped function; it waits for that one's own work."""
    supervisor = Supervisor()

    @supervisor.wrap
    async def inner():
        defer(script.work, "inner")

    async def task():
        await inner()
        script.note("task")

    @supervisor.wrap
    async def outer():
        defer(task)

    await outer()
    assert script.noted == ["inner", "task"]


async def test_a_consumer_handles_messages_at_a_time(script):
    """VP-07: overlapping calls keep their work apart: each returns when its own is done, whatever the others do."""
    supervisor = Supervisor()
    gates = {name: asyncio.Event() for name in ("slow", "quick")}

    async def work(name):
        await gates[name].wait()
        script.note(name)

    @supervisor.wrap
    async def handle(name):
        defer(work, name)

    slow, quick = (asyncio.get_running_loop().create_task(handle(name)) for name in gates)
    gates["quick"].set()
    await quick
    assert script.noted == ["quick"]
    assert not slow.done()
    gates["slow"].set()
    await slow
    assert script.noted == ["quick", "slow"]


def test_a_lambda_style_handler_is_run_again_and_again(script):
    """A module's supervisor serves one event loop after another, as a function's host starts them."""
    supervisor = Supervisor()
    done = []

    async def work(event):
        await asyncio.sleep(0)
        done.append(event["id"])

    @supervisor.wrap
    async def handle(event, context):
        defer(work, event)
        wait_until(work({"id": f"now {event['id']}"}))
        return {"statusCode": 200, "left": context["left"]}

    def handler(event, context):
        return asyncio.run(handle(event, context))

    for number in (1, 2):
        assert handler({"id": number}, {"left": 9}) == {"statusCode": 200, "left": 9}
    assert sorted(map(str, done)) == ["1", "2", "now 1", "now 2"]
    assert supervisor.stats().succeeded == 4


def test_a_cron_job_fails_with_what_failed_in_the_background():
    """ST-03, ST-04: ``strict=True`` raises what deferred work raised: one as itself, several as a group."""
    supervisor = Supervisor()

    async def fails(error):
        raise error

    async def job(*errors):
        defer(fails, errors[0])
        for error in errors[1:]:
            wait_until(fails(error))

    one, two = ValueError("one"), KeyError("two")
    with pytest.raises(ValueError, match="one") as caught:
        asyncio.run(supervisor.wrap(job, strict=True)(one))
    assert caught.value is one
    with pytest.raises(ExceptionGroup) as group:
        asyncio.run(supervisor.wrap(job, strict=True)(one, two))
    assert set(group.value.exceptions) == {one, two}
    asyncio.run(supervisor.wrap(job)(one, two))


@pytest.mark.parametrize("mark", [sequential, fire_and_forget])
async def test_a_strict_call_does_not_fail_with_what_nobody_waits_for(mark):
    """S2, ST-03: the failure of a step in line is its handler's to judge, that of a fire-and-forget step nobody's."""
    told = []
    supervisor = Supervisor(on_error=told.append)

    async def fails():
        raise BoomError

    @mark
    async def job():
        with contextlib.suppress(BoomError):
            await current_context().run(fails)
        while not told:
            await asyncio.sleep(0)
        return "done"

    assert await supervisor.wrap(job, strict=True)() == "done"
    assert len(told) == 1


@pytest.mark.looptime
async def test_a_call_is_bounded(script):
    """S11: work that does not end is cut at the supervisor's ``drain_timeout``, and the call returns all the same."""
    supervisor = Supervisor(drain_timeout=5)

    async def never():
        try:
            await asyncio.Event().wait()
        finally:
            script.note("cut")

    @supervisor.wrap
    async def handle():
        defer(never)
        return "done"

    began = asyncio.get_running_loop().time()
    assert await handle() == "done"
    assert asyncio.get_running_loop().time() - began == pytest.approx(5, abs=0.1)
    assert script.noted == ["cut"]


@pytest.mark.looptime
async def test_a_strict_call_is_told_of_work_that_was_cut():
    """S11: ``strict=True`` raises for what the deadline cut, ended or left behind, beside what failed."""
    supervisor = Supervisor(drain_timeout=5, cancel_grace=1)

    async def stubborn():
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    async def fails():
        raise BoomError

    async def job(*works):
        for work in works:
            defer(work)

    with pytest.raises(
        TaskUnfinishedError, match=r"task 'Event\.wait' .* was cut at the deadline of the drain, 5 s old"
    ):
        await supervisor.wrap(job, strict=True)(asyncio.Event().wait)
    with pytest.raises(ExceptionGroup) as caught:
        await supervisor.wrap(job, strict=True)(asyncio.Event().wait, stubborn, fails)
    assert sorted(type(error).__name__ for error in caught.value.exceptions) == [
        "BoomError",
        "TaskUnfinishedError",
        "TaskUnfinishedError",
    ]
    await supervisor.wrap(job)(asyncio.Event().wait)


async def test_a_cancelled_call_gives_up_its_work(script):
    """C22: a host that cancels the call while its work is drained gets its cancellation; what is left is abandoned."""
    supervisor = Supervisor()
    handles = []

    @supervisor.wrap
    async def handle():
        handles.append(defer(asyncio.Event().wait))

    call = asyncio.get_running_loop().create_task(handle())
    await turns(10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert handles[0].state.name == "ABANDONED"


async def test_a_context_that_got_away_takes_no_more(script):
    """A37: the context of a call that is over refuses work, and says what to do."""
    supervisor = Supervisor()
    kept = []

    @supervisor.wrap
    async def handle():
        kept.append(current_context())

    await handle()
    with pytest.raises(ContextClosedError, match="handle has ended"):
        kept[0].defer(script.work)


def plain():
    """Be no coroutine function."""


def generator():
    """Be a generator."""
    yield


async def async_generator():
    """Be an asynchronous generator."""
    yield


@pytest.mark.parametrize("function", [plain, generator, async_generator, "handle"])
def test_only_async_functions_are_wrapped(function):
    """A33: a generator has no one end to wait for, and a plain function no loop: refused, with the mend."""
    mend = "iterates over it" if function in {generator, async_generator} else "async def"
    with pytest.raises(TypeError, match=mend):
        Supervisor().wrap(function)
