"""Limits, hosts and hooks of the core, where scenarios come by chance alone."""

import asyncio
import contextvars
import gc
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from deferred import (
    Limit,
    Outcome,
    Supervisor,
    TaskDiscarded,
    TaskRejectedError,
    TaskStarted,
    TaskState,
    current_context,
    current_task,
    defer,
    sequential,
)
from deferred._launch import _BATCH
from deferred._limits import Slots


async def wait_for(gate):
    """Wait for it, as a plain function of the short way."""
    await gate.wait()


async def fine(value="fine"):
    """Succeed."""
    return value


class TestLimits:
    async def test_nobody_is_left_of_another_process(self):
        """S10: after a fork, neither who ran nor who waited for its name has a slot or gets one."""
        slots = Slots(5, {"crowded": Limit(running=1)})
        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                first, second, third, fourth = [ctx.with_options(name="crowded").defer(fine) for _ in range(4)]
            assert slots.take(first)
            assert not slots.take(second)
            slots.clear()
            assert slots.take(third)
            slots.give(third)
            assert slots.next() is None
            assert slots.take(fourth)

    @pytest.mark.parametrize("kind", ["plain", "dressed"])
    async def test_room_is_made_by_those_who_start(self, kind):
        """S10: whoever waits for room goes on as soon as others have started, not only when they have ended."""
        async with Supervisor(max_pending=2, overflow="wait") as supervisor:
            gate = asyncio.Event()

            with supervisor.context() as first:
                view = first if kind == "plain" else first.with_options(timeout=60)
                held = [view.defer(wait_for, gate) for _ in range(2)]
                with supervisor.context() as second:
                    waiting = asyncio.ensure_future(second.run(fine))
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    assert not waiting.done()
                    first.close()
                    handle = await waiting
            assert await handle == "fine"
            assert {task.state for task in held} == {TaskState.RUNNING}
            gate.set()

    @pytest.mark.looptime
    async def test_no_room_comes_once_all_that_may_follow_has(self):
        """S10: a task that has used up what its ended context may still register is refused, and does not wait."""
        refused = []

        async def grow():
            for _ in range(4):
                try:
                    await current_context().run(fine)
                except TaskRejectedError as error:
                    refused.append(str(error))

        async with Supervisor(max_per_context=2, overflow="wait") as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(grow)
            await ctx.drained()
        assert handle.state is TaskState.SUCCEEDED
        assert len(refused) == 2
        assert all("its context has ended and its tasks have registered 2 more" in text for text in refused)

    @pytest.mark.parametrize("kind", ["plain", "dressed"])
    async def test_many_slots_that_come_free_at_once(self, kind):
        """Those who wait for slots are started a batch a turn, all of them."""
        many = 3 * _BATCH
        async with Supervisor(max_running=many, max_per_context=10 * many) as supervisor:
            gate = asyncio.Event()
            with supervisor.context() as ctx:
                view = ctx.with_options(timeout=None if kind == "plain" else 60)
                handles = [view.defer(gate.wait) for _ in range(2 * many + 1)]
            while supervisor.stats().running < many:
                await asyncio.sleep(0)
            gate.set()
            await ctx.drained()
        assert {handle.state for handle in handles} == {TaskState.SUCCEEDED}

    async def test_tasks_of_a_limited_name_wait_aside(self):
        """A task of a full name does not hold up those behind it, and its turn comes with its name's slot."""
        async with Supervisor(max_running=2, limits={"slow": Limit(running=1)}) as supervisor:
            gates, order = [asyncio.Event() for _ in range(6)], []

            async def work(number):
                order.append(number)
                await gates[number].wait()

            with supervisor.context() as ctx:
                slow = ctx.with_options(name="slow")
                handles = [slow.defer(work, 1), ctx.defer(work, 2), slow.defer(work, 3), ctx.defer(work, 4)]
            for number, started in ((None, [1, 2]), (2, [1, 2, 4]), (1, [1, 2, 4, 3])):
                if number is not None:
                    gates[number].set()
                for _ in range(10):
                    await asyncio.sleep(0)
                assert order == started
            gates[3].set()
            gates[4].set()
            await ctx.drained()
        assert {handle.state for handle in handles} == {TaskState.SUCCEEDED}

    @pytest.mark.parametrize("running", [1, 3])
    async def test_no_more_run_than_may(self, running):
        """S10: whenever a slot comes free one task takes it, and never another one beside."""
        most = []

        async def work():
            most.append(supervisor.stats().running)
            await asyncio.sleep(0)
            most.append(supervisor.stats().running)

        async with Supervisor(max_running=running) as supervisor:
            with supervisor.context() as ctx:
                for _ in range(10):
                    ctx.defer(work)
            await ctx.drained()
        assert max(most) == running
        assert len(most) == 20

    async def test_whose_name_is_free_again_goes_first(self):
        """S10: a task that was passed over for its name's limit goes before those of its context that came later."""
        gates, order = {name: asyncio.Event() for name in ("first", "free")}, []

        async def work(name):
            order.append(name)
            if name in gates:
                await gates[name].wait()

        async with Supervisor(max_running=2, limits={"slow": Limit(running=1)}) as supervisor:
            with supervisor.context() as ctx:
                slow = ctx.with_options(name="slow")
                slow.defer(work, "first")
                slow.defer(work, "second")
                ctx.defer(work, "free")
                for number in range(3):
                    ctx.defer(work, number)
            while len(order) < 2:
                await asyncio.sleep(0)
            gates["first"].set()
            await asyncio.sleep(0)
            gates["free"].set()
            await ctx.drained()
        assert order == ["first", "free", "second", 0, 1, 2]

    async def test_the_name_of_a_cancelled_task_is_free_for_the_next(self):
        """S10: a task that is cancelled as its turn has come leaves its turn to the next of its name."""
        order = []

        async def work(name, gate=None):
            order.append(name)
            if gate is not None:
                await gate.wait()

        async with Supervisor(max_running=2, limits={"slow": Limit(running=1)}) as supervisor:
            gate, other = asyncio.Event(), asyncio.Event()
            with supervisor.context() as ctx:
                slow = ctx.with_options(name="slow")
                slow.defer(work, "first", gate)
                passed_over = [slow.defer(work, name) for name in ("second", "third")]
                ctx.defer(work, "free", other)
            while len(order) < 2:
                await asyncio.sleep(0)
            gate.set()
            await asyncio.sleep(0)
            assert supervisor.stats().succeeded == 1
            assert passed_over[0].cancel()
            await passed_over[1]
            other.set()
        assert order == ["first", "free", "third"]

    async def test_settled_tasks_leave_the_queues(self):
        """Of many tasks that are cancelled while they wait, those that are left keep their turn."""
        async with Supervisor(max_running=1) as supervisor:
            gate, order = asyncio.Event(), []

            async def work(number):
                order.append(number)

            with supervisor.context() as ctx:
                ctx.defer(gate.wait)
                handles = [ctx.defer(work, number) for number in range(200)]
            while not supervisor.stats().running:
                await asyncio.sleep(0)
            for _ in range(20):
                await asyncio.sleep(0)
            for handle in handles[:150]:
                assert handle.cancel()
            assert sum(map(len, supervisor._launcher.slots.queues.values())) < 150
            gate.set()
            await ctx.drained()
        assert order == list(range(150, 200))

    async def test_a_step_cannot_be_cancelled_by_its_handle(self):
        """A sequential step belongs to its handler: the handle cancels nothing."""
        answers = []

        def cancels(event):
            if isinstance(event, TaskStarted):
                answers.append(event.task.cancel())

        @sequential
        async def route():
            return await current_context().run(fine)

        async with Supervisor(hooks=[cancels]) as supervisor:
            with supervisor.context():
                handle = await route()
        assert answers == [False]
        assert handle.result() == "fine"


class Pool(ProcessPoolExecutor):
    """A process pool that has no processes: it calls in place, and remembers that."""

    def __init__(self):
        self.calls = []
        self.seen = []  # the context variables of whoever submits, which a forked process inherits

    def submit(self, fn, /, *args, **kwargs):
        """Call it."""
        self.calls.append(fn)
        self.seen.append(list(contextvars.copy_context()))
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Proxy:
    """An asyncio task as a task factory may make it: with the methods, and no more."""

    __slots__ = ("_task",)

    def __init__(self, task):
        self._task = task

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._task, name)


class TestHosts:
    async def test_offloading_to_processes(self):
        """S6, S14: what goes to another process goes without variables; one that is forked for it inherits none."""
        pool = Pool()
        async with Supervisor(offload=pool) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.defer(len, "four")
            assert await handle == 4
        assert [call.func for call in pool.calls] == [len]
        assert pool.seen == [[]]

    async def test_a_task_factory_of_any_kind(self):
        """S6: tasks run on whatever the loop's task factory makes of them, in the variables of their registration."""
        loop = asyncio.get_running_loop()
        variable = contextvars.ContextVar("variable", default="nobody's")

        async def look():
            await asyncio.sleep(0)
            return variable.get(), current_task()

        async with Supervisor() as supervisor:
            loop.set_task_factory(lambda loop, coro, **how: Proxy(asyncio.Task(coro, loop=loop, **how)))
            try:
                with supervisor.context() as ctx:
                    token = variable.set("the handler's")
                    handle = ctx.defer(look)
                    variable.reset(token)
                while not handle.done():
                    await asyncio.sleep(0)
            finally:
                loop.set_task_factory(None)
        assert handle.result() == ("the handler's", handle)

    async def test_a_task_factory_that_wraps_what_is_run(self):
        """S6, S10: a task knows itself, and lends its slot, though a tracer runs its coroutine inside its own."""
        loop = asyncio.get_running_loop()

        async def traced(coro):
            return await coro

        async def child():
            return current_task(), await asyncio.gather(name())

        async def name():
            return current_task().name

        async def parent():
            return current_task(), await defer(child)

        async with Supervisor(max_running=1) as supervisor:
            loop.set_task_factory(lambda loop, coro, **how: asyncio.Task(traced(coro), loop=loop, **how))
            try:
                with supervisor.context() as ctx:
                    handle = ctx.defer(parent)
                itself, (below, (named,)) = await handle
            finally:
                loop.set_task_factory(None)
        assert itself is handle
        assert named == below.name
        assert below.name.endswith("child")

    async def test_cancelled_inside_a_task_factory(self):
        """A36, A64: cancelled before the first step of what a task factory has made, it leaves no coroutine behind."""
        loop = asyncio.get_running_loop()

        async def traced(coro):
            raise AssertionError

        async with Supervisor() as supervisor:
            loop.set_task_factory(lambda loop, coro, **how: asyncio.Task(traced(coro), loop=loop, **how))
            try:
                with supervisor.context() as ctx:
                    handle = ctx.wait_until(fine())
                    handle.cancel()
                await asyncio.sleep(0)
            finally:
                loop.set_task_factory(None)
            gc.collect()
        assert handle.state is TaskState.CANCELLED

    async def test_what_a_hook_learns_of_the_discarded(self):
        """S5: discarded work is told with its reason."""
        told = []
        async with Supervisor(
            hooks=[lambda event: isinstance(event, TaskDiscarded) and told.append(event)]
        ) as supervisor:
            with supervisor.context() as ctx:
                handle = ctx.with_options(when="error").defer(fine)
            await ctx.drained()
        assert [(event.task, event.outcome) for event in told] == [(handle, Outcome.DISCARDED_BY_WHEN)]

    async def test_a_task_knows_itself(self):
        """The work of a task finds its own handle and context, in threads as well."""
        found = []

        def look():
            found.append((current_task(), current_context()))

        async def look_async():
            look()
            defer(fine)

        async with Supervisor() as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.defer(look), ctx.defer(look_async)]
            await ctx.drained()
        assert sorted(found, key=str) == sorted([(handle, ctx) for handle in handles], key=str)


class TestSlots:
    def test_nobody_waits(self):
        """Where nobody waits nobody is next, whether there is a slot or not."""
        slots = Slots(1, {})
        assert slots.next() is None
        slots.busy = 1
        assert slots.next() is None
