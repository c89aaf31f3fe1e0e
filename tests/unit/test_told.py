"""What each event says: of whom, how often, when; and what the counts are, by the short way and the long one."""

import asyncio

import pytest

from deferred import (
    ContextClosed,
    ContextOpened,
    ContextSettled,
    Outcome,
    Retry,
    Supervisor,
    TaskAbandoned,
    TaskCancelled,
    TaskDeferred,
    TaskDiscarded,
    TaskFailed,
    TaskRetrying,
    TaskStarted,
    TaskSucceeded,
    current_task,
)
from deferred.engines.memory import MemoryEngine
from tests.faults.support import BoomError, Told
from tests.proof.clock import run

WAYS = {
    "short": lambda ctx: ctx,
    "retried": lambda ctx: ctx.with_options(
        retry=Retry(on=BoomError, attempts=2, wait_initial=4, wait_max=4, wait_jitter=0, timeout=None)
    ),
    "watched": lambda ctx: ctx.with_options(timeout=1000),
}


async def fine():
    """Succeed."""


async def boom():
    """Fail."""
    raise BoomError("boom")


@pytest.mark.parametrize("way", WAYS)
def test_each_event(way):
    """S16: each event names its task and context, counts the attempts, and has the loop's time."""

    async def main():
        told = Told()
        async with Supervisor(hooks=[told]) as supervisor:
            await asyncio.sleep(5)
            with supervisor.context("POST /register") as ctx:
                await asyncio.sleep(1)
                view = WAYS[way](ctx)
                well, badly = view.defer(fine), view.defer(boom)
                cancelled = view.defer(fine)
                discarded = view.with_options(when="error").defer(fine)
                assert cancelled.cancel()
                await asyncio.sleep(1)
            await ctx.drained()
        retried = way == "retried"
        last, attempts = (11, 2) if retried else (7, 1)

        def of(kind):
            return [event for event in told.of(kind) if getattr(event, "context", ctx) is ctx]

        assert [event.at for event in of(ContextOpened)] == [5]
        assert [(event.at, event.error) for event in of(ContextClosed)] == [(7, None)]
        assert [(event.at, event.context) for event in of(ContextSettled)] == [(last, ctx)]
        assert [event.context for event in told.of(ContextOpened)] == [ctx]
        assert [(event.task, event.at) for event in of(TaskDeferred)] == [
            (handle, 6) for handle in (well, badly, cancelled, discarded)
        ]
        starts = [(well, 1, 7), (badly, 1, 7), *([(badly, 2, 11)] if retried else [])]
        assert [(event.task, event.attempt, event.at) for event in of(TaskStarted)] == starts
        assert [(event.task, event.attempt, event.at) for event in of(TaskSucceeded)] == [(well, 1, 7)]
        assert [(event.task, event.outcome, event.at) for event in of(TaskCancelled)] == [
            (cancelled, Outcome.CANCELLED_BY_HANDLE, 6)
        ]
        assert [(event.task, event.outcome, event.at) for event in of(TaskDiscarded)] == [
            (discarded, Outcome.DISCARDED_BY_WHEN, 7)
        ]
        (failed,) = of(TaskFailed)
        outcome = Outcome.EXHAUSTED_ATTEMPTS if retried else Outcome.FAILED
        assert (failed.task, failed.error, failed.attempt, failed.outcome) == (badly, badly.error, attempts, outcome)
        assert (failed.label, failed.context_id, failed.site, failed.at) == ("POST /register", ctx.id, badly.site, last)
        announced = [(badly, badly.error.__class__, 1, 4, 7)] if retried else []
        assert [
            (event.task, type(event.error), event.attempt, event.delay, event.at) for event in of(TaskRetrying)
        ] == announced
        assert of(TaskAbandoned) == []

    run(main())


@pytest.mark.parametrize("hooked", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_the_counts_of_a_context(way, hooked):
    """S11: the report of a context counts what succeeded and failed in all its life, whoever listens."""

    async def main():
        async with Supervisor(hooks=[Told()] if hooked else []) as supervisor:
            with supervisor.context() as ctx:
                view = WAYS[way](ctx)
                for _ in range(3):
                    view.defer(fine)
                for _ in range(2):
                    view.defer(boom)
            while ctx.pending:
                await asyncio.sleep(1)
            report = await ctx.drained()
            with supervisor.context() as other:
                WAYS[way](other).defer(fine)
            alone = await other.drained()
            total = await supervisor.drain()
        assert (report.finished, report.failed) == (3, 2)
        assert (alone.finished, alone.failed) == (1, 0)
        assert (total.finished, total.failed) == (0, 0)
        stats = supervisor.stats()
        assert (stats.succeeded, stats.failed) == (4, 2)

    run(main())


def test_what_travels_beside_stored_work(caplog):
    """S15: hooks that can write headers of stored work do; one that fails is contained, and the others write theirs."""
    seen = []

    class Writes:
        """A hook with headers of its own."""

        def __call__(self, event):
            """Hear nothing."""

        def carry(self, headers):
            """Write one."""
            headers["request"] = "r-1"

    class Fails(Writes):
        """A hook whose headers fail."""

        def carry(self, headers):
            """Fail."""
            raise BoomError

    async def main():
        supervisor = Supervisor(engine=MemoryEngine(), hooks=[Fails(), hears_only, Writes()])

        @supervisor.task("task")
        async def task():
            seen.append(current_task().headers["request"])

        async with supervisor:
            with supervisor.context() as ctx:
                await ctx.enqueue(task)
            while not seen:
                await asyncio.sleep(1)

    run(main())
    assert seen == ["r-1"]
    assert "failed to write its headers; it is contained" in caplog.text


def hears_only(event):
    """Hear, and carry nothing."""


@pytest.mark.parametrize("way", [WAYS["short"], WAYS["watched"]], ids=["short", "watched"])
def test_a_hook_that_hears_of_successes_alone(way):
    """S16: who wants nothing but successes is told nothing else, and the task knows when its attempt began."""
    heard = []

    def hear(event):
        heard.append((type(event), event.task._started, event.at))

    hear.events = (TaskSucceeded,)

    async def main():
        async with Supervisor(hooks=[hear]) as supervisor:
            await asyncio.sleep(3)
            with supervisor.context() as ctx:
                way(ctx).defer(asyncio.sleep, 1)

    run(main())
    assert heard == [(TaskSucceeded, 3, 4)]
