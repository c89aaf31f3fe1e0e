"""Waits for room that nobody could end: S10, A18, A48."""

import asyncio
import contextlib

import pytest

from deferred import Execution, Limit, Supervisor, TaskRejectedError, TaskState, sequential
from tests.faults.support import Told, fine, nothing_left, outcome_of, settled, turns, until

FOR_EVER = "to wait for room would be to wait for ever"
OPTIONS = {"plain": {}, "dressed": {"timeout": 100}}


class Gate:
    """Lets tasks register when it is told to, and keeps what came of it."""

    def __init__(self):
        self.answers = {}
        self._events = {}

    def let(self, *names):
        """Let these go on."""
        for name in names:
            self._event(name).set()

    def _event(self, name):
        return self._events.setdefault(name, asyncio.Event())

    async def task(self, name, ctx, work=fine):
        """Wait to be let, then run a step."""
        await self._event(name).wait()
        self.answers[name] = answer = await outcome_of(ctx.run(work))
        return answer

    def refused(self, name):
        """Say whether this one was told that it would wait for ever."""
        answer = self.answers.get(name)
        return isinstance(answer, TaskRejectedError) and FOR_EVER in str(answer)


@pytest.fixture
def gate():
    """Give what lets tasks register."""
    return Gate()


def wait(**limits):
    """Return a supervisor whose steps wait for room."""
    return Supervisor(overflow="wait", drain_timeout=0, cancel_grace=0, **limits)


class TestContexts:
    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    @pytest.mark.parametrize("execution", [Execution.DEFERRED, Execution.CONCURRENT])
    async def test_a_task_waits_for_itself(self, gate, execution, options):
        """S10, A18: a step of a task that fills its context alone is refused at once, by the limit's name."""
        told = Told()
        async with wait(max_per_context=1, hooks=[told]) as supervisor:
            with supervisor.context() as ctx:
                ctx.route = execution
                handle = await ctx.with_options(**options).run(gate.task, "a", ctx)
            gate.let("a")
            await settled(handle)
            assert gate.refused("a")
            assert "(max_per_context=1)" in str(gate.answers["a"])
            assert nothing_left(supervisor)

    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    async def test_two_tasks_wait_for_each_other(self, gate, options):
        """S10: of two tasks that fill their context the second to wait is refused, and makes room for the first."""
        async with wait(max_per_context=2) as supervisor:
            with supervisor.context() as ctx:
                view = ctx.with_options(**options)
                handles = [view.defer(gate.task, name, ctx) for name in "ab"]
            gate.let("a")
            await turns(10)
            assert gate.answers == {}
            gate.let("b")
            await settled(*handles)
            assert gate.refused("b")
            assert await settled(gate.answers["a"]) == [TaskState.SUCCEEDED]

    @pytest.mark.parametrize("names", ["ab", "abc"])
    async def test_in_a_circle(self, gate, names):
        """S10: tasks of full contexts that wait for room in the next one make no circle: the last is refused."""
        async with wait(max_per_context=1) as supervisor:
            with contextlib.ExitStack() as units:
                contexts = [units.enter_context(supervisor.context()) for _ in names]
                handles = [
                    ctx.defer(gate.task, name, contexts[(index + 1) % len(names)])
                    for index, (name, ctx) in enumerate(zip(names, contexts, strict=True))
                ]
            for name in names[:-1]:
                gate.let(name)
                await turns(10)
            assert gate.answers == {}
            gate.let(names[-1])
            await settled(handles[-1])
            assert gate.refused(names[-1])
            for index in reversed(range(len(names) - 1)):  # each ends, and the context of the one before has room
                await settled(handles[index])
                assert not gate.refused(names[index])

    async def test_the_handler_waits_too(self, gate):
        """S10: a task waits for room while its handler does, and what is deferred waits for that one: refused."""
        for first, second in (("task", "handler"), ("handler", "task")):
            gate.answers.clear()
            async with wait(max_per_context=2) as supervisor:
                with supervisor.context() as ctx:
                    ctx.defer(fine)
                    ctx.wait_until(gate.task(f"task before {second}", ctx))
                    handler = asyncio.ensure_future(gate.task(f"handler before {second}", ctx))
                    gate.let(f"{first} before {second}")
                    await turns(10)
                    assert gate.answers == {}
                    gate.let(f"{second} before {second}")
                    await until(lambda: gate.answers)  # called here
                    assert gate.refused(f"{second} before {second}")
                    if second == "task":
                        await until(handler.done)
                await until(lambda: len(gate.answers) == 2)

    async def test_the_handler_goes_on(self, gate):
        """S10: a task that fills an open context with what is deferred there waits for the handler to answer."""
        async with wait(max_per_context=2) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(fine)
                handle = ctx.wait_until(gate.task("a", ctx))
                gate.let("a")
                await turns(10)
                assert gate.answers == {}
            assert await settled(handle, await _handle(handle)) == [TaskState.SUCCEEDED] * 2

    async def test_a_context_inside_a_task(self, gate):
        """S10: a task that has opened a context and filled it is refused there, as a handler is."""
        async with wait(max_per_context=1) as supervisor:

            async def task():
                with supervisor.context() as inner:
                    inner.defer(fine)
                    gate.let("a")
                    await gate.task("a", inner)

            with supervisor.context() as ctx:
                handle = ctx.defer(task)
            await settled(handle)
            assert gate.refused("a")

    async def test_for_another_limit(self, gate):
        """S10: a task whose fellow waits for a limit that others may ease waits with it."""
        release = asyncio.Event()
        async with wait(max_per_context=2, max_running=3, max_pending=3) as supervisor:
            with supervisor.context() as ctx, supervisor.context() as other:
                handles = [other.defer(release.wait), ctx.defer(gate.task, "a", other), ctx.defer(gate.task, "b", ctx)]
            await turns(3)
            for _ in range(3):
                with supervisor.context() as third:
                    third.defer(fine)
            gate.let("a")
            await turns(10)
            gate.let("b")
            await turns(10)
            assert gate.answers == {}
            release.set()
            await settled(*handles)
            assert not any(map(gate.refused, "ab"))
            assert await settled(gate.answers["b"]) == [TaskState.SUCCEEDED]

    async def test_a_limit_that_is_reached_later(self, gate):
        """S10: a task that waits for another limit of a context waits for what has filled that one since as well."""
        release = asyncio.Event()
        async with wait(max_per_context=1, limits={"x": Limit(running=1, pending=1)}) as supervisor:
            with contextlib.ExitStack() as units:
                own, full, *others = (units.enter_context(supervisor.context()) for _ in range(4))
                handles = [own.defer(gate.task, "a", full.with_options(name="x"))]
                for ctx in (own, full, *others):
                    if ctx in others:
                        handles.append(ctx.with_options(name="x").defer(release.wait))
                    ctx.close()
                    await turns(3)
                gate.let("a")
                await turns(10)
                handles.append(full.defer(gate.task, "b", own))
                gate.let("b")
                await turns(10)
                assert gate.answers == {}
                release.set()
                await settled(*handles)
                assert gate.refused("a")  # it would wait for "b" by now, which waits for its end
                assert await settled(gate.answers["b"]) == [TaskState.SUCCEEDED]

    async def test_twice_at_a_time(self, gate):
        """S10: of a task that waits twice one wait may end: the other still holds up who waits for its end."""
        release = asyncio.Event()
        async with wait(max_per_context=1) as supervisor:
            with supervisor.context() as own, supervisor.context() as first, supervisor.context() as second:

                async def both():
                    await asyncio.gather(gate.task("a", first), gate.task("b", second))

                dressed = own.with_options(timeout=100)  # so that both know whose they are
                handles = [dressed.defer(both), first.defer(release.wait), second.defer(gate.task, "c", own)]
                for ctx in (own, first, second):
                    ctx.close()
                for name in "ab":
                    await turns(10)
                    gate.let(name)
                await turns(10)
                assert gate.answers == {}
                release.set()
                await turns(10)
                assert list(gate.answers) == ["a"]
                gate.let("c")
                await turns(10)
                assert gate.refused("c")
                await settled(*handles)
                assert await settled(*map(gate.answers.get, "ab")) == [TaskState.SUCCEEDED] * 2

    async def test_a_task_waits_for_all_its_waits(self, gate):
        """S10: one of two waits of a task will end and the other will not: whoever waits for its end is refused."""
        release = asyncio.Event()
        async with wait(max_per_context=1) as supervisor:
            with contextlib.ExitStack() as units:
                own, eased, full = (units.enter_context(supervisor.context()) for _ in range(3))

                async def both():
                    await asyncio.gather(gate.task("a", eased), gate.task("b", full))

                dressed = own.with_options(timeout=100)
                handles = [dressed.defer(both), eased.defer(release.wait), full.defer(gate.task, "c", own)]
                for ctx in (own, eased, full):
                    ctx.close()
                gate.let("a", "b")
                await turns(10)
                gate.let("c")
                await turns(10)
                assert gate.refused("c")
                release.set()
                await settled(*handles)
                assert await settled(*map(gate.answers.get, "ab")) == [TaskState.SUCCEEDED] * 2

    async def test_in_a_long_chain(self, gate):
        """S10: any number of tasks may wait for each other in turn, as long as the last of them can go on."""
        release = asyncio.Event()
        names = [str(number) for number in range(1000)]
        async with wait(max_per_context=1, max_running=2000) as supervisor:
            with contextlib.ExitStack() as units:
                *contexts, last = (units.enter_context(supervisor.context()) for _ in range(len(names) + 1))
                handles = [
                    ctx.defer(gate.task, name, following)
                    for name, ctx, following in zip(names, contexts, [*contexts[1:], last], strict=True)
                ]
                handles.append(last.defer(release.wait))
                for ctx in (*contexts, last):
                    ctx.close()
                gate.let(*names[1:])
                await until(lambda: len(supervisor._launcher._waits._tasks) == len(names) - 1)
                gate.let(names[0])
                await until(lambda: len(supervisor._launcher._waits._tasks) == len(names))
                assert gate.answers == {}
                release.set()
                await settled(*handles)
            assert len(gate.answers) == len(names)
            assert not any(map(gate.refused, names))

    async def test_a_step_in_line(self, gate):
        """S10: a step in line that would wait in the context it has filled is refused as its handler would be."""
        async with wait(max_per_context=1) as supervisor:
            with supervisor.context() as inner, supervisor.context() as ctx:
                inner.defer(fine)
                gate.let("a")

                @sequential
                async def handler():
                    await ctx.run(gate.task, "a", inner)

                await handler()
                assert gate.refused("a")


class TestSupervisor:
    async def test_all_who_run_wait(self, gate):
        """S10: when all tasks that run wait for those in line behind them, the last is refused; the others go on."""
        async with wait(max_running=2, max_pending=1) as supervisor:
            for name in "ab":
                with supervisor.context() as ctx:
                    ctx.defer(gate.task, name, ctx)
                await turns(3)
            with supervisor.context() as ctx:
                behind = ctx.defer(fine)
            gate.let("a")
            await turns(10)
            assert gate.answers == {}
            gate.let("b")
            await settled(behind)
            assert gate.refused("b")
            await until(lambda: len(gate.answers) == 2)
            assert await settled(gate.answers["a"]) == [TaskState.SUCCEEDED]

    async def test_its_own_context_waits_in_line(self, gate):
        """S10: a task alone on the slots, whose context is full of those in line behind it, is refused."""
        async with wait(max_running=1, max_per_context=2) as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.defer(gate.task, "a", ctx), ctx.defer(fine)]
            gate.let("a")
            assert await settled(*handles) == [TaskState.SUCCEEDED] * 2
            assert gate.refused("a")

    async def test_two_handlers_hold_each_other_up(self, gate):
        """S10: handlers whose own deferred work is all that waits hold each other up: the last to wait is refused."""
        async with wait(max_pending=2) as supervisor:
            with supervisor.context() as first, supervisor.context() as second:
                first.defer(fine)
                second.defer(fine)
                handlers = [asyncio.ensure_future(gate.task(name, ctx)) for name, ctx in (("a", first), ("b", second))]
                gate.let("a")
                await turns(10)
                assert gate.answers == {}
                gate.let("b")
                await until(handlers[1].done)
                assert gate.refused("b")
                second.end()
                await until(handlers[0].done)
                assert gate.answers["a"].state is TaskState.PENDING

    async def test_others_make_room(self, gate):
        """S10: a handler that has deferred work waits all the same for room that others will make."""
        release = asyncio.Event()
        async with wait(max_running=1, max_pending=2) as supervisor:
            for work in (release.wait, fine):
                with supervisor.context() as ctx:
                    ctx.defer(work)
                await turns(3)
            with supervisor.context() as ctx:
                ctx.defer(fine)
                gate.let("a")
                handler = asyncio.ensure_future(gate.task("a", ctx))
                await turns(10)
                assert gate.answers == {}
                release.set()
                await until(handler.done)
            assert await settled(gate.answers["a"]) == [TaskState.SUCCEEDED]

    async def test_a_wait_that_was_given_up(self, gate):
        """S10: a task that gives up waiting, and goes on, is one that can make room again."""
        release = asyncio.Event()
        async with wait(max_per_context=2) as supervisor:
            with supervisor.context() as ctx:

                async def impatient():
                    waiting = asyncio.current_task()
                    asyncio.get_running_loop().call_soon(waiting.cancel)
                    await outcome_of(ctx.run(fine))
                    waiting.uncancel()
                    await release.wait()

                handles = [ctx.defer(impatient), ctx.defer(gate.task, "a", ctx)]
            await turns(10)
            gate.let("a")
            await turns(10)
            assert gate.answers == {}
            release.set()
            assert await settled(*handles) == [TaskState.SUCCEEDED] * 2
            assert await settled(gate.answers["a"]) == [TaskState.SUCCEEDED]

    async def test_a_handler_that_gave_up(self, gate):
        """S10: a handler that gives up waiting does not count as one that holds others up."""
        async with wait(max_pending=2) as supervisor:
            with supervisor.context() as first, supervisor.context() as second:
                first.defer(fine)
                second.defer(fine)
                gate.let("a", "b")
                impatient = asyncio.ensure_future(first.run(fine))
                await turns(3)
                impatient.cancel()
                await until(impatient.done)
                handler = asyncio.ensure_future(gate.task("b", second))
                await turns(10)
                assert gate.answers == {}
                first.end()
                await until(handler.done)
                assert not gate.refused("b")

    async def test_a_handler_that_gave_up_one_of_two(self, gate):
        """S10: a handler that waits twice and gives one up still holds up what it has deferred."""
        async with wait(max_pending=2) as supervisor:
            with supervisor.context() as first, supervisor.context() as second:
                first.defer(fine)
                second.defer(fine)
                gate.let("a", "b")
                impatient = asyncio.ensure_future(first.run(fine))
                patient = asyncio.ensure_future(gate.task("a", first))
                await turns(3)
                impatient.cancel()
                await until(impatient.done)
                assert gate.answers == {}
                handler = asyncio.ensure_future(gate.task("b", second))
                await turns(10)
                assert gate.refused("b")
                assert handler.done()
                second.end()
                await until(patient.done)
                assert gate.answers["a"].state is TaskState.PENDING

    async def test_work_that_cannot_wait(self):
        """S10: what cannot wait is refused with the way to do so, unless that would never end."""
        async with wait(max_per_context=1) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.wait_until(asyncio.Event().wait())
                with pytest.raises(TaskRejectedError, match=r"`await ctx.run\(...\)` waits for room"):
                    ctx.defer(fine)
                handle.cancel()
                await settled(handle)
                ctx.defer(fine)
                with pytest.raises(TaskRejectedError, match=FOR_EVER):
                    ctx.defer(fine)
                refused = await asyncio.to_thread(_try, ctx)
                assert "max_per_context=1" in refused
                assert "wait" not in refused


class TestNames:
    async def test_a_task_that_registers_its_own_kind(self, gate):
        """S10: when all tasks of a name that run wait to register another one, the last is refused."""
        async with wait(limits={"crawl": Limit(running=2, pending=1)}) as supervisor:

            async def register(name, ctx):
                return await gate.task(name, ctx.with_options(name="crawl"))

            with supervisor.context() as ctx:
                view = ctx.with_options(name="crawl")
                handles = [await view.run(register, name, ctx) for name in "a"]
            await turns(3)
            with supervisor.context() as ctx:
                handles.append(await ctx.with_options(name="crawl").run(register, "b", ctx))
            await turns(3)
            with supervisor.context() as ctx:
                handles.append(await ctx.with_options(name="crawl").run(fine))
                other = ctx.defer(gate.task, "c", ctx.with_options(name="crawl"))
            gate.let("a", "c")
            await turns(10)
            assert gate.answers == {}
            gate.let("b")
            await settled(*handles, other)
            assert [name for name in "abc" if gate.refused(name)] == ["b"]
            await settled(gate.answers["a"], gate.answers["c"])
            assert nothing_left(supervisor)

    async def test_the_only_one_that_registers_its_own_kind(self, gate):
        """S10: a task whose name lets one run and one wait is refused a third, with the second in line behind it."""
        async with wait(limits={"crawl": Limit(running=1, pending=1)}) as supervisor:
            with supervisor.context() as ctx:
                view = ctx.with_options(name="crawl")
                handles = [view.defer(gate.task, "a", view)]
            await turns(3)
            with supervisor.context() as ctx:
                handles.append(ctx.with_options(name="crawl").defer(fine))
            gate.let("a")
            await turns(10)
            assert gate.refused("a")
            assert await settled(*handles) == [TaskState.SUCCEEDED] * 2

    async def test_a_handler_beside_tasks_that_wait(self, gate):
        """S10: a handler, which no task of the name waits for, waits beside a task of it that others will let in."""
        release = asyncio.Event()
        async with wait(max_per_context=1, limits={"x": Limit(running=1, pending=1)}) as supervisor:
            with contextlib.ExitStack() as units:
                own, full, behind = (units.enter_context(supervisor.context()) for _ in range(3))
                handles = [own.with_options(name="x").defer(gate.task, "a", full), full.defer(release.wait)]
                own.close()
                await turns(3)
                handles.append(behind.with_options(name="x").defer(fine))
            gate.let("a")
            await turns(10)
            with supervisor.context() as ctx:
                ctx.close()
                handler = asyncio.ensure_future(ctx.with_options(name="x").run(fine))
                await turns(10)
                assert not handler.done()
                release.set()
                assert await settled(*handles, await handler) == [TaskState.SUCCEEDED] * 4
            assert not gate.refused("a")

    async def test_a_name_that_has_room_beside_a_full_context(self, gate):
        """S10: all tasks of a name wait, and one more may: whoever waits for a context's room is not refused."""
        release = asyncio.Event()
        async with wait(max_per_context=1, limits={"x": Limit(running=1, pending=2)}) as supervisor:
            with contextlib.ExitStack() as units:
                own, full, behind = (units.enter_context(supervisor.context()) for _ in range(3))
                view = full.with_options(name="x")
                handles = [own.with_options(name="x").defer(gate.task, "a", view), full.defer(release.wait)]
                own.close()
                await turns(3)
                handles.append(behind.with_options(name="x").defer(fine))
                full.close()
                behind.close()
                gate.let("a")
                await turns(10)
                assert gate.answers == {}
                release.set()
                await settled(*handles)
                assert await settled(gate.answers["a"]) == [TaskState.SUCCEEDED]

    async def test_a_handler_that_has_deferred_its_kind(self, gate):
        """S10: a handler whose own deferred work is all that waits under a name is refused another one."""
        async with wait(limits={"x": Limit(pending=1)}) as supervisor:
            with supervisor.context() as ctx:
                ctx.with_options(name="x").defer(fine)
                gate.let("a")
                await gate.task("a", ctx.with_options(name="x"))
                assert gate.refused("a")
                ctx.defer(fine)
                assert (await ctx.with_options(name="y").run(fine)).state is TaskState.PENDING

    @pytest.mark.parametrize("limits", [{"x": Limit(running=1, pending=1)}, {"fine": Limit(running=1, pending=1)}])
    async def test_a_name_that_has_room(self, gate, limits):
        """S10: a task that fills its context alone is refused, whatever limits names have beside that."""
        async with wait(max_per_context=1, limits=limits) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(gate.task, "a", ctx)
            gate.let("a")
            await settled(handle)
            assert gate.refused("a")


async def _handle(handle):
    return await handle


def _try(ctx):
    try:
        ctx.defer(fine)
    except TaskRejectedError as error:
        return str(error)
