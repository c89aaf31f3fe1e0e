"""What happened is told whole: when, of which task, with which numbers, once and in order."""

import asyncio
import traceback

import pytest

from deferred import (
    ContextClosed,
    ContextOpened,
    ContextSettled,
    DrainFinished,
    DrainStarted,
    Outcome,
    Retry,
    StepFinished,
    Supervisor,
    TaskAbandoned,
    TaskCancelled,
    TaskDeferred,
    TaskDiscarded,
    TaskFailed,
    TaskRejected,
    TaskRejectedError,
    TaskRetrying,
    TaskStarted,
    TaskSucceeded,
)


async def fine():
    """Succeed."""


async def fails():
    """Fail with what is retried."""
    raise OSError("down")


async def forever():
    """Ignore one cancellation, then the next."""
    while True:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            continue


@pytest.fixture
def told():
    """Give the events."""
    return []


@pytest.mark.looptime
async def test_every_event_is_whole(told):
    """S16: each event of a busy life has its time, its task or context, and its numbers, in order."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    supervisor = Supervisor(hooks=[told.append], max_per_context=6, cancel_grace=1)
    async with supervisor:
        with supervisor.context("POST /register") as ctx:
            succeeds = ctx.defer(fine)
            retry = Retry(on=OSError, attempts=2, wait_initial=3, wait_max=3, wait_jitter=0)
            failing = ctx.with_options(retry=retry).defer(fails)
            cancelled = ctx.defer(asyncio.sleep, 60)
            discarded = ctx.with_options(when="error").defer(fine)
            abandoned = ctx.defer(forever)
            late = ctx.defer(asyncio.sleep, 100)
            with ctx.step("insert"):
                await asyncio.sleep(1)
            with pytest.raises(TaskRejectedError) as refused:
                ctx.defer(fine)
        await asyncio.sleep(10)
        cancelled.cancel()
        await asyncio.sleep(0)
        report = await supervisor.drain(timeout=5)
    times = [event.at for event in told]
    assert times == sorted(times)
    assert times[0] >= began
    assert times[-1] <= loop.time()

    def of(kind):
        return [event for event in told if isinstance(event, kind)]

    assert [event.context for event in of((ContextOpened, ContextClosed, ContextSettled))] == [ctx] * 3
    assert [event.task for event in of(TaskDeferred)] == [succeeds, failing, cancelled, discarded, abandoned, late]
    assert {(event.task, event.attempt) for event in of(TaskStarted)} == {
        (failing, 1),
        (failing, 2),
        *((task, 1) for task in (succeeds, cancelled, abandoned, late)),
    }
    assert [(event.task, event.attempt) for event in of(TaskSucceeded)] == [(succeeds, 1)]
    (retrying,) = of(TaskRetrying)
    assert (retrying.task, type(retrying.error), retrying.attempt, retrying.delay) == (failing, OSError, 1, 3.0)
    (failed,) = of(TaskFailed)
    assert (failed.task, failed.error, failed.attempt, failed.outcome) == (
        failing,
        failing.error,
        2,
        Outcome.EXHAUSTED_ATTEMPTS,
    )
    assert (failed.label, failed.context_id, failed.site) == ("POST /register", ctx.id, failing.site)
    assert {(event.task, event.outcome) for event in of(TaskCancelled)} == {
        (cancelled, Outcome.CANCELLED_BY_HANDLE),
        (late, Outcome.CANCELLED_BY_DRAIN),
    }
    assert [(event.task, event.outcome) for event in of(TaskDiscarded)] == [(discarded, Outcome.DISCARDED_BY_WHEN)]
    assert [event.task for event in of(TaskAbandoned)] == [abandoned]
    (rejected,) = of(TaskRejected)
    assert (rejected.name, rejected.context, rejected.error) == ("fine", ctx, refused.value)
    (step,) = of(StepFinished)
    assert (step.name, step.at - step.started, step.error) == ("insert", pytest.approx(1), None)
    (started,), (finished,) = of(DrainStarted)[:1], of(DrainFinished)[:1]
    assert (started.unfinished, started.deadline - started.at) == (2, pytest.approx(5))
    assert (finished.report, finished.duration) == (report, pytest.approx(6))
    assert [unfinished.age for unfinished in (*report.cancelled, *report.abandoned)] == [
        pytest.approx(16),
        pytest.approx(17),
    ]
    assert [unfinished.attempt for unfinished in (*report.cancelled, *report.abandoned)] == [1, 1]
    assert [unfinished.site for unfinished in (*report.cancelled, *report.abandoned)] == [late.site, abandoned.site]


async def test_an_error_keeps_its_traceback():
    """S4: however often an error is raised by its handle, its traceback ends where the work raised it."""
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            handles = [ctx.defer(fails), ctx.with_options(timeout=60).defer(fails)]
        for handle in handles:
            seen = []
            for _ in range(3):
                with pytest.raises(OSError, match="down") as caught:
                    await handle
                seen.append([frame.name for frame in traceback.extract_tb(caught.value.__traceback__)])
            assert seen[0] == seen[1] == seen[2]
            assert seen[0][-1] == "fails"
