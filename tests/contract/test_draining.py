"""AW: waiting for work, and for what it registers."""

import gc
import weakref

import pytest

from deferred import ContextClosedError
from tests.integrations.asgi_client import idle, turns

DEPTH = 5


@pytest.mark.parametrize("how", ["context", "supervisor"])
async def test_a_drain_waits_for_what_work_adds_recursively(supervisor, script, how):
    """AW-01: awaitables that add awaitables, five deep, are all waited for by either drain."""

    async def work(depth):
        await turns(2)
        script.note(depth)
        if depth < DEPTH:
            ctx.wait_until(work(depth + 1))

    with supervisor.context() as ctx:
        ctx.wait_until(work(1))
    report = await (ctx.drained() if how == "context" else supervisor.drain())
    assert script.noted == [1, 2, 3, 4, 5]
    assert report.finished == DEPTH


async def test_the_error_hook_is_called_once_for_each_failure(supervisor, errors):
    """AW-02: failures of work that was added later are told too, each once."""

    async def work(depth):
        await turns(1)
        if depth < DEPTH:
            ctx.wait_until(work(depth + 1))
        raise ValueError(depth)

    with supervisor.context() as ctx:
        ctx.wait_until(work(1))
    report = await ctx.drained()
    assert report.failed == DEPTH
    assert sorted(event.error.args[0] for event in errors) == [1, 2, 3, 4, 5]


async def test_settled_work_is_dropped_at_once(supervisor, script):
    """AW-03: a context that stays open for long keeps neither the handles nor the arguments of settled work."""

    class Argument:
        pass

    async def work(argument):
        pass

    with supervisor.context() as ctx:
        references = []
        for _ in range(50):
            argument = Argument()
            references.append(weakref.ref(argument))
            await ctx.wait_until(work(argument))
            del argument
            assert ctx.tasks == ()
        gc.collect()
        assert [reference() for reference in references] == [None] * 50
        assert not supervisor._launcher.tasks


async def test_deferred_work_is_dropped_at_once_too(supervisor):
    """AW-03: the same for functions, whose arguments nothing of ours keeps."""

    class Argument:
        pass

    async def work(argument):
        pass

    argument = Argument()
    reference = weakref.ref(argument)
    with supervisor.context() as ctx:
        ctx.defer(work, argument)
    del argument
    await idle(supervisor)
    gc.collect()
    assert reference() is None
    assert ctx.tasks == ()


async def test_a_context_that_has_ended_refuses_new_work(supervisor, script):
    """AW-04: once nothing is pending, the error says so and names the mend."""
    with supervisor.context("POST /register") as ctx:
        ctx.defer(script.work)
    await ctx.drained()
    coroutine = script.work("late")
    for register, work in ((ctx.defer, script.work), (ctx.wait_until, coroutine)):
        with pytest.raises(ContextClosedError, match=r"POST /register.*supervisor\.context"):
            register(work)
    await idle(supervisor)
    assert script.noted == ["work"]


async def test_awaiting_a_handle_twice_runs_it_once(supervisor, script):
    """AW-05: a second await gives the same result, and the same error, without another run."""
    error = ValueError()

    async def returns():
        script.note("returns")
        return object()

    async def raises():
        script.note("raises")
        raise error

    with supervisor.context() as ctx:
        good, bad = ctx.defer(returns), ctx.wait_until(raises())
    assert await good is await good
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            await bad
        assert caught.value is error
    assert sorted(script.noted) == ["raises", "returns"]


async def test_draining_a_context_twice_gives_the_same_report(supervisor, script):
    """AW-05: the second wait has nothing to do and reports the same counts."""
    with supervisor.context() as ctx:
        ctx.defer(script.work)
    assert await ctx.drained() == await ctx.drained()
    assert script.noted == ["work"]
