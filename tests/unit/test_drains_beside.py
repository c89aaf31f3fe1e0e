"""Drains beside each other: those of tasks, of the shutdown, of mounted apps; which of them has the say."""

import asyncio

import pytest

from deferred import DrainFinished, DrainReport, Outcome, Supervisor, TaskState
from deferred.engines.memory import MemoryEngine
from tests.faults.support import Told, fine, nothing_left, outcome_of
from tests.proof.clock import run


async def forever():
    """Wait for what never comes."""
    await asyncio.get_running_loop().create_future()


async def tidy():
    """Take a second to end when it is cancelled."""
    try:
        await forever()
    finally:
        await asyncio.sleep(1)


def now():
    """Return the virtual time."""
    return asyncio.get_running_loop().time()


INSIDE = {
    "the supervisor": lambda supervisor, _ctx: supervisor.drain(),
    "the supervisor, for long": lambda supervisor, _ctx: supervisor.drain(1000),
    "its context": lambda _supervisor, ctx: ctx.drained(),
    "its context, for long": lambda _supervisor, ctx: ctx.drained(1000),
}


@pytest.mark.parametrize("inside", INSIDE.values(), ids=INSIDE)
@pytest.mark.parametrize("outside", ["supervisor", "context"])
def test_a_task_that_drains_is_cancelled_by_a_drain(inside, outside):
    """S7, S11: when a drain cancels a task that drains itself, the other tasks have that drain's grace all the same."""

    async def main():
        async def drains():
            await asyncio.sleep(1)
            await inside(supervisor, ctx)

        async with Supervisor(cancel_grace=2) as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.defer(drains), ctx.defer(tidy), ctx.defer(tidy)]
            report = await (supervisor.drain(10) if outside == "supervisor" else ctx.drained(10))
            assert now() == 11
            assert {task.id for task in report.cancelled} == {handle.id for handle in handles}
            assert report.abandoned == ()
        assert [handle.outcome for handle in handles] == [Outcome.CANCELLED_BY_DRAIN] * 3
        assert nothing_left(supervisor)

    run(main())


@pytest.mark.parametrize("inside", INSIDE.values(), ids=INSIDE)
def test_a_task_that_drains_is_cancelled_while_a_drain_waits(inside):
    """S11: a task that drains, and is cancelled while another drain waits, leaves its work to that one."""

    async def main():
        async def drains():
            await inside(supervisor, ctx)

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle, other = ctx.defer(drains), ctx.defer(asyncio.sleep, 5)
            draining = asyncio.ensure_future(supervisor.drain())
            await asyncio.sleep(1)
            handle.cancel()
            report = await draining
        assert now() == 5
        assert (handle.outcome, other.state) == (Outcome.CANCELLED_BY_HANDLE, TaskState.SUCCEEDED)
        assert report.finished == 1

    run(main())


@pytest.mark.parametrize("joiners", [1, 3])
def test_the_first_to_drain_is_cancelled(joiners):
    """S11: whoever has joined a drain that is cancelled goes on with it, for the time that it asked for itself."""

    async def main():
        told = Told()
        async with Supervisor(hooks=[told]) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(timeout=3).defer(supervisor.drain, 1000)
                good, bad = ctx.defer(asyncio.sleep, 5), ctx.defer(forever)
            await asyncio.sleep(1)
            reports = await asyncio.gather(*(supervisor.drain(10) for _ in range(joiners)))
            assert now() == 11
        assert (handle.outcome, good.state) == (Outcome.TIMED_OUT, TaskState.SUCCEEDED)
        assert bad.outcome is Outcome.CANCELLED_BY_DRAIN
        assert reports == [told.of(DrainFinished)[1].report] * joiners
        assert [task.id for task in reports[0].cancelled] == [bad.id]
        assert nothing_left(supervisor)

    run(main())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_all_who_drain_are_cancelled(order):
    """C22: when a drain is cancelled with everybody who has joined it, what is left is recorded."""

    async def main():
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(forever)
            drains = [asyncio.ensure_future(supervisor.drain()) for _ in order]
            await asyncio.sleep(1)
            for index in order:
                drains[index].cancel()
            await asyncio.wait(drains)
            assert all(drain.cancelled() for drain in drains)
            assert handle.state is TaskState.ABANDONED
            with supervisor.context() as ctx:
                ctx.defer(fine)
            assert (await supervisor.drain()).finished == 1
        assert nothing_left(supervisor)

    run(main())


@pytest.mark.parametrize("by", ["a task", "anybody"])
def test_a_shutdown_during_a_long_drain(by):
    """S11: a supervisor that closes while a drain is under way ends in its own time, whatever time that one has."""

    async def main():
        supervisor = Supervisor(drain_timeout=20, cancel_grace=2)
        supervisor.open()
        with supervisor.context() as ctx:
            handle = ctx.defer(tidy)
            if by == "a task":
                ctx.defer(supervisor.drain, 3600)
        long = asyncio.ensure_future(asyncio.sleep(0) if by == "a task" else supervisor.drain(3600))
        await asyncio.sleep(5)
        await supervisor.close()
        assert now() == 26
        assert handle.outcome is Outcome.CANCELLED_BY_DRAIN
        await long
        assert nothing_left(supervisor)

    run(main())


def test_a_shutdown_gives_a_short_drain_no_more_time():
    """S11: a drain that ends sooner than the closing that joins it keeps its time, also once that is over."""

    async def main():
        supervisor = Supervisor(drain_timeout=20, cancel_grace=10)
        supervisor.open()
        with supervisor.context() as ctx:
            handle = ctx.defer(tidy)
        short = asyncio.ensure_future(supervisor.drain(2))
        await asyncio.sleep(2.5)
        await supervisor.close()
        assert now() == 3
        assert (await short).cancelled[0].id == handle.id

    run(main())


def test_a_mounted_app_that_drains_for_long():
    """S11: a mounted app that drains for long already is given no more than the time of the one around it."""

    async def main():
        outer, inner = Supervisor(), Supervisor()
        outer.adopt(inner)
        with inner.context() as ctx:
            ctx.defer(forever)
        long = asyncio.ensure_future(inner.drain(3600))
        await asyncio.sleep(1)
        await outer.drain(4)
        assert now() == 5
        assert len((await long).cancelled) == 1

    run(main())


def test_a_wait_between_attempts_in_a_drain_that_is_hastened():
    """S9, S11: a wait that would have ended in a long drain's time is cut when the closing shortens that."""
    from deferred import Retry

    async def fails():
        raise ConnectionError

    async def main():
        supervisor = Supervisor(drain_timeout=20)
        supervisor.open()
        with supervisor.context() as ctx:
            policy = Retry(on=lambda _error: 500.0, timeout=None)
            handle = ctx.with_options(retry=policy).defer(fails)
        long = asyncio.ensure_future(supervisor.drain(3600))
        await asyncio.sleep(5)
        await supervisor.close()
        assert now() == 5
        assert handle.outcome is Outcome.EXHAUSTED_DEADLINE
        assert (await outcome_of(long)).failed == 1

    run(main())


def test_a_closing_while_a_drain_waits_for_the_engine():
    """S11, S15: a drain that waits for its engine's last verdict alone is joined by the closing as it is."""

    class Slow(MemoryEngine):
        async def serve(self, handle, *, queues, concurrency, stop):
            await stop.wait()
            await asyncio.sleep(10)

    async def main():
        supervisor = Supervisor(engine=Slow(), drain_timeout=20, cancel_grace=30)
        supervisor.task("known")(asyncio.sleep)
        supervisor.open()
        long = asyncio.ensure_future(supervisor.drain(3600))
        await asyncio.sleep(5)
        await supervisor.close()
        assert now() == 10
        assert await long == DrainReport()

    run(main())


@pytest.mark.parametrize("options", [{}, {"timeout": 100}])
@pytest.mark.parametrize("who", ["outer", "inner"])
def test_a_task_drains_a_mounted_app_as_well(who, options):
    """S7, S11: a task may drain the app that its own is mounted in, or the reverse, and waits for all but itself."""

    async def main():
        outer, inner = Supervisor(), Supervisor()
        outer.adopt(inner)
        async with outer:
            with {"outer": outer, "inner": inner}[who].context() as ctx:
                handle = ctx.with_options(**options).defer(outer.drain)
            for supervisor in (outer, inner):
                with supervisor.context() as ctx:
                    ctx.defer(asyncio.sleep, 3)
            await handle
            assert now() == 3

    run(main())
