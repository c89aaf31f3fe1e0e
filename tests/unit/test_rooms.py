"""Lines before limits: who is let in, in which order, and what becomes of room that is not taken."""

import asyncio
import gc
import weakref

import pytest

from deferred import Limit, Supervisor, SupervisorClosedError
from deferred._rooms import Rooms
from tests.faults.support import fine, forever, idle, turns


class Hall:
    """A limit of `size`, and who has come in."""

    def __init__(self, size):
        self.size = size
        self.inside = []
        self.asked = 0
        self.noted = 0
        self.rooms = Rooms(lambda _line: self.size - len(self.inside))

    def reached(self):
        """Name the one line as long as the hall is full."""
        self.asked += 1
        return "hall" if len(self.inside) >= self.size else None

    async def enter(self, name):
        """Wait for room and take it."""
        await self.rooms.wait(self.reached, self.note)
        self.inside.append(name)

    def note(self):
        """Count who waits."""
        self.noted += 1

        def forget():
            self.noted -= 1

        return forget

    def leave(self, *names):
        """Give room back and have the next ones in."""
        for name in names:
            self.inside.remove(name)
            self.rooms.admit("hall")


async def queue(hall, *names):
    """Have these wait, in order."""
    tasks = {name: asyncio.create_task(hall.enter(name)) for name in names}
    await turns(2)
    return tasks


async def test_first_come_first_served():
    """Room goes to whoever has waited longest, one for one."""
    hall = Hall(2)
    await queue(hall, *"abcde")
    assert hall.inside == ["a", "b"]
    assert hall.noted == 3
    hall.leave("a")
    await turns(2)
    assert hall.inside == ["b", "c"]
    hall.leave("b", "c")
    await turns(2)
    assert hall.inside == ["d", "e"]
    assert not hall.rooms
    assert hall.noted == 0


async def test_as_many_look_again_as_there_is_room():
    """A place that is free costs one look, however many wait for it."""
    hall = Hall(1)
    names = [str(number) for number in range(200)]
    await queue(hall, *names)
    asked = hall.asked
    for name in names:
        assert hall.inside == [name]
        hall.leave(name)
        await turns(2)
    assert hall.asked - asked == len(names) - 1


async def test_several_places_of_one_turn_let_in_as_many():
    """Who was let in and has not come in yet counts as inside."""
    hall = Hall(3)
    await queue(hall, *"abcdefgh")
    asked = hall.asked
    hall.leave("a", "b", "c")
    await turns(2)
    assert hall.inside == ["d", "e", "f"]
    assert hall.asked - asked == 3


async def test_who_gives_up_in_line_is_passed_over():
    """A cancelled one takes no room, also where it does not know yet that it is cancelled."""
    hall = Hall(1)
    tasks = await queue(hall, *"abcd")
    tasks["b"].cancel()
    await turns(2)
    tasks["c"].cancel()
    hall.leave("a")
    await turns(3)
    assert hall.inside == ["d"]
    assert not hall.rooms
    assert hall.noted == 0


async def test_who_gives_up_when_let_in_leaves_the_room_to_the_next():
    """Nobody else leaves: without that the next one would wait for ever."""
    hall = Hall(1)
    tasks = await queue(hall, *"abc")
    hall.leave("a")
    tasks["b"].cancel()
    await turns(3)
    assert tasks["b"].cancelled()
    assert hall.inside == ["c"]


async def test_who_finds_no_use_for_the_room_leaves_it_to_the_next():
    """One who is let in, and then fails before it comes in, holds up nobody."""
    hall = Hall(1)
    await queue(hall, "a")

    async def refused():
        await hall.rooms.wait(hall.reached, hall.note)
        raise LookupError

    task = asyncio.create_task(refused())
    await turns(2)
    await queue(hall, "b")
    hall.leave("a")
    await turns(3)
    assert isinstance(task.exception(), LookupError)
    assert hall.inside == ["b"]


async def test_whose_room_was_taken_stays_first():
    """Somebody who never waited comes between: the one who was let in is still before the others."""
    hall = Hall(1)
    await queue(hall, *"abc")
    hall.leave("a")
    hall.inside.append("guest")
    await turns(3)
    hall.leave("guest")
    await turns(2)
    assert hall.inside == ["b"]


async def test_the_last_to_give_up_closes_the_line():
    """Nothing is kept of a line that nobody stands in."""
    hall = Hall(1)
    tasks = await queue(hall, *"abc")
    for name in "bc":
        tasks[name].cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert not hall.rooms


async def test_a_line_that_is_over_is_not_kept():
    """A line may be a context, which lives no longer than its work."""

    class Limit:
        full = True

    limit = Limit()
    kept = weakref.ref(limit)
    rooms = Rooms(lambda line: 0 if line.full else 1)
    task = asyncio.create_task(rooms.wait(lambda limit=limit: limit if limit.full else None, lambda: lambda: None))
    await turns(2)
    limit.full = False
    rooms.admit(limit)
    del limit
    await task
    del task
    await turns(2)
    assert kept() is None


async def test_nothing_is_kept_of_waits_that_are_over():
    """S10: what was noted of tasks and handlers that waited goes when they have had room: contexts are freed."""
    contexts = []

    async def errand():
        with supervisor.context() as own:
            contexts.append(weakref.ref(own))
            own.with_options(name="later").defer(fine)
            await own.with_options(name="crowded").run(fine)

    async with Supervisor(max_running=2, limits={"crowded": Limit(pending=1)}, overflow="wait") as supervisor:
        waits = supervisor._launcher._waits
        hold = asyncio.Event()
        with supervisor.context() as ctx:
            contexts.append(weakref.ref(ctx))
            ctx.close()
            await ctx.run(errand)
            await ctx.run(hold.wait)
            await ctx.with_options(name="crowded").run(fine)
            handler = asyncio.create_task(errand())
            await turns(3)
        assert (len(waits._tasks), len(waits._inside), len(waits._handlers)) == (1, 1, 2)
        assert waits._held == {"later": 2, None: 2}
        hold.set()
        await handler
        await idle(supervisor)
        assert (waits._tasks, waits._inside, waits._handlers, waits._held) == ({}, {}, {}, {})
        del ctx, handler
        await turns(2)  # the loop lets go of its last step
        gc.collect()
        assert [context() for context in contexts] == [None] * 3


async def test_a_closing_refuses_all_who_wait():
    """S10, S11: when no more work is taken, all steps that wait for room are refused on the next turn."""
    async with Supervisor(max_running=1, max_per_context=1, overflow="wait", drain_timeout=0) as supervisor:
        with supervisor.context() as ctx:
            ctx.close()
            await ctx.run(forever)
            steps = [asyncio.create_task(ctx.run(forever)) for _ in range(20)]
            await turns(3)
            supervisor._launcher.shut("it is closed")
            await turns(2)
            assert [type(step.exception()) for step in steps] == [SupervisorClosedError] * 20
        assert not supervisor._launcher.rooms


def test_those_who_wait_on_a_loop_that_is_gone_are_forgotten():
    """S10: who waits on a loop that is closed, or was let in as it stopped, takes no room on the next one."""
    supervisor = Supervisor(max_running=1, max_pending=1, overflow="wait")

    async def crowd(work):
        with supervisor.context() as ctx:
            ctx.close()
            handles = [await ctx.run(work), await ctx.run(work)]
            steps = [asyncio.create_task(ctx.run(work)) for _ in range(2)]
            await turns(3)
            return handles, steps

    async def first():
        supervisor.open()
        return await crowd(forever)

    async def again():
        async with supervisor:
            handles, steps = await crowd(fine)
            handles += [await step for step in steps]
            return [await handle for handle in handles]

    loop = asyncio.new_event_loop()
    (_, waits), steps = loop.run_until_complete(first())
    loop.call_soon(lambda: (waits.cancel(), loop.stop()))  # the next one is let in, and has no turn to come in
    loop.run_forever()
    loop.close()
    for step in steps:
        step._log_destroy_pending = False
    assert asyncio.run(again()) == ["fine"] * 4


@pytest.mark.parametrize("limits", [{"max_pending": 3}, {"max_per_context": 3}, {"limits": {"fine": Limit(pending=3)}}])
async def test_every_limit_lets_in_all_who_wait(limits):
    """S10: whichever limit they wait for, all steps come to run, in the order they were asked for."""
    ran = []

    async def fine(number):
        ran.append(number)
        await asyncio.sleep(0)

    async with Supervisor(max_running=1, overflow="wait", **limits) as supervisor:
        with supervisor.context() as ctx:
            ctx.close()
            view = ctx.with_options(name="fine")
            await asyncio.gather(*(view.run(fine, number) for number in range(100)))
        await idle(supervisor)
        assert not supervisor._launcher.rooms
    assert ran == list(range(100))


async def test_who_waits_may_go_on_to_another_line():
    """S10: room in the context is no room for the name: its line is left to the next, and both come in."""
    async with Supervisor(
        max_running=1, max_per_context=2, limits={"crowded": Limit(pending=1)}, overflow="wait"
    ) as supervisor:
        hold = asyncio.Event()
        with supervisor.context() as ctx, supervisor.context() as other:
            ctx.close()
            other.close()
            await ctx.run(hold.wait)
            await other.with_options(name="crowded").run(fine)
            await ctx.run(fine)
            crowded = asyncio.create_task(ctx.with_options(name="crowded").run(fine))
            plain = asyncio.create_task(ctx.run(fine))
            await turns(3)
            assert len(ctx.tasks) == 2
            hold.set()
            for task in (crowded, plain):
                assert await (await task) == "fine"
        await idle(supervisor)
    assert supervisor.stats().succeeded == 5
