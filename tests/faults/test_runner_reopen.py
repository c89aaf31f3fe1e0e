"""Supervisors opened again, on several loops, beside threads; contexts left elsewhere: A41, A44, B38."""

import asyncio
import contextvars
import gc
import threading

import pytest

from deferred import (
    ContextClosed,
    ContextSettled,
    EventLoopError,
    Limit,
    Supervisor,
    SupervisorClosedError,
    TaskState,
    current_context,
    defer,
)
from deferred.engines.memory import MemoryEngine
from tests.faults.support import Told, ended, fine, forever, idle, nothing_left, outcome_of, settled, turns, until

SHORT = {"drain_timeout": 0, "cancel_grace": 0.05}


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

    @pytest.mark.parametrize("openings", [2, 3])
    async def test_opened_again_with_a_closing_missing(self, openings):
        """S11, B21: what was opened twice and closed once is closed, and the next opening opens it again, for good."""
        supervisor = Supervisor()
        for _ in range(openings):
            supervisor.open()
        await supervisor.close()
        with supervisor.context() as ctx, pytest.raises(SupervisorClosedError):
            ctx.defer(fine)
        supervisor.open()
        assert not supervisor.draining
        with supervisor.context() as ctx:
            ctx.defer(fine)
        await supervisor.close()
        assert supervisor.stats().succeeded == 1
        with supervisor.context() as ctx, pytest.raises(SupervisorClosedError):
            ctx.defer(fine)

    @pytest.mark.parametrize("openings", [1, 2])
    async def test_opened_while_it_closes(self, openings):
        """S11, B21: a supervisor that is opened while it drains for its closing stays open for whoever opened it."""
        engine, ran = MemoryEngine(), []
        supervisor = Supervisor(engine=engine)

        @supervisor.task("note")
        async def note(what: str):
            ran.append(what)

        release = asyncio.Event()
        for _ in range(openings):
            supervisor.open()
        with supervisor.context() as ctx:
            ctx.defer(release.wait)
        closing = asyncio.ensure_future(supervisor.close())
        await turns(3)
        supervisor.open()
        release.set()
        await closing
        with supervisor.context() as ctx:
            handle = ctx.defer(fine)
            await ctx.enqueue(note, "served")
        await until(lambda: ran)
        await supervisor.close()
        assert handle.state is TaskState.SUCCEEDED
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

    @pytest.mark.parametrize("limits", [{"max_running": 1}, {"limits": {"crowded": Limit(running=1)}}])
    def test_a_loop_that_closes_under_a_queue(self, limits):
        """A41, S10: work that waited for a slot on a loop that is gone holds up none on the next one."""
        supervisor = Supervisor(**limits)

        async def left_behind():
            supervisor.open()
            with supervisor.context() as ctx:
                view = ctx.with_options(name="crowded")
                handles = [view.defer(forever) for _ in range(3)]
            await until(lambda: supervisor.stats().running == 1)
            assert handles[1].cancel()

        async def again():
            async with supervisor:
                with supervisor.context() as ctx:
                    view = ctx.with_options(name="crowded")
                    handles = [view.defer(fine) for _ in range(3)]
                return await settled(*handles)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(left_behind())
        loop.close()
        assert asyncio.run(again()) == [TaskState.SUCCEEDED] * 3
        assert nothing_left(supervisor)
        assert supervisor.stats().abandoned == 2

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
                    answers.append(hex(id(asyncio.get_running_loop())))
                    return answers

                coroutines.append(fine())
                first, second, other = await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
                assert coroutines[0].cr_frame is None
                for text in (first, second):
                    assert other in text
                    assert hex(id(asyncio.get_running_loop())) in text
                release.set()

    async def test_a_drain_on_another_loop(self):
        """A41: draining from a second loop is refused, and the work goes on."""
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(fine)
            answer = await asyncio.to_thread(lambda: asyncio.run(outcome_of(supervisor.drain())))
            assert type(answer) is EventLoopError
            assert await settled(handle) == [TaskState.SUCCEEDED]

    async def test_a_context_drained_on_another_loop(self):
        """A41: to drain a context on another loop than its work runs on is refused, by both loops."""
        async with Supervisor() as supervisor:
            with supervisor.context() as empty:
                pass
            release = asyncio.Event()
            with supervisor.context() as ctx:
                ctx.defer(release.wait)
            answer = await asyncio.to_thread(lambda: asyncio.run(outcome_of(ctx.drained())))
            assert type(answer) is EventLoopError
            assert str(answer).count(" at 0x") == 2
            assert (await asyncio.to_thread(lambda: asyncio.run(empty.drained()))).finished == 0
            release.set()
            assert (await ctx.drained()).finished == 1


class TestThreads:
    async def test_registering_while_it_drains(self):
        """S6, S7: what threads register during a drain is waited for, all of it."""
        accepted, stop = [], threading.Event()

        def hammer(ctx):
            while not stop.is_set() and len(accepted) < 20_000:
                accepted.append(ctx.defer(fine))

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
            for thread in threads:  # what one of them still registers finds its context unsettled
                await asyncio.to_thread(thread.join)
            release.set()
            await draining
            await idle(supervisor)
        assert all(handle.done() for handle in accepted)
        assert ended(supervisor) == len(accepted) + 1
        assert nothing_left(supervisor)
        assert ctx.pending == 0

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

    @pytest.mark.parametrize("cancelled", [False, True])
    async def test_left_in_another_thread_of_a_loop_that_looks(self, cancelled):
        """S5, S6: a thread that leaves a context touches the loop as threads may, which asyncio's debug mode checks."""
        ran = []
        asyncio.get_running_loop().set_debug(True)
        try:
            async with Supervisor() as supervisor:
                scope = supervisor.context()
                ctx = contextvars.Context().run(scope.__enter__)
                handle = ctx.defer(ran.append, 1)
                if cancelled:
                    handle.cancel()
                await asyncio.to_thread(contextvars.Context().run, scope.__exit__, None, None, None)
                await turns(3)
                assert ctx.closed
                await supervisor.drain()
        finally:
            asyncio.get_running_loop().set_debug(False)
        assert ran == ([] if cancelled else [1])

    async def test_left_in_another_thread_while_threads_register(self):
        """S6: what threads register while another one leaves the context is all run."""
        ran = []
        async with Supervisor(max_per_context=100_000) as supervisor:
            for _ in range(20):
                scope = supervisor.context()
                ctx = contextvars.Context().run(scope.__enter__)
                first = asyncio.Event()
                ctx.wait_until(first.wait())
                registering = [asyncio.create_task(asyncio.to_thread(_defer_many, ctx, ran)) for _ in range(2)]
                await asyncio.to_thread(contextvars.Context().run, scope.__exit__, None, None, None)
                await asyncio.gather(*registering)
                first.set()
                await until(lambda: not ctx.pending)  # noqa: B023  # called here
        assert len(ran) == 20 * 2 * 50

    async def test_ended_twice(self):
        """CL-01: a unit of work that is ended by hand inside its block has closed and settled once."""
        told = Told()
        async with Supervisor(hooks=[told]) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(fine)
                ctx.end()
                await idle(supervisor)
                assert ctx.closed
        assert [type(event) for event in told.seen if isinstance(event, ContextClosed | ContextSettled)] == [
            ContextClosed,
            ContextSettled,
        ]

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


def _defer_many(ctx, ran):
    async def note():
        ran.append(1)

    for _ in range(50):
        ctx.defer(note)


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
