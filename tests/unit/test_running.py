"""How one task runs, where a small slip would go unseen: limits of time, verdicts, threads, middleware."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Executor, Future

import pytest

from deferred import NonRetryableError, Outcome, Retry, Supervisor, TaskState, current_task
from deferred.engines.memory import MemoryEngine
from tests.faults.support import BoomError
from tests.proof.clock import run


async def fine(value="fine"):
    """Succeed."""
    return value


async def boom():
    """Fail."""
    raise BoomError("boom")


class Held(Executor):
    """An executor whose calls have begun, and do not end until somebody says so."""

    def __init__(self):
        self.futures = []

    def submit(self, func, /, *args, **kwargs):
        """Begin it."""
        future = Future()
        future.set_running_or_notify_cancel()
        self.futures.append(future)
        return future


class Strange(Coroutine):
    """A coroutine that another compiler might have made."""

    def __init__(self, inner):
        self.inner = inner

    def send(self, value):
        """Go on."""
        return self.inner.send(value)

    throw = None  # nothing goes wrong
    __await__ = None  # only asyncio waits for it


class TestAttempts:
    @pytest.mark.looptime
    async def test_a_timeout_does_not_wait_for_the_thread(self):
        """S13: an attempt whose time is over ends then, though its thread goes on."""
        threads = Held()
        async with Supervisor(offload=threads) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(timeout=2).defer(len, "four")
            await asyncio.wait([asyncio.ensure_future(handle.settled())], timeout=3)
            assert handle.outcome is Outcome.TIMED_OUT
            threads.futures[0].set_result(4)

    @pytest.mark.parametrize("returned", [1, "text", None])
    async def test_a_middleware_that_is_no_coroutine_function(self, returned):
        """S14: a plain function as middleware fails the task, with the mend and what it returned instead."""

        def middleware(task, call_next):
            return returned

        async with Supervisor(middleware=[middleware]) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(fine)
            await handle.settled()
        text = f"must be an `async def`, it returned {type(returned).__name__}"
        with pytest.raises(TypeError, match=text):
            handle.result()

    async def test_cancelled_in_its_first_step_beside_a_strange_coroutine(self):
        """A task that cancels itself at once is found among asyncio tasks of any kind of coroutine."""
        held = []

        async def cancels():
            held[0].cancel()
            await asyncio.sleep(0)

        async with Supervisor() as supervisor:
            others = [asyncio.Task(Strange(fine())) for _ in range(20)]
            with supervisor.context() as ctx:
                held.append(ctx.defer(cancels))
            await held[0].settled()
            await asyncio.gather(*others)
        assert held[0].outcome is Outcome.CANCELLED_BY_HANDLE

    async def test_a_strange_coroutine_is_no_task_of_ours(self):
        """Code of an asyncio task with any kind of coroutine may ask for the deferred task, and is none."""
        found = []

        async def asks():
            found.append(current_task())

        await asyncio.Task(Strange(asks()))
        assert found == [None]


class TestVerdicts:
    @pytest.mark.looptime
    @pytest.mark.parametrize("delay", [0, 0.0, 3])
    async def test_the_delay_that_a_predicate_returns(self, delay):
        """S9: the predicate's number is the wait, 0 included; a number is never taken for a yes or no."""
        attempts = []

        async def flaky():
            attempts.append(asyncio.get_running_loop().time())
            if len(attempts) == 1:
                raise BoomError

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(retry=Retry(on=lambda error: delay, wait_initial=50)).defer(flaky)
            await ctx.drained(100)
        assert handle.state is TaskState.SUCCEEDED
        assert attempts[1] - attempts[0] == pytest.approx(delay, abs=0.01)

    @pytest.mark.parametrize("wrong", [-1, float("nan"), "soon"])
    async def test_a_delay_that_is_none(self, wrong, caplog):
        """S9: a predicate that returns no number of seconds is a fault of the policy, which the log names."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(retry=Retry(on=lambda error: wrong)).defer(boom)
            await handle.settled()
        assert handle.outcome is Outcome.NON_RETRYABLE
        assert type(handle.error) is BoomError
        assert "the retry policy of task 'boom' failed: the task is not retried" in caplog.text
        assert "the delay that the retry predicate returned must be" in caplog.text

    @pytest.mark.parametrize(
        ("initial", "expected"),
        [(0, 0.0), (0.0, 0.0), (0.1, 5.0)],
    )
    def test_a_wait_beyond_all_numbers(self, initial, expected):
        """S9: where the backoff is more than a float holds the wait is the longest one, and none if it began with 0."""
        policy = Retry(on=BoomError, attempts=None, wait_initial=initial, wait_exp_base=10, wait_jitter=0)
        assert policy.delay(10_000) == expected

    async def test_what_is_not_to_be_retried(self):
        """S9: `NonRetryableError` ends the retries of any policy at once."""

        async def final():
            raise NonRetryableError("no such address")

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(retry=Retry(on=Exception)).defer(final)
            await handle.settled()
        assert (handle.outcome, handle.attempts) == (Outcome.NON_RETRYABLE, 1)

    def test_a_wait_that_would_end_with_all_time(self):
        """S9: no wait is begun that cannot end before the time of all attempts does, to the very second."""

        async def main():
            policy = Retry(on=BoomError, attempts=None, wait_initial=1, wait_max=1, wait_jitter=0, timeout=2)
            async with Supervisor() as supervisor:
                with supervisor.context() as ctx:
                    handle = ctx.with_options(retry=policy).defer(boom)
                await handle.settled()
                return handle, asyncio.get_running_loop().time()

        handle, ended = run(main())
        assert (handle.outcome, handle.attempts, ended) == (Outcome.EXHAUSTED_DEADLINE, 2, 1)

    def test_what_a_policy_is_asked(self):
        """S9: a policy of one's own learns which attempt it was, and how long all of them have taken."""
        asked = []

        class Policy:
            timeout = None

            def verdict(self, error):
                return True

            def exhausted(self, attempt, elapsed):
                asked.append((attempt, elapsed))
                return attempt == 2

            def delay(self, attempt, error):
                return 4

        async def main():
            async with Supervisor() as supervisor:
                await asyncio.sleep(10)
                with supervisor.context() as ctx:
                    handle = ctx.with_options(retry=Policy()).defer(boom)
                await handle.settled()
                return handle.outcome

        assert run(main()) is Outcome.EXHAUSTED_ATTEMPTS
        assert asked == [(1, 0), (2, 4)]

    def test_an_attempt_too_late_is_handed_over(self):
        """S9, S15: a registered task whose next attempt would come after the drain is stored instead of given up."""

        async def main():
            engine = MemoryEngine()
            supervisor = Supervisor(engine=engine, on_drain="enqueue", serve=False)

            async def flaky():
                await asyncio.sleep(1)
                raise BoomError

            supervisor.task("flaky")(flaky)
            policy = Retry(on=BoomError, wait_initial=50, wait_max=50, wait_jitter=0, timeout=None)
            async with supervisor:
                with supervisor.context() as ctx:
                    handles = [ctx.with_options(retry=policy).defer(work) for work in (flaky, boom)]
                await asyncio.sleep(0)
                report = await supervisor.drain(5)
            return handles, report

        (stored, lost), report = run(main())
        assert stored.outcome is Outcome.CANCELLED_BY_DRAIN
        assert lost.outcome is Outcome.EXHAUSTED_DEADLINE
        assert [task.id for task in report.enqueued] == [stored.id]

    def test_a_wait_that_would_end_with_the_drain(self):
        """S9: no wait is begun that cannot end before a drain's deadline, to the very second."""

        async def main():
            policy = Retry(on=BoomError, attempts=None, wait_initial=4, wait_max=4, wait_jitter=0, timeout=None)

            async def flaky():
                await asyncio.sleep(1)
                raise BoomError

            async with Supervisor() as supervisor:
                with supervisor.context() as ctx:
                    handle = ctx.with_options(retry=policy).defer(flaky)
                await asyncio.sleep(0)
                draining = asyncio.ensure_future(supervisor.drain(5))
                await handle.settled()
                ended = asyncio.get_running_loop().time()
                await draining
            return handle, ended

        handle, ended = run(main())
        assert (handle.outcome, handle.attempts, ended) == (Outcome.EXHAUSTED_DEADLINE, 1, 1)


class TestWaitingForItself:
    @pytest.mark.parametrize("pause", [True, False], ids=["later", "in its first step"])
    @pytest.mark.parametrize("options", [{}, {"timeout": 5}], ids=["plain", "with options"])
    async def test_a_task_that_awaits_its_own_handle(self, pause, options):
        """S4: a task that awaits its own handle fails at once and says so; nothing hangs."""
        handles = []

        async def own():
            if pause:
                await asyncio.sleep(0)
            await handles[0]

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handles.append(ctx.with_options(**options).defer(own))
            await handles[0].settled()
        assert handles[0].state is TaskState.FAILED
        assert "waits for its own end" in str(handles[0].error)

    async def test_one_task_awaits_another(self):
        """S7: a task may await the handle of another one, in its first step too."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                first = ctx.defer(asyncio.sleep, 0, "slept")

                async def second(task):
                    return await task

                other = ctx.defer(second, first)
            assert await other == "slept"
