"""What a drain is told by and tells, where a small slip would go unseen: times, reports, mounted apps, late work."""

import asyncio
import threading

import pytest

from deferred import (
    DrainFinished,
    DrainStarted,
    EventLoopError,
    Execution,
    Outcome,
    Retry,
    Supervisor,
    SupervisorClosedError,
    TaskRejectedError,
    TaskState,
)
from deferred._drain import Drain
from tests.faults.support import Told, nothing_left
from tests.proof.clock import VirtualLoop, run


async def fine():
    """Succeed."""


async def forever():
    """Wait for what never comes."""
    await asyncio.get_running_loop().create_future()


async def stubborn():
    """Ignore one cancellation, for a long time."""
    try:
        await forever()
    except asyncio.CancelledError:
        await forever()


def now():
    """Return the virtual time."""
    return asyncio.get_running_loop().time()


def test_what_is_told_of_a_drain():
    """S11: the beginning says how much is left and until when, the end how long it took, whoever joined gets all."""

    async def main():
        told = Told()
        async with Supervisor(hooks=[told], cancel_grace=1) as supervisor:
            await asyncio.sleep(3)
            with supervisor.context() as ctx:
                ctx.defer(asyncio.sleep, 1)
                ctx.defer(forever)
            joined = asyncio.ensure_future(supervisor.drain())
            await asyncio.sleep(0)
            assert ctx.deadline == 23
            reports = await asyncio.gather(joined, supervisor.drain(1))
        (began, _), (ended, _) = told.of(DrainStarted), told.of(DrainFinished)
        assert (began.unfinished, began.deadline, began.at) == (2, 23, 3)
        assert (ended.duration, ended.at) == (20, 23)
        assert reports == [ended.report, ended.report]
        assert (ended.report.finished, len(ended.report.cancelled)) == (1, 1)
        assert ctx.deadline is None

    run(main())


def test_what_ends_beside_it_is_not_left_behind():
    """S11: a step in line that ends during a drain is its handler's, fire-and-forget work nobody's: neither is told."""

    async def main():
        async with Supervisor(drain_timeout=3, cancel_grace=0) as supervisor:
            with supervisor.context() as ctx:
                ctx.route = Execution.FIRE_AND_FORGET
                handles = [await ctx.run(asyncio.sleep, 1), await ctx.run(forever)]
                ctx.defer(asyncio.sleep, 2)
                ctx.close()
                ctx.route = Execution.SEQUENTIAL
                step = asyncio.ensure_future(ctx.run(asyncio.sleep, 1))
                await asyncio.sleep(0)
                report = await supervisor.drain()
                await step
            assert (report.finished, report.cancelled, report.abandoned) == (1, (), ())
            assert [handle.done() for handle in handles] == [True, False]

    run(main())


def test_what_comes_in_during_the_grace_and_never_starts_is_cancelled():
    """S11: work that a stubborn task registers once it is cancelled, for a response to come, is not abandoned."""

    async def main():
        async def registers(ctx):
            try:
                await forever()
            except asyncio.CancelledError:
                ctx.with_options(name="late").defer(fine)
                await forever()

        async with Supervisor(drain_timeout=3, cancel_grace=2) as supervisor:
            with supervisor.context() as still_open:
                with supervisor.context() as ctx:
                    ctx.with_options(name="stubborn").defer(registers, still_open)
                report = await supervisor.drain()
        assert [task.name for task in report.cancelled] == ["late"]
        assert [task.name for task in report.abandoned] == ["stubborn"]

    run(main())


def test_a_task_that_has_drained_is_waited_for_again():
    """S11: a task that drains is not waited for by other tasks that do, but is once its own drain is over."""

    async def main():
        async def first():
            await supervisor.drain()
            order.append("drained")
            await asyncio.sleep(2)
            order.append("first")

        async def second():
            await asyncio.sleep(1)
            report = await supervisor.drain()
            order.append(report.finished)

        order = []
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(first)
            await asyncio.sleep(0.5)
            with supervisor.context() as ctx:
                ctx.defer(second)
            await ctx.drained()
        assert order == ["drained", "first", 1]

    run(main())


def test_a_closing_hastens_the_drain_under_way():
    """S11: a drain that has a hundred seconds has half of one once its supervisor closes; ages are told to the half."""

    async def main():
        async with Supervisor(drain_timeout=0.5, cancel_grace=0) as supervisor:
            await asyncio.sleep(3)
            with supervisor.context() as ctx:
                ctx.defer(forever)
            draining = asyncio.ensure_future(supervisor.drain(100))
            await asyncio.sleep(0)
        report = await draining
        assert now() == 3.5
        assert [task.age for task in report.cancelled] == [0.5]

    run(main())


def test_the_waits_of_others_go_on():
    """S5, S11: a drain cuts the waits between attempts of its own unit of work, whichever others there are."""

    async def main():
        async def fails():
            raise LookupError

        retry = Retry(on=LookupError, wait_initial=9, wait_max=9, wait_jitter=0, attempts=2)
        async with Supervisor(retry=retry, drain_timeout=0, cancel_grace=0) as supervisor:
            with supervisor.context() as others:
                others.route = Execution.FIRE_AND_FORGET
                handles = [await others.run(fails), others.defer(fails)]
                others.close()
                await asyncio.sleep(1)
                with supervisor.context() as ctx:
                    handles.append(ctx.defer(fails))
                await asyncio.sleep(1)
                await ctx.drained(5)
                assert now() == 2
                assert [handle.done() for handle in handles] == [False, False, True]
                await supervisor.drain(5)
                assert now() == 2
                assert [handle.done() for handle in handles] == [False, True, True]

    run(main())


@pytest.mark.parametrize(("how", "cancelled"), [("cancel", 0), ("cut", 1)])
def test_a_hook_that_is_told_of_its_beginning_may_end_it(how, cancelled, caplog):
    """S11, S12: a hook that cancels the last task as a drain begins, or cuts the drain, has it end at once."""

    def hook(event):
        if isinstance(event, DrainStarted):
            handle.cancel() if how == "cancel" else supervisor._cut()

    async def main():
        nonlocal supervisor, handle
        async with Supervisor(hooks=[hook]) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(forever)
                ctx.close()
                if how == "cut":
                    await asyncio.sleep(1)
                began = now()
                report = await supervisor.drain()
            assert (now(), len(report.cancelled)) == (began, cancelled)
        assert not [record for record in caplog.records if record.levelname == "ERROR"]

    supervisor = handle = None
    run(main())


@pytest.mark.parametrize("opened", [True, False])
def test_a_mounted_app_is_drained_in_the_same_time(opened, caplog):
    """S11: a supervisor that another has adopted is drained with it, by its time, and needs no opening of its own."""

    async def main():
        outer, inner = Supervisor(drain_timeout=5), Supervisor(drain_timeout=50)
        outer.adopt(inner)
        inner.adopt(outer)  # makes no circle
        async with outer:
            if opened:
                inner.open()
            with inner.context() as ctx:
                handle = ctx.defer(forever)
            await outer.drain(2)
            assert now() == 2
            with inner.context() as ctx:
                later = ctx.defer(forever)
        assert now() == 7
        assert (handle.outcome, later.outcome) == (Outcome.CANCELLED_BY_DRAIN, Outcome.CANCELLED_BY_DRAIN)
        assert nothing_left(inner)

    run(main())
    assert "never opened" not in caplog.text


def test_an_adopted_launcher():
    """The supervisor of one launcher adopts that of another: what a mounted app's middleware asks for."""

    async def main():
        outer, inner = Supervisor(), Supervisor()
        async with outer:
            outer._launcher.adopt(inner._launcher)
            with inner.context() as ctx:
                handle = ctx.defer(asyncio.sleep, 1)
            await outer.drain()
            assert handle.state is TaskState.SUCCEEDED

    run(main())


@pytest.mark.parametrize(
    ("work", "ends", "at"), [(fine, "succeeded", 0), (forever, "cancelled", 3), (stubborn, "abandoned", 5)]
)
def test_work_of_a_hook_that_hears_of_the_end(work, ends, at):
    """S11: what a hook registers as it is told of the last drain has the same time again, and is not left behind."""

    async def main():
        handles = []

        def last_words(event):
            if isinstance(event, DrainFinished) and not handles:
                with supervisor.context() as ctx:
                    handles.append(ctx.defer(work))

        supervisor = Supervisor(hooks=[last_words], drain_timeout=3, cancel_grace=2)
        async with supervisor:
            pass
        assert now() == at
        assert handles[0].state.value == ends
        assert nothing_left(supervisor)

    run(main())


@pytest.mark.parametrize(("seconds", "at"), [(1, 5), (100, 10)])
def test_a_task_that_drains_during_a_drain(seconds, at):
    """S7, S11: a task that drains while its supervisor does waits for the others, at most until that one's deadline."""

    async def main():
        times = []

        async def drains():
            await asyncio.sleep(4)
            try:
                await supervisor.drain(seconds)
            finally:
                times.append(now())

        async with Supervisor(cancel_grace=1) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(drains)
                other = ctx.defer(forever)
            report = await supervisor.drain(10)
        assert times == [at]
        assert other.done()
        assert report.finished == (seconds == 1)

    run(main())


def test_a_loop_that_is_neither_running_nor_closed():
    """A supervisor whose loop stands still with work on it belongs to that loop; without work it may leave it."""
    supervisor, loop = Supervisor(cancel_grace=0), VirtualLoop()

    async def begin():
        supervisor.open()
        with supervisor.context() as ctx:
            return ctx.defer(forever)

    async def elsewhere():
        with supervisor.context() as ctx:
            return ctx.defer(fine)

    handle = loop.run_until_complete(begin())
    with pytest.raises(EventLoopError, match=r"^fine was not accepted: .* event loop VirtualLoop at 0x"):
        run(elsewhere())
    handle.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    assert handle.done()
    assert run(elsewhere()).name == "fine"
    loop.close()


def test_waiting_work_that_nobody_drains_counts():
    """S10: fire-and-forget work that waits takes room as any other does."""

    async def main():
        async with Supervisor(max_running=1, max_pending=2) as supervisor:
            with supervisor.context() as ctx:
                ctx.route = Execution.FIRE_AND_FORGET
                for _ in range(3):
                    await ctx.run(forever)
                with pytest.raises(TaskRejectedError, match=r"2 tasks wait already \(max_pending=2\)"):
                    await ctx.run(forever)
                with pytest.raises(TaskRejectedError, match=r"2 tasks wait already"):
                    ctx.defer(fine)

    run(main())


def test_the_words_of_a_supervisor_that_is_shut():
    """A supervisor that ends with detached work says that it is abandoned, and nobody is told twice."""

    async def main():
        told = Told()
        async with Supervisor(hooks=[told]) as supervisor:
            with supervisor.context() as ctx:
                ctx.route = Execution.FIRE_AND_FORGET
                handle = await ctx.run(forever)
            await asyncio.sleep(0)
        assert handle.state is TaskState.ABANDONED
        assert supervisor.stats().abandoned == 1
        assert nothing_left(supervisor)

    run(main())


def test_a_thread_registers_during_a_drain():
    """S11, A44: a thread may register until the drain's deadline, and is refused after it, whatever the loop is at."""
    said = []

    def register(ctx):
        try:
            said.append(ctx.defer(fine).name)
        except SupervisorClosedError as error:
            said.append(str(error))

    async def main():
        supervisor = Supervisor(cancel_grace=5)
        async with supervisor:
            with supervisor.context() as ctx:
                ctx.defer(stubborn)
            draining = asyncio.ensure_future(supervisor.drain(1))
            for _ in range(2):
                await asyncio.sleep(0.6)
                thread = threading.Thread(target=register, args=(ctx,))
                thread.start()
                thread.join()
            report = await draining
        assert (report.finished, len(report.abandoned)) == (1, 1)

    run(main())
    assert said == ["fine", "fine was not accepted: the deadline of the drain has passed"]


async def test_a_drain_in_time_looks_at_nobody_else(monkeypatch):
    """S11: requests that each wait for their own work alone cost the same, however many there are."""

    def look(_drain):
        raise AssertionError("it has looked through the tasks of all")

    release = asyncio.Event()
    async with Supervisor() as supervisor:
        with supervisor.context() as others:
            for _ in range(3):
                others.defer(release.wait)
        with supervisor.context() as ctx:
            ctx.defer(fine)
        with monkeypatch.context() as patched:
            patched.setattr(Drain, "unfinished", look)
            report = await ctx.drained()
        assert report.finished == 1
        release.set()
