"""What becomes of deferred work: run, run inline, captured."""

import asyncio
import functools
import gc
import threading

import pytest

from deferred import (
    Execution,
    Limit,
    Retry,
    Supervisor,
    TaskDeferred,
    TaskEvent,
    TaskStarted,
    TaskState,
    concurrent,
    current_context,
    current_task,
    defer,
    fire_and_forget,
    sequential,
    wait_until,
)
from deferred.testing import Kit, UnfinishedWorkWarning, create_context, wait_on_context
from tests.testing.support import BoomError, boom, fine, forever

# -- inline ----------------------------------------------------------------------------------


async def test_inline_work_is_over_when_its_context_is_closed():
    """Not a turn of the loop is needed: what waits for nothing has run, in order, when the block is left."""
    ran = []

    async def note(what):
        ran.append(what)

    with create_context("inline"):
        for number in range(3):
            defer(note, number)
        assert ran == []
    assert ran == [0, 1, 2]


async def test_inline_work_of_inline_work_is_over_too():
    """What a task defers runs inside its ``defer``."""
    ran = []

    async def outer():
        ran.append("outer begins")
        defer(inner)
        ran.append("outer ends")

    async def inner():
        ran.append("inner")

    with create_context("inline"):
        defer(outer)
    assert ran == ["outer begins", "inner", "outer ends"]


async def test_inline_plain_functions_run_on_the_loop():
    """A plain function needs no thread then; what it returns is awaited where it can be."""
    threads = []

    def note():
        threads.append(threading.current_thread())

    def give():
        return fine("given")

    with create_context("inline"):
        first = defer(note)
        second = defer(functools.partial(give))
    assert threads == [threading.current_thread()]
    assert first.name.endswith("note")
    assert second.name.endswith("give")
    assert second.result() == "given"


async def test_inline_work_that_waits_goes_on_by_itself():
    """What has to wait is begun inside the closing call, and waited for like any other."""
    gate = asyncio.Event()
    ran = []

    async def wait():
        ran.append("begun")
        async with asyncio.timeout(5):
            await gate.wait()
        ran.append(asyncio.current_task().get_name())

    ctx = create_context("inline")
    with ctx:
        handle = defer(wait)
    assert ran == ["begun"]
    assert handle.state is TaskState.RUNNING
    gate.set()
    await wait_on_context(ctx)
    assert ran == ["begun", handle.name]


async def test_inline_work_has_its_own_asyncio_task():
    """It is not the caller's, whose timeouts and cancellation are not the work's."""
    seen = []

    async def look():
        seen.append((asyncio.current_task(), current_task()))

    ctx = create_context("inline")
    with ctx:
        handle = defer(look)
    assert asyncio.current_task() is not seen[0][0]
    assert seen[0][1] is handle


async def test_inline_failures_touch_nobody():
    """S4: the block is left in peace, the others run, and the wait raises it."""
    ctx = create_context("inline")
    with ctx:
        failed = defer(boom)
        other = defer(fine)
    assert (failed.state, other.state) == (TaskState.FAILED, TaskState.SUCCEEDED)
    with pytest.raises(BoomError):
        await wait_on_context(ctx)


async def test_inline_retries_follow_at_once():
    """An attempt that failed is repeated without a wait."""
    ctx = create_context("inline")
    ctx.kit.fail(fine, BoomError, times=2)
    with ctx:
        handle = ctx.with_options(retry=Retry(on=BoomError)).defer(fine)
    await wait_on_context(ctx)
    assert handle.attempts == 3


@pytest.mark.looptime
async def test_inline_work_can_be_cancelled():
    """A task that waits gets its CancelledError, whether or not the loop has turned since it began."""
    ends = []

    async def wait():
        try:
            await forever()
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    ctx = create_context("inline")
    with ctx:
        at_once, later = defer(wait), defer(wait)
    at_once.cancel()
    await asyncio.sleep(1)
    later.cancel()
    await wait_on_context(ctx)
    assert ends == ["cancelled", "cancelled"]
    assert at_once.state is later.state is TaskState.CANCELLED


async def test_inline_awaitables_start_inside_the_call():
    """``wait_until`` starts now, and now is now."""
    ran = []

    async def note():
        ran.append(1)

    async with create_context("inline"):
        wait_until(note())
        assert ran == [1]


async def test_inline_work_respects_when():
    """Work that does not match the outcome is discarded as ever."""
    ctx = create_context("inline")
    with pytest.raises(KeyError):
        async with ctx:
            on_success = ctx.with_options(when="success").defer(fine)
            on_error = ctx.with_options(when="error").defer(fine)
            raise KeyError
    assert (on_success.state, on_error.state) == (TaskState.DISCARDED, TaskState.SUCCEEDED)


async def test_inline_limits_hold():
    """One slot: the second task waits for the first."""
    async with Supervisor(max_running=1) as supervisor:
        with Kit("inline") as kit:
            with supervisor.context() as ctx:
                first, second = ctx.defer(asyncio.sleep, 0), ctx.defer(fine)
            assert (first.state, second.state) == (TaskState.RUNNING, TaskState.PENDING)
            await kit.wait()
    assert second.state is TaskState.SUCCEEDED


def test_inline_in_a_synchronous_test():
    """The work of a synchronous test is over when the block is left."""
    ran = []
    with create_context("inline"):
        defer(ran.append, 1)
        defer(ran.append, 2)
    assert ran == [1, 2]


# -- capture ---------------------------------------------------------------------------------


async def test_captured_work_does_not_run():
    """It is recorded, in order, and nothing waits for it: neither the context nor the drain."""
    ran = []
    async with Supervisor() as supervisor:
        with Kit("capture") as kit, supervisor.context() as ctx:
            first = ctx.defer(ran.append, 1)
            second = ctx.defer(ran.append, 2)
        report = await ctx.drained()
        assert list(kit.captured) == []  # the kit has let go of them
        kit.assert_deferred(ran.append, 1)
    assert ran == []
    assert report.finished == 0
    assert first.state is second.state is TaskState.PENDING


async def test_captured_work_runs_on_demand():
    """``captured.run()`` runs it as it would have been run: attempts, middleware, events, what it registers."""
    ran = []

    async def outer(what):
        ran.append(what)
        defer(ran.append, "inner")

    async with create_context("capture") as ctx:
        handle = ctx.with_options(retry=Retry(on=BoomError)).defer(outer, "outer")
        ctx.kit.fail(outer, BoomError, times=1)
    assert len(ctx.kit.captured) == 1
    assert ctx.kit.captured[0] is handle
    assert list(ctx.kit.captured[:1]) == [handle]
    await ctx.kit.captured.run()
    assert ran == ["outer", "inner"]
    assert handle.attempts == 2
    assert len(ctx.kit.captured) == 0
    assert len(ctx.kit.of(TaskStarted)) == 3


async def test_captured_work_is_picked_by_function_or_name():
    """Only what was asked for runs; the rest stays captured."""
    ctx = create_context("capture")
    async with ctx:
        one = ctx.defer(fine, 1)
        two = ctx.with_options(name="second").defer(boom)
        three = ctx.defer(fine, 3)
    await ctx.kit.captured.run(fine)
    assert [handle.done() for handle in (one, two, three)] == [True, False, True]
    with pytest.raises(BoomError):
        await ctx.kit.captured.run("second")


async def test_captured_work_that_was_cancelled_does_not_run():
    """The test, or the code under test, may cancel what is captured."""
    ran = []
    async with create_context("capture") as ctx:
        handle = ctx.defer(ran.append, 1)
    handle.cancel()
    await ctx.kit.captured.run()
    assert ran == []
    assert handle.state is TaskState.CANCELLED


async def test_captured_awaitables_are_closed_in_the_end():
    """A coroutine that never ran is closed, and Python has nothing to warn of."""
    ran = []

    async def note():
        ran.append(1)

    with Kit("capture") as kit:
        async with kit.context() as ctx:
            ctx.wait_until(note())
            handle = ctx.wait_until(note())
        kit.assert_deferred_times(2, note)
        await kit.captured.run()
        assert ran == [1, 1]
        assert handle.done()
        ctx = kit.context()
        ctx.wait_until(note())
    assert ran == [1, 1]


@pytest.mark.parametrize(("execution", "held"), [(concurrent, True), (fire_and_forget, True), (sequential, False)])
async def test_captured_steps_of_every_execution(execution, held):
    """What the route's decorator starts is captured; what it awaits is part of the handler, and runs."""
    ran = []

    @execution
    async def handler():
        await current_context().run(ran.append, 1)

    async with create_context("capture") as ctx:
        await handler()
    assert ran == ([] if held else [1])
    assert len(ctx.kit.captured) == held
    await ctx.kit.captured.run()
    assert ran == [1]


def test_captured_in_a_synchronous_test():
    """What was registered is known inside the block, and can be run after it."""
    ran = []
    with create_context("capture") as ctx:
        defer(ran.append, 1)
        ctx.kit.assert_deferred(ran.append, 1)
    assert ran == []
    ctx.kit.captured.run_sync()
    assert ran == [1]


def test_captured_work_of_a_synchronous_test_may_fail():
    """What it raises is raised."""
    with create_context("capture") as ctx:
        defer(boom)
    with pytest.raises(BoomError):
        ctx.kit.captured.run_sync()


async def test_captured_names_with_limits():
    """A limit of a name counts what is captured as waiting, as it is."""
    async with Supervisor(limits={"fine": Limit(running=1)}) as supervisor:
        with Kit("capture") as kit:
            with supervisor.context() as ctx:
                handles = [ctx.defer(fine), ctx.defer(fine)]
            await kit.wait()
            await kit.captured.run()
    assert all(handle.state is TaskState.SUCCEEDED for handle in handles)


# -- how modes are scoped ----------------------------------------------------------------------


async def test_a_mode_can_be_changed_for_what_has_not_started():
    """``kit.mode`` holds for what starts from then on."""
    ran = []
    with Kit() as kit:
        ctx = kit.context()
        ctx.defer(ran.append, 1)
        kit.mode = "capture"
        await wait_on_context(ctx)
    assert ran == []


@pytest.mark.parametrize(
    "options", [{"mode": "eager"}, {"backoff": "never"}, {"timeout": 0}, {"timeout": float("nan")}]
)
def test_what_no_kit_can_be_is_refused(options):
    """The message names the argument."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Kit(**options)


async def test_the_last_kit_decides_and_the_others_see():
    """Kits nest; each leaves the supervisor as it was."""
    async with Supervisor() as supervisor:
        kind, plain, now = type(supervisor._launcher), supervisor._launcher.plain, supervisor._launcher.now
        with Kit() as outer:
            outer.fail(fine, BoomError)
            with Kit("capture") as inner, supervisor.context() as ctx:
                ctx.defer(fine)
            await asyncio.sleep(0)
            inner.assert_deferred(fine)
            outer.assert_deferred(fine)
            with supervisor.context() as ctx:
                handle = ctx.defer(fine)
            await outer.wait()
            assert handle.state is TaskState.FAILED  # as the outer one has it
        launcher = supervisor._launcher
        assert (type(launcher), launcher.plain, launcher.now) == (kind, plain, now)
        with supervisor.context() as ctx:
            handle = ctx.defer(fine)
        await ctx.drained()
    assert handle.state is TaskState.SUCCEEDED


async def test_a_kit_is_not_told_of_work_from_before():
    """What a supervisor had accepted when the kit came is another test's."""
    gate = asyncio.Event()
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            ctx.defer(gate.wait)
        await asyncio.sleep(0)
        with Kit(timeout=0.01) as kit:
            await kit.wait()
            kit.assert_nothing_deferred()
            gate.set()
            await ctx.drained()
            assert kit.of(TaskEvent) == []


async def test_a_kit_watches_supervisors_made_later():
    """A supervisor that the code under test makes is watched from the start."""
    with Kit("capture") as kit:
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(fine)
        kit.assert_deferred(fine)
    assert Supervisor()._launcher.plain


async def test_concurrent_contexts_have_modes_of_their_own():
    """Scoped by the supervisor of each, not by the process."""
    ran = []

    async def one(mode):
        async with create_context(mode):
            defer(ran.append, mode)
            await asyncio.sleep(0)

    await asyncio.gather(one("run"), one("capture"), one("inline"))
    assert sorted(ran) == ["inline", "run"]


def test_work_on_a_loop_that_stands_still_is_waited_for():
    """TH-07: between two calls of a loop its work waits; a synchronous wait turns the loop."""
    loop = asyncio.new_event_loop()

    async def register():
        with supervisor.context() as ctx:
            return ctx.defer(some_turns)

    with Kit() as kit:
        supervisor = Supervisor()
        handle = loop.run_until_complete(register())
        asyncio.run(kit.wait())  # another loop, which can do nothing for it
        assert not handle.done()
        kit.wait_sync()
    loop.close()
    assert handle.result() == "done"


def test_work_on_a_closed_loop_can_never_end():
    """B40: it is told of, once, and what was captured there runs on a loop of its own."""
    loop = asyncio.new_event_loop()

    async def register(scope):
        with scope as ctx:
            return ctx.defer(some_turns)

    with Kit() as kit:
        supervisor = Supervisor()
        lost = loop.run_until_complete(register(supervisor.context()))
        kit.mode = "capture"
        loop.run_until_complete(register(Supervisor().context()))
        loop.close()
        with pytest.warns(UnfinishedWorkWarning, match="'some_turns' .* can never end"):
            kit.wait_sync()
        kit.wait_sync()
        kit.captured.run_sync()
    assert not lost.done()
    assert [task.done() for task in kit.tasks] == [False, True]
    del lost, supervisor, kit
    gc.collect()  # what is told as abandoned by then is told here, and in no other test


async def some_turns():
    """Take more turns of the loop than a call that ends leaves it."""
    for _ in range(10):
        await asyncio.sleep(0)
    return "done"


async def test_work_that_a_hook_cancels_never_starts():
    """A hook that is told of a task may cancel it: nothing is captured then."""
    with Kit("capture") as kit:
        async with Supervisor(hooks=[cancel_at_once]) as supervisor:
            with supervisor.context() as ctx:
                await ctx.run(fine)
                ctx.route = Execution.CONCURRENT
                handle = await ctx.run(fine)
        assert list(kit.captured) == []
    assert handle.state is TaskState.CANCELLED


def cancel_at_once(event):
    """Cancel every task as it is registered."""
    if isinstance(event, TaskDeferred):
        event.task.cancel()
