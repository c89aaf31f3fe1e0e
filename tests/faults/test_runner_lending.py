"""A task that waits for another lends its slot: S10 without tasks that wait for each other's for ever."""

import asyncio
import contextlib

import pytest

from deferred import Limit, Supervisor, TaskState, current_context, defer
from tests.faults.support import fine, nothing_left, turns

pytestmark = pytest.mark.looptime


class Meter:
    """Counts how many of its works run at a time, not counting those that wait for another."""

    def __init__(self):
        self.now = self.most = 0

    @contextlib.contextmanager
    def at_work(self):
        """Run, for as long as this block."""
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            yield
        finally:
            self.now -= 1

    async def wait_for(self, handle):
        """Wait for a task, inside `at_work`."""
        self.now -= 1
        try:
            return await handle
        finally:
            self.now += 1
            self.most = max(self.most, self.now)


@pytest.mark.parametrize("limits", [{}, {"leaf": Limit(running=1)}, {"branch": Limit(running=2, pending=50)}])
@pytest.mark.parametrize("slots", [1, 2, 5])
async def test_tasks_that_wait_for_their_children(slots, limits):
    """S10: a tree of tasks, each waiting for its branches, needs no more slots than there are, nor takes more."""
    meter = Meter()

    async def leaf():
        with meter.at_work():
            await asyncio.sleep(1)
            return 1

    async def branch():
        with meter.at_work():
            leaves = [defer(leaf) for _ in range(3)]
            return sum([await meter.wait_for(handle) for handle in leaves])

    async def tree():
        with meter.at_work():
            branches = [defer(branch) for _ in range(9)]
            return sum([await meter.wait_for(handle) for handle in branches])

    leaf.__qualname__, branch.__qualname__ = "leaf", "branch"
    async with Supervisor(max_running=slots, limits=limits) as supervisor:
        with supervisor.context() as ctx:
            handle = ctx.defer(tree)
        assert await handle == 27
        await turns(2)
        assert nothing_left(supervisor)
    assert meter.most <= slots


async def test_who_waits_again_is_the_first_of_its_context():
    """S10: a task that has lent its slot goes on before those of its context that have not started."""
    order = []

    async def child():
        other.defer(later)
        await asyncio.sleep(1)

    async def later():
        order.append("later")

    async def waiting(name):
        await handle
        await asyncio.sleep(1)
        order.append(name)

    async with Supervisor(max_running=1) as supervisor:
        with supervisor.context() as one:
            one.defer(waiting, "one")
        with supervisor.context() as other:
            other.defer(waiting, "other")
        with supervisor.context() as third:
            handle = third.defer(child)
    assert order == ["one", "other", "later"]


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("waits", [False, True])
async def test_who_is_cancelled_in_line_leaves_it(slots, waits):
    """S10: a task cancelled while it waits for its slot cleans up, and may wait for another: that line is over."""
    ended = []

    async def child():
        await asyncio.sleep(1)

    async def waiting(name, seconds):
        try:
            await handle
            await asyncio.sleep(seconds)
        finally:
            if name == "cancelled":
                await (defer(fine) if waits else asyncio.sleep(3))
            ended.append(name)

    async with Supervisor(max_running=slots) as supervisor:
        with supervisor.context() as ctx:
            for number in range(slots):
                ctx.defer(waiting, number, 1)
        with supervisor.context() as other:
            cancelled = other.defer(waiting, "cancelled", 0)
        with supervisor.context() as third:
            handle = third.defer(child)
        await handle
        await asyncio.sleep(0.5)
        assert supervisor._launcher.slots.queues, "it is in line"
        cancelled.cancel()
        assert not (await supervisor.drain()).cancelled
        assert supervisor.stats().cancelled == 1
        assert sorted(map(str, ended)) == [*map(str, range(slots)), "cancelled"]
        assert nothing_left(supervisor)


async def test_a_limit_of_one_keeps_tasks_apart():
    """S10: the slot of its name is not lent: no other task of that name starts in the middle of one."""
    inside = []

    async def alone(number):
        inside.append(number)
        await defer(asyncio.sleep, 1)
        inside.append(number)

    async with Supervisor(limits={"alone": Limit(running=1)}) as supervisor:
        with supervisor.context() as ctx:
            handles = [ctx.with_options(name="alone").defer(alone, number) for number in range(3)]
        for handle in handles:
            await handle
        assert nothing_left(supervisor)
    assert inside == [0, 0, 1, 1, 2, 2]


async def test_waiting_for_one_that_is_kept_apart():
    """S10: a task that waits for one of its name, of which one runs at a time, is told that it waits for ever."""

    async def parent():
        with another.context() as ctx:
            elsewhere = await ctx.with_options(name="alone").run(fine)
        handle = current_context().with_options(name="alone").defer(fine)
        answers.append(await elsewhere)
        answers.append(await current_context().defer(fine))
        try:
            await handle
        finally:
            answers.append(handle)

    answers = []
    limits = {"alone": Limit(running=1)}
    async with Supervisor(max_running=1, limits=limits) as supervisor, Supervisor(limits=limits) as another:
        with supervisor.context() as ctx:
            handle = ctx.with_options(name="alone").defer(parent)
        with pytest.raises(
            RuntimeError, match=r"'alone' waits for another one of its name \(deferred at .* another name"
        ):
            await handle
        assert await answers.pop() == "fine"  # it has started, once that task had ended
        assert answers == ["fine", "fine"]
        assert nothing_left(supervisor)


@pytest.mark.parametrize("name", ["pair", "free"])
async def test_waiting_for_one_of_its_name_that_has_room(name):
    """S10: where two of a name may run, or any number, one may wait for the other."""

    async def parent():
        return await current_context().with_options(name=name).defer(fine, "child")

    async with Supervisor(limits={"pair": Limit(running=2)}) as supervisor:
        with supervisor.context() as ctx:
            handle = ctx.with_options(name=name).defer(parent)
        assert await handle == "child"


async def test_who_has_waited_goes_on_before_others_start():
    """S10: the slot of the task that was waited for is for the one that waited, whoever else is in line."""
    order = []

    async def note(what):
        await asyncio.sleep(1)
        order.append(what)

    async def parent():
        await child
        order.append("parent")

    async with Supervisor(max_running=1) as supervisor:
        with supervisor.context() as ctx:
            ctx.defer(parent)
            child = ctx.defer(note, "child")
            last = [ctx.defer(note, number) for number in range(3)][-1]
        await last
    assert order == ["child", "parent", 0, 1, 2]


async def test_many_that_wait_for_one_go_on_in_turn():
    """S10: all that have waited for the same task do not go on at once where there are fewer slots."""
    meter, gate = Meter(), asyncio.Event()

    async def waits():
        with meter.at_work():
            await meter.wait_for(awaited)
            await asyncio.sleep(1)

    async with Supervisor(max_running=2) as supervisor:
        with supervisor.context() as ctx:
            awaited = ctx.defer(gate.wait)
            handles = [ctx.defer(waits) for _ in range(9)]
        await asyncio.sleep(5)
        assert (supervisor.stats().running, supervisor.stats().pending) == (1, 9)
        assert supervisor._launcher._waiting == 0  # all have started: what limits waiting is free
        gate.set()
        for handle in handles:
            await handle
        assert nothing_left(supervisor)
    assert meter.most == 2


@pytest.mark.parametrize("how", ["wrap", "drained", "drain"])
async def test_a_task_that_drains_lends_its_slot(how):
    """B38, S11: what a task drains is done, with a single slot too: nobody waits for the deadline."""
    async with Supervisor(max_running=1) as supervisor:

        async def outer():
            scope = supervisor.context()
            with scope as ctx:
                handle = ctx.defer(asyncio.sleep, 1, "done")
            await (ctx.drained() if how == "drained" else supervisor.drain())
            return handle.result()

        @supervisor.wrap
        async def inner():
            return defer(asyncio.sleep, 1, "done")

        async def wrapped():
            return (await inner()).result()

        with supervisor.context() as ctx:
            handle = ctx.defer(wrapped if how == "wrap" else outer)
        assert await handle == "done"
        assert nothing_left(supervisor)
    assert asyncio.get_running_loop().time() < 2


@pytest.mark.parametrize("how", ["handle", "timeout", "own timeout", "drain"])
@pytest.mark.parametrize("name", ["parent", "other"])
async def test_a_wait_that_is_cut_has_its_slot_again(how, name):
    """S10: cancelled, timed out or drained as it waits, it cleans up at once; its child goes on, no slot is lost."""
    noted = []

    async def parent():
        child = defer(asyncio.sleep, 4)
        try:
            async with asyncio.timeout(3 if how == "own timeout" else None):
                await child
        finally:
            await asyncio.sleep(0)
            noted.append((child.state, supervisor.stats().running))

    async with Supervisor(max_running=1, limits={name: Limit(running=1)}) as supervisor:
        with supervisor.context() as ctx:
            handle = ctx.with_options(name="parent", timeout=3 if how == "timeout" else None).defer(parent)
        await asyncio.sleep(3)
        if how == "handle":
            handle.cancel()
        await supervisor.drain(0 if how == "drain" else None)
        assert handle.state is (TaskState.FAILED if "timeout" in how else TaskState.CANCELLED)
        assert noted == [(TaskState.CANCELLED, 1) if how == "drain" else (TaskState.RUNNING, 2)]
        assert nothing_left(supervisor)
        with supervisor.context() as ctx:
            again = ctx.with_options(name="parent").defer(fine)
        assert await again == "fine"


@pytest.mark.parametrize("limits", [{}, {"parent": Limit(running=1)}])
async def test_one_that_is_cut_in_line_for_its_slot(limits):
    """S10: cancelled when its wait is over and its slot is not free, it cleans up at once and gets no second one."""

    async def parent():
        await child
        await asyncio.sleep(5)

    async with Supervisor(max_running=1 if not limits else 2, limits=limits) as supervisor:
        with supervisor.context() as ctx:
            view = ctx.with_options(name="parent")
            parents = [view.defer(parent) for _ in range(3)]
            child = ctx.defer(asyncio.sleep, 1)
        await asyncio.sleep(2)
        assert supervisor.stats().running == 1
        for handle in parents[1:]:
            handle.cancel()
        await asyncio.sleep(1)
        assert [handle.state for handle in parents[1:]] == [TaskState.CANCELLED] * 2
        assert (supervisor.stats().running, supervisor.stats().pending) == (1, 0)
        await parents[0]
        assert nothing_left(supervisor)


@pytest.mark.parametrize("limits", [{}, {"parent": Limit(running=1)}])
async def test_one_that_is_left_behind_in_its_wait(limits):
    """A12: abandoned as it waits, it has no slot to give back, and gets none when its wait ends after all."""
    ended = []

    async def parent():
        while len(ended) < 2:
            with contextlib.suppress(asyncio.CancelledError):
                ended.append(await child)

    async with Supervisor(max_running=1, limits=limits) as supervisor, Supervisor() as another:
        with another.context() as ctx:
            child = ctx.defer(asyncio.sleep, 9, "child")
        with supervisor.context() as ctx:
            handle = ctx.with_options(name="parent").defer(parent)
        await asyncio.sleep(1)
        await supervisor.drain(0)
        assert handle.state is TaskState.ABANDONED
        assert nothing_left(supervisor)
        assert await child == "child"
        await turns(5)
        assert ended == ["child", "child"]
        assert nothing_left(supervisor)
