"""Contexts of a test's own, and waiting for them."""

import asyncio
import warnings

import pytest

from deferred import (
    ContextClosedError,
    DeferredContext,
    Retry,
    Supervisor,
    TaskState,
    current_context,
    defer,
)
from deferred.testing import Kit, TestContext, UnfinishedWorkWarning, create_context, wait_on_context
from tests.testing.support import BoomError, boom, fine, forever


async def test_waiting_drains_recursively():
    """TH-01: what is deferred by deferred work is waited for, five deep."""
    depth = []

    async def deeper(level):
        await asyncio.sleep(0)
        depth.append(level)
        if level < 5:
            defer(deeper, level + 1)

    ctx = create_context()
    ctx.defer(deeper, 1)
    await wait_on_context(ctx)

    assert depth == [1, 2, 3, 4, 5]


async def test_nothing_starts_before_the_wait():
    """What is deferred starts when the context is closed, which waiting for it does."""
    ran = []

    async def note():
        ran.append(1)

    ctx = create_context()
    ctx.defer(note)
    await asyncio.sleep(0)
    assert not ctx.closed
    assert ran == []
    await wait_on_context(ctx)
    assert ctx.closed
    assert ran == [1]


async def test_one_failure_is_raised_as_the_same_object():
    """TH-02: the exception is the very one that the task raised."""
    error = BoomError("the one")

    async def fail():
        raise error

    ctx = create_context()
    ctx.defer(fail)
    ctx.defer(fine)
    with pytest.raises(BoomError) as caught:
        await wait_on_context(ctx)

    assert caught.value is error


async def test_several_failures_are_raised_as_a_group():
    """TH-03: all of them are in it, in the order they came."""
    ctx = create_context()
    ctx.defer(boom, "one")
    ctx.defer(fine)
    ctx.wait_until(boom("two"))
    with pytest.raises(ExceptionGroup) as caught:
        await wait_on_context(ctx)

    assert {str(error) for error in caught.value.exceptions} == {"one", "two"}
    assert all(isinstance(error, BoomError) for error in caught.value.exceptions)


async def test_a_failure_is_raised_once():
    """AW-05: waiting again finds nothing new, and runs nothing twice."""
    runs = []

    async def fail():
        runs.append(1)
        raise BoomError

    ctx = create_context()
    ctx.defer(fail)
    with pytest.raises(BoomError):
        await wait_on_context(ctx)
    await wait_on_context(ctx)
    assert runs == [1]


async def test_a_base_exception_is_raised_too():
    """What is no `Exception` is raised as itself, or in a group of the wider kind."""

    async def leave(code):
        raise SystemExit(code)

    ctx = create_context()
    ctx.defer(leave, 1)
    with pytest.raises(SystemExit):
        await wait_on_context(ctx)
    ctx = create_context()
    ctx.defer(leave, 1)
    ctx.defer(boom)
    with pytest.raises(BaseExceptionGroup) as caught:
        await wait_on_context(ctx)
    assert len(caught.value.exceptions) == 2


@pytest.mark.looptime
async def test_what_hangs_is_named():
    """TH-04: the wait returns after the cap, and warns of how many, which, and where they were deferred."""
    ctx = create_context()
    stuck = ctx.defer(forever)
    done = ctx.defer(fine)
    with pytest.warns(UnfinishedWorkWarning) as warned:
        await wait_on_context(ctx, 3)

    text = str(warned[0].message)
    assert "1 piece(s) of deferred work are unfinished after 3 s" in text
    assert "'forever'" in text
    assert stuck.site in text
    assert "fine" not in text
    assert warned[0].filename == __file__
    assert (stuck.state, done.state) == (TaskState.CANCELLED, TaskState.SUCCEEDED)


@pytest.mark.looptime
async def test_work_of_the_abandoned_is_abandoned_too():
    """TH-05: what hanging work registers as it is cancelled is cut as well, and the wait ends."""
    late = []

    async def stubborn():
        try:
            await forever()
        finally:
            late.append(defer(forever))

    ctx = create_context()
    ctx.defer(stubborn)
    with pytest.warns(UnfinishedWorkWarning, match="2 piece"):
        await wait_on_context(ctx, 1)
    assert late[0].done()
    assert not ctx.tasks


@pytest.mark.looptime
async def test_work_that_ignores_its_cancellation_is_given_up():
    """TH-05: a task that goes on all the same does not hold up the test."""

    async def deaf():
        while True:
            try:
                await forever()
            except asyncio.CancelledError:
                if over:
                    raise

    over = []
    ctx = create_context()
    handle = ctx.defer(deaf)
    with pytest.warns(UnfinishedWorkWarning, match="ignored its cancellation"):
        await wait_on_context(ctx, 1)
    assert handle.state is TaskState.ABANDONED
    over.append(True)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


@pytest.mark.parametrize("foreign", [None, object(), 1, "ctx", DeferredContext, {}])
async def test_what_is_no_context_is_refused(foreign):
    """TH-06: a foreign object is a TypeError that names its type."""
    with pytest.raises(TypeError, match=f"not a {type(foreign).__name__}"):
        await wait_on_context(foreign)


async def test_a_wait_is_refused_a_timeout_that_is_none():
    """A negative cap is refused by name."""
    with pytest.raises(ValueError, match="timeout"):
        await wait_on_context(create_context(), -1)


async def test_after_the_wait_nothing_is_accepted():
    """AW-04: the context has ended, and says so."""
    ctx = create_context()
    await wait_on_context(ctx)
    with pytest.raises(ContextClosedError):
        ctx.defer(fine)
    with pytest.raises(RuntimeError, match="has ended"):
        async with ctx:
            pass


async def test_as_a_context_manager_it_is_the_current_context():
    """Code that was never handed the context finds it, and leaving waits for its work."""
    async with create_context(label="import") as ctx:
        assert current_context() is ctx
        handle = defer(fine, 7)
    assert handle.result() == 7
    assert ctx.label == "import"
    with pytest.raises(LookupError):
        current_context()


async def test_leaving_raises_what_the_work_has_raised():
    """The block was fine and its work was not: that is raised."""
    with pytest.raises(BoomError):
        async with create_context() as ctx:
            ctx.defer(boom)


async def test_the_errors_of_the_block_go_first():
    """The block has raised: that is what counts, and its work has run all the same."""
    with pytest.raises(KeyError):
        async with create_context() as ctx:
            failed = ctx.defer(boom)
            raise KeyError
    assert failed.state is TaskState.FAILED


async def test_a_plain_block_ends_the_context_and_does_not_wait():
    """``with`` on a running loop: the work starts on the next turn, and can be waited for."""
    with create_context() as ctx:
        handle = defer(fine)
    assert not handle.done()
    await wait_on_context(ctx)
    assert handle.done()


def test_a_synchronous_test_has_a_context_too():
    """Without an event loop ``with`` runs one in a thread, and waits for the work."""
    seen = []

    async def note(what):
        await asyncio.sleep(0)
        seen.append(what)

    with create_context() as ctx:
        defer(note, 1)
        defer(seen.append, 2)
    assert sorted(seen) == [1, 2]
    assert ctx.closed


def test_a_synchronous_test_sees_the_errors():
    """TH-02, TH-03: as in an asynchronous one."""
    error = BoomError("mine")

    def fail():
        raise error

    with pytest.raises(BoomError) as caught, create_context():
        defer(fail)
    assert caught.value is error
    with pytest.raises(ExceptionGroup, match="2 deferred tasks failed"), create_context():
        defer(fail)
        defer(boom)
    with pytest.raises(KeyError), create_context():
        defer(fail)
        raise KeyError


def test_a_synchronous_test_is_told_what_hangs():
    """TH-04: at the end of the block."""
    with pytest.warns(UnfinishedWorkWarning, match="'forever'") as warned, create_context(timeout=0.01):
        defer(forever)
    assert warned[0].filename == __file__


async def test_the_context_of_a_supervisor_is_waited_for_too():
    """TH-08: any context will do; it is closed by the wait, and the supervisor is as it was afterwards."""
    async with Supervisor() as supervisor:
        kind = type(supervisor._launcher)
        with supervisor.context() as ctx:
            ctx.defer(boom)
            view = ctx.with_options(name="named")
            view.defer(fine)
            with pytest.raises(BoomError):
                await wait_on_context(view)
        assert not ctx.tasks
        assert type(supervisor._launcher) is kind
        assert supervisor._launcher.plain


async def test_errors_from_before_the_wait_are_known_where_a_kit_watches():
    """A kit has seen what failed before anybody waited."""
    with Kit() as kit:
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(boom)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not ctx.tasks
            with pytest.raises(BoomError):
                await wait_on_context(ctx)
            await kit.wait()


async def test_a_supervisor_of_ones_own():
    """The context has the retries, limits and middleware of the supervisor it was asked of."""
    policy = Retry(on=BoomError, attempts=2)
    async with Supervisor(retry=policy) as supervisor:
        ctx = create_context(supervisor=supervisor)
        handle = ctx.defer(boom)
        with pytest.raises(BoomError):
            await wait_on_context(ctx)
    assert handle.attempts == 2


async def test_a_plain_asyncio_task_inside_a_task_is_detected():
    """A20: what work starts by itself is tracked by nobody; the wait says so, and where it was started."""
    started = []

    async def spawn():
        started.append(asyncio.create_task(forever()))

    ctx = create_context()
    handle = ctx.defer(spawn)
    with pytest.warns(UnfinishedWorkWarning, match="started forever by create_task") as warned:
        await wait_on_context(ctx)
    assert handle.site in str(warned[0].message)
    started[0].cancel()


async def test_an_asyncio_task_that_is_handed_over_is_no_stray():
    """A20: ``wait_until`` makes it a task of the context."""

    async def spawn():
        current_context().wait_until(asyncio.create_task(fine()))

    ctx = create_context()
    ctx.defer(spawn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await wait_on_context(ctx)


async def test_an_asynchronous_hook_is_no_stray():
    """A hook runs in an asyncio task that the work has started in a way, and is waited for."""
    told = []

    async def hook(event):
        await asyncio.sleep(0)
        told.append(event)

    ctx = create_context(supervisor=Supervisor(on_error=hook))
    ctx.defer(boom)
    with pytest.raises(BoomError):
        await wait_on_context(ctx)
    assert len(told) == 1


async def test_it_is_a_context_like_any_other():
    """Code under test that asks for a `DeferredContext` is content."""
    ctx = create_context()
    assert isinstance(ctx, DeferredContext)
    assert isinstance(ctx, TestContext)
    assert "test" in repr(ctx)
