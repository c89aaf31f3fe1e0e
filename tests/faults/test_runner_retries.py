"""Retries: A52 to A58 and A70, and policies that hang, raise or return garbage."""

import asyncio
import datetime as dt
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deferred import NonRetryableError, Outcome, Retry, Supervisor, TaskRetrying, TaskState
from tests.faults.support import BareError, BoomError, Told, boom, forever, nothing_left, settled, until

HUGE = pytest.param(10**400, id="huge")
NOW = {"wait_initial": 0, "wait_max": 0}


class Flaky:
    """Fails so many times, then returns."""

    def __init__(self, failures, error=BoomError):
        self.left, self.error, self.calls = failures, error, 0

    async def __call__(self):
        """Be one attempt."""
        self.calls += 1
        if self.calls <= self.left:
            raise self.error
        return self.calls


async def run(work, policy, **options):
    """Run it; return the handle, what hooks were told and the supervisor."""
    told = Told()
    async with Supervisor(hooks=[told], **options) as supervisor:
        with supervisor.context() as ctx:
            handle = ctx.with_options(retry=policy).defer(work)
        await settled(handle)
    assert nothing_left(supervisor)
    return handle, told


class TestAttempts:
    async def test_until_it_works(self):
        """A52: a task that fails twice and then returns has succeeded in three attempts."""
        handle, told = await run(Flaky(2), Retry(on=BoomError, **NOW))
        assert (handle.state, handle.attempts, handle.result(), handle.error) == (TaskState.SUCCEEDED, 3, 3, None)
        assert [event.attempt for event in told.of(TaskRetrying)] == [1, 2]
        assert not told.errors

    async def test_exhausted(self):
        """A53: after the last attempt the hook is told once, with the last error."""
        handle, told = await run(Flaky(9), Retry(on=BoomError, attempts=4, **NOW))
        assert (handle.state, handle.attempts, handle.outcome) == (TaskState.FAILED, 4, Outcome.EXHAUSTED_ATTEMPTS)
        assert told.errors == [handle.error]

    @pytest.mark.parametrize("policy", [Retry(on=BaseException, wait_initial=0), None], ids=["policy", "none"])
    async def test_giving_up_in_a_task_group(self, policy):
        """A08, A56: an error that says so itself is final in whatever group of errors it comes out."""
        attempts = []

        async def gives_up():
            raise NonRetryableError("no such address")

        async def sends():
            attempts.append(1)
            async with asyncio.TaskGroup() as outer:
                outer.create_task(boom())
                async with asyncio.TaskGroup() as inner:
                    inner.create_task(gives_up())

        async with Supervisor(retry=policy) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(sends)
        assert len(attempts) == 1
        assert handle.outcome is Outcome.NON_RETRYABLE
        assert isinstance(handle.error, ExceptionGroup)

    @pytest.mark.parametrize("error", [ValueError, NonRetryableError])
    async def test_not_retryable(self, error):
        """A56: an error that the policy does not name, or that says so itself, is final."""
        handle, told = await run(Flaky(9, error), Retry(on=(BoomError, NonRetryableError), **NOW))
        assert handle.attempts == 1
        assert len(told.errors) == 1

    async def test_a_base_exception_that_is_named(self):
        """S9: an error that `on` names is retried, whatever its class."""
        handle, _ = await run(Flaky(2, BareError), Retry(on=BareError, **NOW))
        assert (handle.state, handle.attempts) == (TaskState.SUCCEEDED, 3)


class TestPredicates:
    @pytest.mark.parametrize("kind", [RuntimeError, SystemExit, asyncio.CancelledError, GeneratorExit, StopIteration])
    @pytest.mark.parametrize("is_async", [True, False])
    async def test_it_raises(self, kind, is_async):
        """A53: a predicate that raises ends the retries; the failure told is the task's own error."""

        def predicate(error):
            raise kind

        async def predicate_async(error):
            raise kind

        handle, told = await run(Flaky(9), Retry(on=predicate_async if is_async else predicate, **NOW))
        assert (handle.state, handle.attempts) == (TaskState.FAILED, 1)
        assert type(handle.error) is BoomError
        assert told.errors == [handle.error]

    @pytest.mark.parametrize(
        "answer",
        [float("nan"), float("inf"), -1.0, -1, dt.timedelta(-1), HUGE],
        ids=str,
    )
    async def test_it_returns_garbage(self, answer):
        """A58: a delay that is no time to wait never becomes a retry."""
        handle, told = await run(Flaky(9), Retry(on=lambda error: answer, **NOW))
        assert (handle.state, handle.attempts) == (TaskState.FAILED, 1)
        assert [type(error) for error in told.errors] == [BoomError]

    @pytest.mark.looptime
    async def test_it_hangs(self):
        """S9: an asynchronous predicate has its limit; then the task has failed with its own error."""

        async def hangs(error):
            await forever()

        told = Told()
        async with Supervisor(hooks=[told], drain_timeout=20) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(retry=Retry(on=hangs, timeout=None)).defer(boom)
            await supervisor.drain()
        assert (handle.state, type(handle.error)) == (TaskState.FAILED, BoomError)
        assert told.errors == [handle.error]

    @pytest.mark.looptime
    async def test_a_delay_it_names(self):
        """S9: a predicate may say after how long, as a number, a timedelta or an awaitable of these."""
        loop = asyncio.get_running_loop()

        async def later(error):
            return 3

        for on, waited in ((lambda error: 7.5, 7.5), (lambda error: dt.timedelta(minutes=1), 60), (later, 3)):
            start = loop.time()
            async with Supervisor(drain_timeout=100) as supervisor:
                with supervisor.context() as ctx:
                    handle = ctx.with_options(retry=Retry(on=on, timeout=None)).defer(Flaky(1))
                assert await handle == 2
            assert loop.time() - start == pytest.approx(waited)


@pytest.mark.looptime
async def test_the_total_time_of_a_policy_of_ones_own():
    """A58, S9: one that is no time is refused where it is given; a timedelta is one."""
    policy = Policy(delay=2)
    for value in (-1, float("nan"), "5"):
        policy.timeout = value
        with pytest.raises((ValueError, TypeError), match="the timeout of the retry policy"):
            Supervisor(retry=policy)
    policy.timeout = dt.timedelta(seconds=3)
    async with Supervisor(retry=policy) as supervisor:
        with supervisor.context() as ctx:
            handle = ctx.defer(Flaky(9))
    assert (handle.attempts, handle.outcome) == (2, Outcome.EXHAUSTED_DEADLINE)


class Policy:
    """A policy of the user's own."""

    def __init__(self, delay=0.0, verdict=True):
        self.attempts, self.timeout = 3, None
        self._delay, self._verdict = delay, verdict

    def verdict(self, error):
        """Judge."""
        return self._verdict

    def exhausted(self, attempts, elapsed):
        """Stop after three."""
        return attempts >= 3

    def delay(self, attempt, error=None):
        """Wait."""
        if isinstance(self._delay, BaseException):
            raise self._delay
        return self._delay


class TestPolicies:
    @pytest.mark.parametrize(
        "delay",
        [float("nan"), float("inf"), -5, "soon", None, HUGE, ZeroDivisionError(), SystemExit(), StopIteration()],
        ids=repr,
    )
    async def test_a_bad_delay(self, delay):
        """A58: a policy whose delay is no time to wait ends the task with the task's own error."""
        handle, told = await run(Flaky(9), Policy(delay))
        assert (handle.state, handle.attempts) == (TaskState.FAILED, 1)
        assert [type(error) for error in told.errors] == [BoomError]

    @example(attempt=100_000, initial=1e-308, most=1e300, base=2.0, jitter=0.0)
    @given(
        attempt=st.integers(1, 10**9),
        initial=st.floats(0, 1e300),
        most=st.floats(0, 1e300),
        base=st.floats(1, 1e300),
        jitter=st.floats(0, 1),
    )
    def test_any_backoff(self, attempt, initial, most, base, jitter):
        """A57: whatever the numbers, a wait lies between 0 and wait_max and nothing overflows."""
        policy = Retry(on=OSError, wait_initial=initial, wait_max=most, wait_exp_base=base, wait_jitter=jitter)
        assert 0 <= policy.delay(attempt) <= most

    @pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), float("-inf"), "1", True, HUGE, None])
    @pytest.mark.parametrize("name", ["wait_initial", "wait_max", "wait_exp_base", "wait_jitter"])
    def test_bad_numbers(self, name, bad):
        """A58: what is no number of seconds is refused where the policy is made."""
        if (name, bad) == ("wait_jitter", True):
            return
        with pytest.raises((TypeError, ValueError)):
            Retry(on=OSError, **{name: bad})

    @pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), "1", True, HUGE])
    async def test_bad_timeouts(self, bad):
        """A58: the same for every timeout that a user can give."""
        supervisor = Supervisor()
        with supervisor.context() as ctx:
            for call in (
                lambda: ctx.with_options(timeout=bad),
                lambda: Supervisor(timeout=bad),
                lambda: Retry(on=OSError, timeout=bad),
                lambda: Supervisor(hook_timeout=bad),
            ):
                with pytest.raises((TypeError, ValueError)):
                    call()

    @pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "1", HUGE])
    async def test_bad_drain_timeouts(self, bad):
        """A58: a drain refuses such a timeout at once, and the next drain works."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                with pytest.raises((TypeError, ValueError)):
                    await supervisor.drain(bad)
                with pytest.raises((TypeError, ValueError)):
                    await ctx.drained(bad)
            assert not supervisor.draining


@pytest.mark.looptime
class TestTime:
    async def test_a_wait_that_a_drain_cannot_outlast(self):
        """A54: a wait that would end after the deadline is cut at once, and told as exhausted."""
        loop = asyncio.get_running_loop()
        async with Supervisor(drain_timeout=20) as supervisor:
            policy = Retry(on=BoomError, wait_initial=30, wait_max=30, wait_jitter=0, timeout=None)
            with supervisor.context() as ctx:
                handle = ctx.with_options(retry=policy).defer(boom)
            await until(lambda: handle.attempts == 1 and handle._backoff)
            await supervisor.drain()
            assert loop.time() == pytest.approx(0)
        assert handle.outcome is Outcome.EXHAUSTED_DEADLINE

    async def test_a_context_drained(self):
        """A54: the same when only the context is drained."""
        loop = asyncio.get_running_loop()
        async with Supervisor() as supervisor:
            policy = Retry(on=BoomError, wait_initial=30, wait_max=30, wait_jitter=0, timeout=None)
            with supervisor.context() as ctx:
                handle = ctx.with_options(retry=policy).defer(boom)
            report = await ctx.drained(10)
            assert loop.time() < 10.5
        assert handle.outcome is Outcome.EXHAUSTED_DEADLINE
        assert report.failed == 1

    async def test_the_wall_clock_jumps(self, monkeypatch):
        """A70: a clock that jumps an hour, back or forth, moves no timeout and no wait."""
        loop = asyncio.get_running_loop()
        policy = Retry(on=BoomError, wait_initial=10, wait_max=10, wait_jitter=0, timeout=100)
        for jump in (-3600, 3600):
            start, flaky = loop.time(), Flaky(2)
            async with Supervisor(drain_timeout=100) as supervisor:
                with supervisor.context() as ctx:
                    handle = ctx.with_options(retry=policy).defer(flaky)
                await until(lambda flaky=flaky: flaky.calls == 1)
                monkeypatch.setattr(time, "time", lambda real=time.time, jump=jump: real() + jump)
                assert await handle == 3
            assert loop.time() - start == pytest.approx(20)

    async def test_each_attempt_has_its_time(self):
        """S9: an attempt that hangs is cut at its timeout and tried again, within the total."""
        loop = asyncio.get_running_loop()
        async with Supervisor(drain_timeout=100) as supervisor:
            policy = Retry(on=BoomError, attempts=3, wait_initial=0, wait_max=0)
            with supervisor.context() as ctx:
                handle = ctx.with_options(retry=policy, timeout=5).defer(forever)
            await supervisor.drain()
            assert loop.time() == pytest.approx(15)
        assert (handle.attempts, type(handle.error)) == (3, TimeoutError)
