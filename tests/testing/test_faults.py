"""Failures on demand, and retries that take no time."""

import asyncio
import time
import traceback

import pytest

from deferred import (
    NonRetryableError,
    Outcome,
    Retry,
    Supervisor,
    TaskRetrying,
    TaskState,
    current_context,
    defer,
    sequential,
)
from deferred.testing import Kit, UnfinishedWorkWarning, create_context, wait_on_context
from tests.testing.support import BoomError, boom, fine, forever, send_mail


async def test_a_task_fails_so_often_and_then_succeeds():
    """RT-26: two failures on demand, then the function itself."""
    ctx = create_context()
    fault = ctx.kit.fail(fine, BoomError("on demand"), times=2)
    async with ctx:
        handle = ctx.with_options(retry=Retry(on=BoomError)).defer(fine, "at last")
    assert handle.result() == "at last"
    assert handle.attempts == 3
    assert fault.struck == 2
    assert [str(event.error) for event in ctx.kit.of(TaskRetrying)] == ["on demand"] * 2


async def test_a_task_fails_for_good_on_demand():
    """That is expected: nothing is raised, and every error hook is told."""
    told = []
    ctx = create_context(supervisor=Supervisor(on_error=told.append))
    ctx.kit.fail("named", OSError)
    async with ctx:
        handle = ctx.with_options(name="named").defer(fine)
        other = ctx.defer(fine)
    assert handle.state is TaskState.FAILED
    assert other.state is TaskState.SUCCEEDED
    assert [type(event.error) for event in told] == [OSError]
    assert ctx.kit.errors == [told[0].error]


async def test_an_error_that_is_raised_often_does_not_grow():
    """One exception object for every attempt: its traceback is that of the last one."""
    error, depths = BoomError("always"), []

    def depth(event):
        depths.append(len(traceback.extract_tb(event.error.__traceback__)))

    depth.events = (TaskRetrying,)
    ctx = create_context(supervisor=Supervisor(hooks=[depth], retry=Retry(on=BoomError, attempts=5)))
    ctx.kit.fail(fine, error)
    async with ctx:
        ctx.defer(fine)
    assert len(depths) == 4
    assert len(set(depths)) == 1


async def test_faults_strike_awaitables_and_sequential_steps():
    """An awaitable is not awaited then, and a step raises in the handler."""

    @sequential
    async def handler():
        await current_context().run(fine)

    ctx = create_context()
    ctx.kit.fail(fine, BoomError)
    async with ctx:
        handle = ctx.wait_until(fine())
        with pytest.raises(BoomError):
            await handler()
    assert handle.state is TaskState.FAILED


async def test_faults_are_inside_the_middleware():
    """What guards, times or translates attempts sees the failure as if the function had raised it."""
    seen = []

    async def translate(task, call_next):
        try:
            return await call_next()
        except OSError as error:
            seen.append(error)
            raise NonRetryableError from error

    ctx = create_context(supervisor=Supervisor(middleware=[translate], retry=Retry(on=Exception)))
    ctx.kit.fail(fine, OSError)
    with pytest.raises(NonRetryableError):
        async with ctx:
            handle = ctx.with_options(middleware=[translate]).defer(fine)
    assert handle.attempts == 1
    assert len(seen) == 1


async def test_the_first_fault_that_is_left_strikes():
    """Faults of one function are used up in the order they were made."""
    ctx = create_context()
    ctx.kit.fail(fine, OSError, times=1)
    ctx.kit.fail(fine, BoomError, times=1)
    async with ctx:
        ctx.with_options(retry=Retry(on=Exception, attempts=5)).defer(fine)
    assert [type(event.error) for event in ctx.kit.of(TaskRetrying)] == [OSError, BoomError]


@pytest.mark.looptime
async def test_a_task_hangs_on_demand():
    """Its timeout cuts the attempt, and the next one is well."""
    ctx = create_context()
    ctx.kit.hang(fine, times=1)
    async with ctx:
        handle = ctx.with_options(timeout=2, retry=Retry(on=OSError)).defer(fine, 1)
    assert handle.result() == 1
    assert handle.attempts == 2


@pytest.mark.looptime
async def test_a_task_that_hangs_for_ever_is_cancelled_by_the_drain():
    """The app's own drain has its deadline, and its report names the task."""
    with Kit() as kit:
        kit.hang(send_mail)
        async with Supervisor(drain_timeout=3) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(send_mail, "a@example.org")
            report = await supervisor.drain()
    assert [task.name for task in report.cancelled] == ["send_mail"]


@pytest.mark.looptime
async def test_a_task_is_slow_on_demand():
    """It begins late, by as much as was asked for."""
    loop = asyncio.get_running_loop()
    started = []

    async def note():
        started.append(loop.time())

    ctx = create_context()
    ctx.kit.slow(note, 2.5)
    begun = loop.time()
    async with ctx:
        ctx.defer(note)
    assert started[0] - begun == pytest.approx(2.5, abs=0.01)


@pytest.mark.parametrize("delay", [-1, float("inf"), True, "1"])
async def test_a_delay_that_is_none_is_refused(delay):
    """By name."""
    with pytest.raises((TypeError, ValueError), match="delay"):
        create_context().kit.slow(fine, delay)


# -- the clock -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["no route", int, 0])
async def test_what_is_no_error_is_refused(error):
    """Where the test says so, and not in the task."""
    with Kit() as kit, pytest.raises(TypeError, match="an exception, or a class of exceptions, not with"):
        kit.fail(fine, error)


async def test_retries_take_no_time_and_the_delays_are_known():
    """RT-04: an hour of backoff passes at once, and each wait can be asserted."""
    started = time.monotonic()
    policy = Retry(on=BoomError, attempts=5, wait_initial=600, wait_max=3600, wait_jitter=0, timeout=None)
    ctx = create_context()
    ctx.kit.fail(fine, BoomError, times=4)
    async with ctx:
        handle = ctx.with_options(retry=policy).defer(fine)
    assert handle.attempts == 5
    assert ctx.kit.delays == [600, 1200, 2400, 3600]
    assert ctx.kit.clock.ahead == pytest.approx(7800, abs=60)
    assert time.monotonic() - started < 3600


async def test_a_retry_after_is_jumped_over_too():
    """RT-13: the delay that a predicate returns is one of them."""
    ctx = create_context()
    ctx.kit.fail(fine, BoomError, times=1)
    async with ctx:
        ctx.with_options(retry=Retry(on=lambda error: 1800.0, timeout=None)).defer(fine)
    assert ctx.kit.delays == [1800]


async def test_the_total_time_of_a_policy_counts_what_was_jumped_over():
    """A task gives up after as many attempts as it would in real time."""
    policy = Retry(
        on=BoomError, attempts=None, wait_initial=1000, wait_exp_base=1, wait_max=1000, wait_jitter=0, timeout=4500
    )
    ctx = create_context()
    ctx.kit.fail(fine, BoomError)
    async with ctx:
        handle = ctx.with_options(retry=policy).defer(fine)
    assert handle.attempts == 5
    assert handle.outcome is Outcome.EXHAUSTED_DEADLINE


async def test_tasks_that_wait_together_wait_once():
    """The clock jumps to where the longest wait ends, not over the sum of all."""
    policy = Retry(on=BoomError, wait_initial=1000, wait_max=1000, wait_jitter=0, timeout=None)
    ctx = create_context()
    ctx.kit.fail(fine, BoomError, times=3)
    async with ctx:
        for _ in range(3):
            ctx.with_options(retry=policy).defer(fine)
    assert ctx.kit.delays == [1000, 1000, 1000]
    assert ctx.kit.clock.ahead == pytest.approx(1000, abs=60)


async def test_a_drain_that_begins_after_a_jump_has_its_own_time():
    """The drain's deadline is told by the same clock: a retry within it is made."""
    policy = Retry(on=BoomError, attempts=3, wait_initial=150, wait_max=150, wait_jitter=0, timeout=None)
    with Kit() as kit:
        kit.fail(fine, BoomError, times=1)
        kit.fail(send_mail, BoomError, times=1)
        async with Supervisor(retry=policy, drain_timeout=200) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(fine)
            await kit.wait()
            with supervisor.context() as ctx:
                handle = ctx.defer(send_mail, "a")
        assert handle.state is TaskState.SUCCEEDED
        assert kit.clock.ahead == pytest.approx(300, abs=60)


@pytest.mark.looptime
async def test_retries_can_take_their_time():
    """``backoff="wait"``: the delays pass, and are noted all the same."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    ctx = create_context(backoff="wait", timeout=1000)
    ctx.kit.fail(fine, BoomError, times=1)
    async with ctx:
        ctx.with_options(retry=Retry(on=BoomError, wait_initial=30, wait_max=30, wait_jitter=0)).defer(fine)
    assert loop.time() - begun == pytest.approx(30, abs=0.1)
    assert ctx.kit.delays == [30]
    assert ctx.kit.clock.ahead == 0


@pytest.mark.looptime
async def test_a_wait_between_attempts_can_be_cancelled():
    """A task that is cancelled as it waits is not woken by the clock."""
    ctx = create_context(backoff="wait")
    ctx.kit.fail(fine, BoomError)
    with ctx:
        handle = ctx.with_options(retry=Retry(on=BoomError, wait_initial=3, wait_jitter=0)).defer(fine)
    await asyncio.sleep(1)
    handle.cancel()
    await wait_on_context(ctx)
    assert handle.state is TaskState.CANCELLED


async def test_errors_that_are_allowed_are_not_raised():
    """By their classes, a group by those of all its members; others are."""

    async def boom_in_group(other):
        raise ExceptionGroup("several", [BoomError(), ExceptionGroup("inner", [other()])])

    with Kit() as kit:
        kit.allow_errors(BoomError)
        async with kit.context():
            defer(boom)
        await kit.wait()
        with pytest.raises(KeyError):
            async with kit.context():
                defer({}.__getitem__, "missing")
        with pytest.raises(ExceptionGroup):
            async with kit.context():
                defer(boom_in_group, KeyError)
        async with kit.context():
            defer(boom_in_group, BoomError)
        kit.allow_errors()
        async with kit.context():
            defer({}.__getitem__, "missing")


async def test_leftovers_that_are_allowed_are_not_told():
    """What hangs is cut all the same."""
    with Kit(timeout=0.01) as kit:
        kit.allow_leftovers()
        async with kit.context():
            handle = defer(forever)
        await kit.wait()
    assert handle.state is TaskState.CANCELLED


async def test_an_error_that_was_awaited_is_seen():
    """``await handle`` has raised it in the test: nobody else has to."""
    with Kit() as kit:
        ctx = kit.context()
        handle = ctx.defer(boom)
        ctx.close()
        with pytest.raises(BoomError):
            await handle
        await kit.wait()


async def test_waiting_for_everything():
    """``kit.wait()`` waits for the work of every supervisor, and raises what any of it has raised."""
    with Kit(timeout=0.05) as kit:
        async with Supervisor() as one, Supervisor() as other:
            with one.context() as ctx:
                ctx.defer(boom)
            with other.context() as ctx:
                ctx.defer(boom)
                ctx.defer(forever)
            with (
                pytest.warns(UnfinishedWorkWarning, match="'forever'") as warned,
                pytest.raises(ExceptionGroup, match="2 deferred tasks failed"),
            ):
                await kit.wait()
            assert warned[0].filename == __file__
            await kit.wait(1)
        with pytest.raises(ValueError, match="timeout"):
            await kit.wait(-1)


async def test_a_synchronous_wait_is_refused_where_a_loop_runs():
    """It would wait for the loop that it blocks."""
    with Kit() as kit:
        ctx = kit.context()
        ctx.defer(fine)
        ctx.close()
        with pytest.raises(RuntimeError, match="without `_sync`"):
            kit.wait_sync()
        with pytest.raises(RuntimeError, match="without `_sync`"):
            kit.captured.run_sync()
        await kit.wait()
