"""VJ and DF-02: what may be registered, with or without a context."""

import gc
import math
import warnings

import pytest

from deferred import NonRetryableError, Retry, Supervisor, defer, wait_until
from tests.integrations.asgi_client import idle, turns


def function():
    """Be a function that was not called."""


VALUES = [{}, lambda: None, function, math.nan, 1, False, None, object(), [], "x"]


@pytest.mark.parametrize("value", VALUES, ids=[type(value).__name__ + str(n) for n, value in enumerate(VALUES)])
async def test_wait_until_refuses_what_cannot_be_awaited(supervisor, value):
    """VJ-01, S3: each of ten values is a TypeError that names the type it got."""
    with supervisor.context() as ctx:
        for register in (ctx.wait_until, wait_until):
            with pytest.raises(TypeError, match=rf"\b{type(value).__name__}\b"):
                register(value)
        assert ctx.tasks == ()


@pytest.mark.parametrize("loop", ["never opened", "opened", "closed again"])
async def test_without_a_context_the_policy_ignore_raises_nothing(script, loop, caplog):
    """VJ-02: whichever way the context is absent, work is ignored, and one warning says so."""
    gc.collect()  # supervisors of other tests
    supervisor = Supervisor(out_of_scope="ignore")
    if loop == "opened":
        supervisor.open()
    elif loop == "closed again":
        async with supervisor, Supervisor():
            pass
    handles = [defer(script.work), wait_until(script.work()), defer(script.work)]
    await turns(5)
    if loop == "opened":
        await supervisor.close()
    assert script.noted == []
    assert [handle.state.value for handle in handles] == ["discarded"] * 3
    assert len([record for record in caplog.records if "ignored" in record.message]) == 1


async def test_the_identical_awaitable_is_awaited(supervisor):
    """VJ-03: what is handed over is itself awaited, once, not a copy or a wrapper."""
    awaited = []

    class Awaitable:
        def __await__(self):
            awaited.append(self)
            return turns(2).__await__()

    awaitable = Awaitable()
    with supervisor.context() as ctx:
        ctx.wait_until(awaitable)
    await idle(supervisor)
    assert [thing is awaitable for thing in awaited] == [True]


@pytest.mark.looptime
async def test_the_deadline_is_readable_as_absolute_time(script):
    """VJ-14: while a drain is under way, work reads on the loop's clock when it will be cancelled; else None."""
    import asyncio

    loop, seen = asyncio.get_running_loop(), []

    async def work():
        seen.append(ctx.deadline)
        await asyncio.sleep(1)
        seen.append(ctx.deadline)

    async with Supervisor(drain_timeout=7) as supervisor:
        with supervisor.context() as ctx:
            assert ctx.deadline is None
            ctx.defer(work)
        await turns(3)
        began = loop.time()
    assert seen == [None, pytest.approx(began + 7)]
    assert ctx.deadline is None


@pytest.mark.parametrize("where", ["method", "function"])
async def test_a_retry_of_an_awaitable_is_refused_at_registration(where, script):
    """DF-02: an awaitable runs once, so asking for its retry is a TypeError that names the mend; it is closed."""
    supervisor = Supervisor()
    async with supervisor:
        with supervisor.context() as ctx, warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(TypeError, match=r"defer\(func"):
                ctx.with_options(retry=Retry(on=ValueError)).wait_until(script.work())
    assert script.noted == []


async def test_a_default_retry_of_the_supervisor_leaves_awaitables_alone(script):
    """DF-02: only what was asked for at this call is refused; a default for functions does not apply."""

    async def fails():
        script.note("try")
        raise NonRetryableError

    async with Supervisor(retry=Retry(on=Exception, wait_initial=0)) as supervisor:
        with supervisor.context() as ctx:
            handles = [ctx.wait_until(fails()), wait_until(fails())]
        await ctx.drained()
    assert script.noted == ["try", "try"]
    assert [handle.attempts for handle in handles] == [1, 1]
