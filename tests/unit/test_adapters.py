"""Retry objects of stamina and tenacity do as policies what they do at home."""

import sys
from datetime import timedelta

import pytest
import stamina
import tenacity

from deferred import Retry, Supervisor, TaskState
from deferred._adapters import adapted

ERROR = OSError("down")


def flaky(failures, error=ERROR):
    """Return a function that fails so often, and the list of its calls."""
    calls = []

    async def work():
        calls.append(None)
        if len(calls) <= failures:
            raise error
        return len(calls)

    return work, calls


class TestStamina:
    @pytest.mark.parametrize("kind", [stamina.RetryingCaller, stamina.AsyncRetryingCaller])
    def test_the_settings_are_those_of_the_caller(self, kind):
        """Attempts, times and waits are the caller's, whether it gave seconds or timedeltas."""
        caller = kind(
            attempts=4,
            timeout=timedelta(seconds=9),
            wait_initial=0.5,
            wait_max=timedelta(seconds=3),
            wait_jitter=0,
            wait_exp_base=3,
        )
        policy = adapted(caller.on(OSError))
        assert policy.timeout == 9.0
        assert [policy.delay(attempt, ERROR) for attempt in (1, 2, 3, 10_000)] == [0.5, 1.5, 3.0, 3.0]
        assert [policy.exhausted(attempt, 0.0) for attempt in (3, 4, 5)] == [False, True, True]

    def test_no_limit_of_attempts(self):
        """A caller without a limit of attempts goes on."""
        assert not adapted(stamina.AsyncRetryingCaller(attempts=None).on(OSError)).exhausted(10**6, 0.0)

    def test_the_jitter_is_added_and_the_bound_holds(self):
        """Stamina adds its jitter to the wait, and bounds the sum."""
        policy = adapted(stamina.AsyncRetryingCaller(wait_initial=1, wait_jitter=2, wait_max=2.5).on(OSError))
        delays = [policy.delay(1, ERROR) for _ in range(200)]
        assert min(delays) >= 1
        assert max(delays) <= 2.5
        assert len(set(delays)) > 10

    @pytest.mark.parametrize(
        ("on", "expected"),
        [
            (OSError, True),
            (ValueError, False),
            ((ValueError, OSError), True),
            (lambda error: error is ERROR, True),
            (lambda error: 7.5, 7.5),
        ],
    )
    def test_what_is_retried(self, on, expected):
        """Classes are compared, hooks are asked, and what a hook returns is the verdict."""
        assert adapted(stamina.AsyncRetryingCaller().on(on)).verdict(ERROR) == expected

    @pytest.mark.parametrize("kind", [stamina.RetryingCaller, stamina.AsyncRetryingCaller])
    def test_a_caller_that_is_not_bound(self, kind):
        """A caller that does not say what to retry is refused with the mend."""
        with pytest.raises(TypeError, match=r"pass `caller\.on\(SomeError\)`"):
            Supervisor(retry=kind())

    @pytest.mark.looptime
    async def test_a_task_is_retried_by_it(self):
        """S9: a task with a stamina caller is tried again as that says."""
        work, calls = flaky(2)
        caller = stamina.AsyncRetryingCaller(attempts=3, wait_initial=1, wait_jitter=0).on(OSError)
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(retry=caller).defer(work)
            assert await handle == 3
        assert len(calls) == handle.attempts == 3


class TestTenacity:
    @pytest.mark.parametrize("kind", [tenacity.Retrying, tenacity.AsyncRetrying])
    def test_its_parts_are_asked(self, kind):
        """The retry, stop and wait of a tenacity object decide, with what they are to know."""
        policy = adapted(
            kind(
                retry=tenacity.retry_if_exception_type(OSError),
                stop=tenacity.stop_after_attempt(3) | tenacity.stop_after_delay(10),
                wait=tenacity.wait_incrementing(start=1, increment=2),
            )
        )
        assert policy.timeout is None
        assert [policy.exhausted(*reached) for reached in ((2, 0.0), (3, 0.0), (1, 9.9), (1, 10.0))] == [
            False,
            True,
            False,
            True,
        ]
        assert [policy.delay(attempt, ERROR) for attempt in (1, 2, 3)] == [1.0, 3.0, 5.0]

    def test_a_wait_that_looks_at_the_error(self):
        """A wait of one's own finds the error in the state, as it does at home."""

        def wait(state):
            return 60.0 if state.outcome.exception() is ERROR else 0.0

        assert adapted(tenacity.AsyncRetrying(wait=wait)).delay(1, ERROR) == 60.0

    @pytest.mark.looptime
    @pytest.mark.parametrize(
        ("error", "attempts", "state"), [(ERROR, 3, TaskState.SUCCEEDED), (ValueError(), 1, TaskState.FAILED)]
    )
    async def test_a_task_is_retried_by_it(self, error, attempts, state):
        """S9: a task with a tenacity object is tried again for the errors that it names alone."""
        work, calls = flaky(2, error)
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(OSError),
            stop=tenacity.stop_after_attempt(3),
            wait=tenacity.wait_fixed(2),
        )
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(retry=retrying).defer(work)
            await ctx.drained()
        assert (len(calls), handle.state) == (attempts, state)

    @pytest.mark.looptime
    async def test_an_asynchronous_condition(self):
        """A tenacity condition that is a coroutine function is awaited."""

        async def condition(state):
            return isinstance(state.outcome.exception(), OSError)

        work, _ = flaky(1)
        retrying = tenacity.AsyncRetrying(retry=condition, stop=tenacity.stop_after_attempt(2))
        async with Supervisor(retry=retrying) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(work)
            assert await handle == 2


@pytest.mark.parametrize("loaded", [{"stamina", "tenacity"}, {"stamina"}, {"tenacity"}, set()])
def test_other_policies_are_left_alone(loaded, monkeypatch):
    """What neither library has made passes as it is, whichever of them is loaded."""
    for name in {"stamina", "tenacity"} - loaded:
        monkeypatch.delitem(sys.modules, name)
    policy = Retry(on=OSError)
    assert adapted(policy) is policy
    assert adapted(None) is None
