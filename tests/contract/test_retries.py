"""RT: attempts, retries, backoff, in the loop's own time."""

import asyncio
import logging

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deferred import (
    NonRetryableError,
    Outcome,
    Retry,
    Supervisor,
    TaskFailed,
    TaskRetrying,
    TaskState,
    current_task,
)
from tests.integrations.asgi_client import turns

pytestmark = pytest.mark.looptime
FAST = {"on": Exception, "wait_initial": 0.0}


class Flaky:
    """A function that fails so many times; notes its attempts and their times."""

    def __init__(self, failures, error=ConnectionError):
        self.failures = failures
        self.error = error
        self.attempts = []
        self.times = []

    async def __call__(self):
        """Fail or succeed."""
        self.attempts.append(current_task().attempts)
        self.times.append(asyncio.get_running_loop().time())
        if len(self.attempts) <= self.failures:
            raise self.error(f"attempt {len(self.attempts)}")
        return "sent"


async def run(supervisor, func, retry, **options):
    """Run one task to its end and return its handle."""
    with supervisor.context() as ctx:
        handle = ctx.with_options(retry=retry, **options).defer(func)
    await ctx.drained(timeout=1000)
    return handle


async def test_a_first_success_is_attempt_one(supervisor):
    """RT-01: the work and its handle see attempt 1."""
    flaky = Flaky(0)
    handle = await run(supervisor, flaky, Retry(on=ConnectionError))
    assert flaky.attempts == [1]
    assert (handle.attempts, handle.result()) == (1, "sent")


async def test_attempts_count_up(watched, told):
    """RT-02: with two retries, attempts 1, 2 and 3 are seen."""
    flaky = Flaky(2)
    handle = await run(watched, flaky, Retry(**FAST, attempts=3))
    assert flaky.attempts == [1, 2, 3]
    assert [event.attempt for event in told.of(TaskRetrying)] == [1, 2]
    assert handle.state is TaskState.SUCCEEDED
    assert handle.error is None


async def test_delays_can_be_switched_off(supervisor):
    """RT-04: with a wait of zero, ten attempts take no time at all."""
    flaky = Flaky(9)
    await run(supervisor, flaky, Retry(**FAST, attempts=10))
    assert len(flaky.attempts) == 10
    assert flaky.times[-1] == flaky.times[0]


async def test_the_work_reads_its_own_name_and_counter(supervisor):
    """RT-05: `current_task` gives both (of work in a thread: see `test_python`)."""
    seen = []

    async def look():
        seen.append((current_task().name, current_task().attempts))
        if len(seen) < 2:
            raise ValueError

    handle = await run(supervisor, look, Retry(**FAST), name="mail")
    assert seen == [("mail", 1), ("mail", 2)]
    assert current_task() is None
    assert handle.name == "mail"


async def test_the_resolved_configuration_is_readable(script):
    """RT-07, RT-08: a task knows its policy: the supervisor's defaults, or what was merged over them."""
    default, own = Retry(on=ValueError), Retry(on=KeyError, attempts=7)
    async with Supervisor(retry=default, timeout=30) as supervisor:
        with supervisor.context() as ctx:
            plain = ctx.defer(script.work)
            retried = ctx.with_options(retry=own).defer(script.work)
            neither = ctx.with_options(retry=None, timeout=None).defer(script.work)
            nested = ctx.with_options(timeout=5).with_options(name="both").defer(script.work)
        await ctx.drained()
    assert (plain.retry, plain.timeout) == (default, 30)
    assert (retried.retry, retried.timeout) == (own, 30)
    assert (neither.retry, neither.timeout) == (None, None)
    assert (nested.retry, nested.timeout, nested.name) == (default, 5, "both")
    assert (default.attempts, default.wait_initial, default.wait_max, default.wait_exp_base) == (3, 0.1, 5.0, 2.0)


async def test_a_non_retryable_error_is_the_end(supervisor, errors):
    """RT-10, RT-11: one attempt only, and the message is the one it was raised with."""
    flaky = Flaky(5, NonRetryableError)
    handle = await run(supervisor, flaky, Retry(**FAST, attempts=None))
    assert flaky.attempts == [1]
    assert str(handle.error) == "attempt 1"
    assert handle.outcome is Outcome.NON_RETRYABLE
    assert [event.error for event in errors] == [handle.error]


@pytest.mark.parametrize("form", ["function", "async function"])
async def test_a_predicate_may_give_the_delay(supervisor, form):
    """RT-13: the delay it returns is the wait, as it is; one that is asynchronous is awaited."""

    def delay(error):
        return 90 if isinstance(error, ConnectionError) else False

    async def later(error):
        await asyncio.sleep(1)
        return delay(error)

    flaky = Flaky(1)
    await run(supervisor, flaky, Retry(on=later if form == "async function" else delay, timeout=None))
    assert flaky.times[1] - flaky.times[0] == pytest.approx(90 + (form == "async function"))


async def test_a_predicate_that_never_returns_is_bounded(supervisor):
    """RT-14: after five seconds it is given up, and the task is not retried; its own error stays."""

    async def never(error):
        await asyncio.Event().wait()

    flaky = Flaky(1)
    began = asyncio.get_running_loop().time()
    handle = await run(supervisor, flaky, Retry(on=never))
    assert asyncio.get_running_loop().time() - began == pytest.approx(5)
    assert (handle.outcome, type(handle.error)) == (Outcome.NON_RETRYABLE, ConnectionError)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "soon"], ids=repr)
async def test_an_invalid_delay_of_a_predicate_is_not_retried(supervisor, value):
    """RT-16: negative or meaningless delays end the task, with its own error."""
    flaky = Flaky(1)
    handle = await run(supervisor, flaky, Retry(on=lambda error: value))
    assert flaky.attempts == [1]
    assert (handle.outcome, type(handle.error)) == (Outcome.NON_RETRYABLE, ConnectionError)


async def test_a_predicate_that_raises_is_not_retried(supervisor):
    """RT-16: its own failure is logged, and the task's error stays the task's."""
    flaky = Flaky(1)

    def broken(error):
        raise KeyError

    handle = await run(supervisor, flaky, Retry(on=broken))
    assert (handle.outcome, type(handle.error)) == (Outcome.NON_RETRYABLE, ConnectionError)


@pytest.mark.parametrize("during", ["predicate", "wait"])
async def test_a_cancel_between_attempts_is_quiet(supervisor, during, caplog):
    """RT-17: a task cancelled while its delay is asked for, or passes, ends at once and warns of nothing."""
    flaky = Flaky(1)

    async def slow(error):
        return await asyncio.sleep(3, result=True)

    retry = (
        Retry(on=slow) if during == "predicate" else Retry(on=Exception, wait_initial=30, wait_max=30, wait_jitter=0)
    )
    with supervisor.context() as ctx:
        handle = ctx.with_options(retry=retry).defer(flaky)
    await asyncio.sleep(1)
    handle.cancel()
    await ctx.drained()
    assert flaky.attempts == [1]
    assert handle.outcome is Outcome.CANCELLED_BY_HANDLE
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, TypeError),
        ({"on": ()}, ValueError),
        ({"on": "ValueError"}, TypeError),
        ({"on": ValueError, "retries": 3}, TypeError),
        ({"on": ValueError, "wait_initial": "1s"}, TypeError),
        ({"on": ValueError, "wait_max": -1}, ValueError),
        ({"on": ValueError, "timeout": 0}, ValueError),
        ({"on": ValueError, "attempts": True}, TypeError),
        ({"on": ValueError, "attempts": 0}, ValueError),
        ({"on": ValueError, "wait_exp_base": 0.5}, ValueError),
        ({"on": ValueError, "wait_jitter": 2}, ValueError),
    ],
)
def test_a_wrong_policy_is_refused_when_it_is_made(options, error):
    """RT-19: incomplete, unknown, unparsable, zero and of the wrong type: each is refused at once."""
    with pytest.raises(error):
        Retry(**options)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": "1s"}, {"retry": 3}, {"when": "never"}, {"name": ""}])
async def test_wrong_options_of_a_task_are_refused_at_the_call(supervisor, options):
    """RT-19: so are they in `with_options`, before anything is registered."""
    with supervisor.context() as ctx, pytest.raises((TypeError, ValueError), match=next(iter(options))):
        ctx.with_options(**options)


@pytest.mark.parametrize(
    ("options", "waits"),
    [
        ({"attempts": 1}, []),
        ({"wait_initial": 0.0}, [0, 0]),
        ({"on": lambda error: 3}, [3, 3]),
        ({"wait_exp_base": 1.0}, [1, 1]),
        ({"wait_exp_base": 2.0}, [1, 2]),
        ({"on": lambda error: 2.0 * int(str(error)[-1])}, [2, 4]),
    ],
    ids=["no retries", "no delay", "dynamic", "constant", "exponential", "linear"],
)
async def test_every_kind_of_backoff_is_accepted(supervisor, options, waits):
    """RT-20: no retries, no delay, dynamic delays, and all three backoffs wait as they say."""
    flaky = Flaky(5)
    await run(supervisor, flaky, Retry(**{"on": Exception, "wait_initial": 1.0, "wait_jitter": 0.0, **options}))
    assert [b - a for a, b in zip(flaky.times, flaky.times[1:], strict=False)] == pytest.approx(waits)


@given(
    attempt=st.integers(1, 10_000),
    initial=st.floats(0, 1e3),
    maximum=st.floats(0, 1e3),
    base=st.floats(1, 100),
    jitter=st.floats(0, 1),
)
@example(attempt=156, initial=1.1e-307, maximum=1000.0, base=98.0, jitter=0.0)
def test_cap_and_jitter_hold(attempt, initial, maximum, base, jitter):
    """RT-22: no delay is negative, above the cap, or below the share that is not random."""
    retry = Retry(on=OSError, wait_initial=initial, wait_max=maximum, wait_exp_base=base, wait_jitter=jitter)
    full = Retry(on=OSError, wait_initial=initial, wait_max=maximum, wait_exp_base=base, wait_jitter=0)
    bound = full.delay(attempt)
    assert 0 <= bound <= maximum
    assert bound * (1 - jitter) * (1 - 1e-9) <= retry.delay(attempt) <= bound


async def test_a_timeout_of_an_attempt_is_a_failed_attempt(watched, told):
    """RT-23: it is retried like another failure, whatever `on` lists, and told as a TimeoutError."""
    attempts = []

    async def hangs():
        attempts.append(current_task().attempts)
        if len(attempts) < 3:
            await asyncio.Event().wait()

    handle = await run(watched, hangs, Retry(on=TimeoutError, wait_initial=0), timeout=2)
    assert attempts == [1, 2, 3]
    assert handle.state is TaskState.SUCCEEDED
    assert [type(event.error) for event in told.of(TaskRetrying)] == [TimeoutError] * 2


@pytest.mark.parametrize("limit", [1, 6])
async def test_after_the_last_attempt_it_is_given_up(watched, told, limit):
    """RT-28, RT-31: exactly as many tries as configured, one when there are no retries; then one final failure."""
    flaky = Flaky(100)
    handle = await run(watched, flaky, Retry(**FAST, attempts=limit))
    assert flaky.attempts == list(range(1, limit + 1))
    assert handle.outcome is Outcome.EXHAUSTED_ATTEMPTS
    assert str(handle.error) == f"attempt {limit}"
    assert [event.attempt for event in told.of(TaskFailed)] == [limit]


async def test_errors_that_are_not_listed_are_not_retried(supervisor):
    """RT-29: `on` is the filter: what it does not name ends the task at its first occurrence."""
    flaky = Flaky(5, KeyError)
    handle = await run(supervisor, flaky, Retry(on=ConnectionError, wait_initial=0))
    assert flaky.attempts == [1]
    assert handle.outcome is Outcome.FAILED


@pytest.mark.parametrize("drain", ["context", "supervisor"])
async def test_a_wait_beyond_the_deadline_ends_at_once(watched, told, drain):
    """RT-32: a drain does not sit out a wait that ends after its deadline: exhausted, at once, and told."""
    flaky = Flaky(1)
    loop = asyncio.get_running_loop()
    with watched.context() as ctx:
        retry = Retry(on=Exception, wait_initial=60, wait_max=60, wait_jitter=0, timeout=None)
        handle = ctx.with_options(retry=retry).defer(flaky)
    await turns(5)
    began = loop.time()
    await (ctx.drained(timeout=10) if drain == "context" else watched.drain(timeout=10))
    assert loop.time() == began
    assert flaky.attempts == [1]
    assert (handle.outcome, type(handle.error)) == (Outcome.EXHAUSTED_DEADLINE, ConnectionError)
    assert [event.outcome for event in told.of(TaskFailed)] == [Outcome.EXHAUSTED_DEADLINE]


async def test_a_wait_that_ends_in_time_is_waited_for(supervisor):
    """RT-32: the other side of it: a retry that fits before the deadline takes place."""
    flaky = Flaky(1)
    with supervisor.context() as ctx:
        retry = Retry(on=Exception, wait_initial=3, wait_max=3, wait_jitter=0)
        handle = ctx.with_options(retry=retry).defer(flaky)
    await turns(5)
    await supervisor.drain(timeout=10)
    assert (flaky.attempts, handle.state) == ([1, 2], TaskState.SUCCEEDED)


async def test_a_first_failure_during_the_drain_starts_no_hopeless_wait(supervisor):
    """RT-32: a task that fails while the drain is under way is not made to wait beyond its deadline."""
    loop = asyncio.get_running_loop()
    gate = asyncio.Event()

    async def fails():
        await gate.wait()
        raise ConnectionError

    with supervisor.context() as ctx:
        handle = ctx.with_options(
            retry=Retry(on=Exception, wait_initial=60, wait_max=60, wait_jitter=0, timeout=None)
        ).defer(fails)
    loop.call_later(2, gate.set)
    began = loop.time()
    await supervisor.drain(timeout=10)
    assert loop.time() - began == pytest.approx(2)
    assert handle.outcome is Outcome.EXHAUSTED_DEADLINE
