"""Drains: A44, C21, C22, drains in tasks and beside drains, supervisors opened again and on several loops."""

import asyncio
import contextvars
import gc
import threading

import pytest

from deferred import (
    DrainFinished,
    EventLoopError,
    Outcome,
    Supervisor,
    SupervisorClosedError,
    TaskState,
    current_context,
    defer,
)
from tests.faults.support import Told, ended, fine, forever, idle, nothing_left, outcome_of, settled, turns, until

SHORT = {"drain_timeout": 0, "cancel_grace": 0.05}


class TestEnds:
    async def test_reported_in_full(self):
        """S11: every task is in the report or its counts, whatever its end."""
        async with Supervisor(**SHORT) as supervisor:
            with supervisor.context("POST /x") as ctx:
                never_started = ctx.defer(fine)
                running = ctx.wait_until(forever())
                await turns(3)
                report = await supervisor.drain()
            assert {task.id for task in report.cancelled} == {never_started.id, running.id}
            assert all(task.label == "POST /x" and "test_runner_drain.py:" in task.site for task in report.cancelled)
            assert {never_started.outcome, running.outcome} == {
                Outcome.CANCELLED_AT_DEADLINE,
                Outcome.CANCELLED_BY_DRAIN,
            }

    async def test_the_drain_is_cancelled(self):
        """C21, C22: a drain that is cancelled records what is left before it raises, and the next one works."""
        told = Told()
        async with Supervisor(hooks=[told], drain_timeout=1000) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(forever)
            await turns(3)
            draining = asyncio.ensure_future(supervisor.drain())
            await turns(3)
            draining.cancel()
            assert type(await outcome_of(draining)) is asyncio.CancelledError
            assert handle.state is TaskState.ABANDONED
            (finished,) = told.of(DrainFinished)
            assert [task.id for task in finished.report.abandoned] == [handle.id]
            assert not supervisor.draining
            with supervisor.context() as ctx:
                ctx.defer(fine)
            assert (await supervisor.drain()).finished == 1
        assert nothing_left(supervisor)

    async def test_the_closing_is_cancelled(self):
        """C21, C22: the same for ``async with``; nothing is accepted afterwards."""
        supervisor = Supervisor(drain_timeout=1000)
        supervisor.open()
        with supervisor.context() as ctx:
            handle = ctx.defer(forever)
        closing = asyncio.ensure_future(supervisor.close())
        await turns(3)
        closing.cancel()
        assert type(await outcome_of(closing)) is asyncio.CancelledError
        assert handle.state is TaskState.ABANDONED
        with supervisor.context() as ctx, pytest.raises(SupervisorClosedError):
            ctx.defer(fine)
        await turns(3)
        assert nothing_left(supervisor)

    async def test_work_for_ever(self):
        """A18: tasks that defer one another without end are stopped, and the drain with them."""
        count = 0

        async def again():
            nonlocal count
            count += 1
            defer(again)
            await asyncio.sleep(0)

        async with Supervisor(max_per_context=200) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(again)
            await supervisor.drain()
        assert 100 <= count <= 400
        assert nothing_left(supervisor)

    @pytest.mark.looptime
    async def test_slow_work_for_ever(self):
        """A17, A18: children are waited for under one deadline, however many there are."""
        loop = asyncio.get_running_loop()

        async def again():
            await asyncio.sleep(7)
            defer(again)

        async with Supervisor(drain_timeout=20) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(again)
            report = await supervisor.drain()
            assert loop.time() == pytest.approx(20)
        assert report.finished == 2
        assert len(report.cancelled) == 1
        assert nothing_left(supervisor)

    @pytest.mark.looptime
    async def test_deferring_when_cancelled(self):
        """S7, S11: work deferred by the clean-up of a cancelled task is reported, and not started after the deadline."""
        started = []

        async def cleans():
            try:
                await forever()
            finally:
                ctx.defer(started.append, 1)

        async with Supervisor(drain_timeout=5) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(cleans)
            report = await supervisor.drain()
        assert len(report.cancelled) == 2
        assert started == []
        assert nothing_left(supervisor)


@pytest.mark.looptime
class TestFromInside:
    async def test_by_a_task(self):
        """S11: a task may drain the supervisor: it waits for all the others and not for itself."""
        loop = asyncio.get_running_loop()
        async with Supervisor(drain_timeout=20) as supervisor:

            async def drains():
                return await supervisor.drain()

            with supervisor.context() as ctx:
                handle = ctx.defer(drains)
                ctx.defer(asyncio.sleep, 3)
            report = await handle
            assert loop.time() == pytest.approx(3)
        assert report.finished == 1

    async def test_by_two_tasks(self):
        """S11: two tasks that drain the supervisor wait for the rest, and not for each other until the deadline."""
        loop = asyncio.get_running_loop()
        async with Supervisor(drain_timeout=20) as supervisor:

            async def drains():
                return await supervisor.drain()

            with supervisor.context() as ctx:
                handles = [ctx.defer(drains), ctx.defer(drains)]
                ctx.defer(asyncio.sleep, 3)
            await until_ended(*handles)
            assert [handle.state for handle in handles] == [TaskState.SUCCEEDED] * 2
            assert loop.time() == pytest.approx(3)

    async def test_by_a_task_beside_the_shutdown(self):
        """S11: a task that drains while the app shuts down does not hold up the shutdown."""
        loop = asyncio.get_running_loop()

        async def drains():
            await asyncio.sleep(1)
            await supervisor.drain()

        async with Supervisor(drain_timeout=20) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(drains)
        assert loop.time() == pytest.approx(1)
        assert handle.state is TaskState.SUCCEEDED

    async def test_of_their_context_by_two_tasks(self):
        """S11: two tasks that drain their own context wait for the rest of it, and not for each other."""
        loop = asyncio.get_running_loop()

        async def drains():
            await ctx.drained()

        async with Supervisor(drain_timeout=20) as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.defer(drains), ctx.defer(drains)]
                ctx.defer(asyncio.sleep, 3)
            await until_ended(*handles)
            assert [handle.state for handle in handles] == [TaskState.SUCCEEDED] * 2
            assert loop.time() == pytest.approx(3)

    async def test_by_a_handler(self):
        """S11: a handler that drains its open context waits until the deadline for what cannot start, and no longer."""
        loop = asyncio.get_running_loop()
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(fine)
                report = await ctx.drained(4)
            assert loop.time() == pytest.approx(4)
        assert handle.outcome is Outcome.CANCELLED_AT_DEADLINE
        assert len(report.cancelled) == 1

    async def test_concurrently(self):
        """S11: drains at the same time share one report; cancelling one that joined leaves the other."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(asyncio.sleep, 3)
            drains = [asyncio.ensure_future(supervisor.drain()) for _ in range(3)]
            await turns(3)
            drains[1].cancel()
            first, third = await drains[0], await drains[2]
        assert first == third
        assert first.finished == 1

    async def test_in_a_circle(self):
        """S11: supervisors that drain one another in a circle all end in time."""
        loop = asyncio.get_running_loop()
        circle = [Supervisor(drain_timeout=5) for _ in range(3)]
        for index, supervisor in enumerate(circle):
            supervisor.adopt(circle[(index + 1) % 3])
        for supervisor in circle:
            with supervisor.context() as ctx:
                ctx.defer(asyncio.sleep, 1)
        draining = asyncio.ensure_future(circle[0].drain())
        await asyncio.wait([draining], timeout=60)
        assert draining.done()
        assert loop.time() == pytest.approx(1)
        assert all(nothing_left(supervisor) for supervisor in circle)


class TestAgain:
    async def test_opened_again(self):
        """S11: a supervisor that was drained and closed may be opened again, and works as before."""
        supervisor = Supervisor()
        for count in (1, 2, 3):
            async with supervisor:
                with supervisor.context() as ctx:
                    ctx.defer(fine)
            assert supervisor.stats().succeeded == count
            with supervisor.context() as ctx, pytest.raises(SupervisorClosedError):
                ctx.defer(fine)

    def test_on_one_loop_after_another(self):
        """A44: a supervisor of a module serves one `asyncio.run` after another, also after one that broke off."""
        supervisor = Supervisor()

        async def well():
            async with supervisor:
                with supervisor.context() as ctx:
                    handle = ctx.defer(fine)
            return handle.state

        async def badly():
            supervisor.open()
            with supervisor.context() as ctx:
                ctx.defer(forever)
                ctx.defer(fine)
            await turns(2)

        assert asyncio.run(well()) is TaskState.SUCCEEDED
        asyncio.run(badly())
        assert asyncio.run(well()) is TaskState.SUCCEEDED
        assert asyncio.run(well()) is TaskState.SUCCEEDED
        assert nothing_left(supervisor)

    def test_never_opened_on_one_loop_after_another(self):
        """A44: what a loop has left behind is abandoned when the next one takes over."""
        supervisor = Supervisor()
        handles = []

        async def leaves():
            scope = supervisor.context()
            handles.append((scope, scope.__enter__().defer(fine)))

        async def works():
            with supervisor.context() as ctx:
                handle = ctx.defer(fine)
            return await handle

        asyncio.run(leaves())
        assert asyncio.run(works()) == "fine"
        assert handles[0][1].state is TaskState.ABANDONED
        assert nothing_left(supervisor)
        handles[0][0].__exit__(None, None, None)

    def test_a_loop_that_closes_under_its_tasks(self, recwarn):
        """A44: a loop closed without any clean-up: each task ends as abandoned, without "destroyed but pending"."""
        supervisor, told = Supervisor(), Told()
        supervisor.add_hook(told)
        loop = asyncio.new_event_loop()
        errors = []
        loop.set_exception_handler(lambda _loop, context: errors.append(context))

        async def leaves():
            with supervisor.context() as ctx:
                handles = [ctx.defer(forever), ctx.defer(asyncio.sleep, 1000), ctx.wait_until(forever())]
            await turns(3)
            return handles

        handles = loop.run_until_complete(leaves())
        loop.close()
        gc.collect()

        async def works():
            async with supervisor:
                pass

        asyncio.run(works())
        gc.collect()
        assert [handle.state for handle in handles] == [TaskState.ABANDONED] * 3
        assert supervisor.stats().abandoned == 3
        assert not errors
        assert not recwarn.list
        assert nothing_left(supervisor)

    async def test_another_loop_while_this_one_runs(self):
        """A41: registering on a second loop is refused, naming both, and the coroutine is closed."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                release = asyncio.Event()
                ctx.wait_until(release.wait())
                coroutines = []

                async def elsewhere():
                    answers = []
                    for call in (lambda: ctx.defer(fine), lambda: ctx.wait_until(coroutines[0])):
                        try:
                            call()
                        except EventLoopError as error:
                            answers.append(str(error))
                    answers.append(repr(asyncio.get_running_loop()))
                    return answers

                coroutines.append(fine())
                first, second, name = await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
                assert coroutines[0].cr_frame is None
                for text in (first, second):
                    assert name[:20] in text
                    assert repr(asyncio.get_running_loop())[:20] in text
                release.set()

    async def test_a_drain_on_another_loop(self):
        """A41: draining from a second loop is refused, and the work goes on."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(fine)
            answer = await asyncio.to_thread(lambda: asyncio.run(outcome_of(supervisor.drain())))
            assert type(answer) is EventLoopError
            assert await settled(handle) == [TaskState.SUCCEEDED]


class TestThreads:
    async def test_registering_while_it_drains(self):
        """S6, S7: threads that register during a drain are waited for or refused, each of them."""
        accepted, refused, stop = [], [], threading.Event()

        def hammer(ctx):
            while not stop.is_set():
                try:
                    accepted.append(ctx.defer(fine))
                except Exception as error:  # noqa: BLE001  # a refusal is an answer
                    refused.append(error)
                    return

        async with Supervisor(max_pending=100_000, max_per_context=100_000) as supervisor:
            release = asyncio.Event()
            with supervisor.context() as ctx:
                ctx.defer(release.wait)
            threads = [threading.Thread(target=hammer, args=(ctx,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            await until(lambda: len(accepted) > 50)
            draining = asyncio.ensure_future(supervisor.drain())
            await turns(20)
            stop.set()
            release.set()
            for thread in threads:
                await asyncio.to_thread(thread.join)
            await draining
            await idle(supervisor)
        assert all(handle.done() for handle in accepted)
        assert ended(supervisor) == len(accepted) + 1
        assert nothing_left(supervisor)
        assert ctx.pending == 0

    async def test_registering_while_it_closes(self):
        """S6, S7: the same while it closes: what was accepted has an end, and later calls are refused."""
        accepted, refused = [], []

        def hammer(supervisor):
            while not refused:
                try:
                    with supervisor.context() as ctx:
                        accepted.append(ctx.defer(fine))
                except SupervisorClosedError as error:
                    refused.append(error)

        async with Supervisor(max_pending=100_000, cancel_grace=0.1) as supervisor:
            thread = threading.Thread(target=hammer, args=(supervisor,))
            thread.start()
            await until(lambda: len(accepted) > 20)
            closing = asyncio.ensure_future(supervisor.drain(0))
            await closing
        await asyncio.to_thread(thread.join)
        await turns(20)
        assert refused
        assert all(handle.done() for handle in accepted)
        assert nothing_left(supervisor)

    async def test_shut_between_two_steps_of_a_thread(self, monkeypatch):
        """S7, S10: a thread whose registration crosses the closing is refused and leaves no place taken."""
        from deferred import Limit

        async with Supervisor(limits={"fine": Limit(pending=5)}) as supervisor:
            launcher = supervisor._launcher
            admit = launcher.admit

            class Crossing:
                def admit(self, *args):
                    answer = admit(*args)
                    launcher.shut("it was closed in between")
                    return answer

            monkeypatch.setattr(type(launcher), "admit", lambda self, *args: Crossing().admit(*args))
            with supervisor.context() as ctx:
                answer = await asyncio.to_thread(_try, ctx)
            assert type(answer) is SupervisorClosedError
            assert ctx.pending == 0
            assert launcher.slots._named["fine"].accepted == 0
            assert nothing_left(supervisor)
            monkeypatch.undo()


class TestScopes:
    async def test_left_in_another_context(self):
        """S5: a context opened in one asyncio task and left in another, as a generator does, still runs its work."""
        ran = []

        async def dependency():
            with supervisor.context() as ctx:
                ctx.defer(ran.append, 1)
                yield ctx

        async with Supervisor() as supervisor:
            generator = dependency()
            await asyncio.create_task(_step(generator))
            assert await asyncio.create_task(outcome_of(_step(generator))) is None
            await supervisor.drain()
        assert ran == [1]

    async def test_left_in_another_thread(self):
        """S5: the same for threads, each with variables of its own."""
        ran = []
        async with Supervisor() as supervisor:
            scope = supervisor.context()
            ctx = contextvars.Context().run(scope.__enter__)
            ctx.defer(ran.append, 1)
            await asyncio.to_thread(contextvars.Context().run, scope.__exit__, None, None, None)
            await supervisor.drain()
        assert ran == [1]

    async def test_nested(self):
        """B38: contexts nest: each takes its own work, and wrapped functions drain theirs before they return."""
        order = []
        supervisor = Supervisor()

        @supervisor.wrap
        async def inner():
            defer(_note, order, "inner task")

        @supervisor.wrap
        async def outer():
            here = current_context()
            defer(_note, order, "outer task")
            await inner()
            order.append("back")
            assert current_context() is here

        await outer()
        assert order == ["inner task", "back", "outer task"]
        with pytest.raises(LookupError):
            current_context()


async def _note(order, what):
    order.append(what)


async def _step(generator):
    async for _ in generator:
        return


def _try(ctx):
    try:
        return ctx.defer(fine)
    except Exception as error:  # noqa: BLE001  # the test looks at it
        return error


async def until_ended(*handles):
    """Wait for these, in the time of the loop."""
    for handle in handles:
        await outcome_of(_wait(handle))


async def _wait(handle):
    return await handle


