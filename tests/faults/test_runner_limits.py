"""Caps and slots: A48 to A50, S10, and every way to cheat them."""

import asyncio

import pytest

from deferred import Execution, Limit, Supervisor, TaskRejectedError, TaskState, sequential
from tests.faults.support import (
    BoomError,
    Told,
    boom,
    ended,
    fine,
    forever,
    idle,
    nothing_left,
    outcome_of,
    settled,
    turns,
    until,
)

SHORT = {"drain_timeout": 0, "cancel_grace": 0}


def take_all(register):
    """Register until refused; return how many were accepted."""
    count = 0
    while True:
        try:
            register()
        except TaskRejectedError:
            return count
        count += 1


class TestCaps:
    async def test_the_queue_is_full(self):
        """A48: beyond max_pending registering is refused at the call, and what was accepted runs."""
        async with Supervisor(max_pending=10) as supervisor:
            with supervisor.context() as ctx:
                assert take_all(lambda: ctx.defer(fine)) == 10
            await idle(supervisor)
        assert supervisor.stats().succeeded == 10

    async def test_one_context_floods(self):
        """A50: a context beyond its cap is refused, and other contexts are not."""
        async with Supervisor(max_per_context=5) as supervisor:
            with supervisor.context() as greedy, supervisor.context() as modest:
                assert take_all(lambda: greedy.defer(fine)) == 5
                handle = modest.defer(fine)
            assert await settled(handle) == [TaskState.SUCCEEDED]

    async def test_turns_are_fair(self):
        """A50: with one slot, contexts take turns: a flood does not make another request wait for all of it."""
        order = []

        async def note(what):
            order.append(what)
            await asyncio.sleep(0)

        async with Supervisor(max_running=1) as supervisor:
            with supervisor.context() as flood:
                for number in range(50):
                    flood.defer(note, number)
            with supervisor.context() as other:
                other.defer(note, "other")
            await idle(supervisor)
        assert order.index("other") < 5
        assert [what for what in order if what != "other"] == list(range(50))

    async def test_a_flood_leaves_turns_to_the_loop(self):
        """A49: however many tasks are released at once, one turn of the loop starts a bounded number of them."""
        started = 0

        async def count():
            nonlocal started
            started += 1

        async with Supervisor(max_per_context=5000) as supervisor:
            with supervisor.context() as ctx:
                for _ in range(5000):
                    ctx.defer(count)
            most = before = 0
            while started < 5000:
                await asyncio.sleep(0)
                most, before = max(most, started - before), started
        assert most <= 128

    @pytest.mark.parametrize("by", ["task", "hook"])
    async def test_a_chain_leaves_turns_to_the_loop(self, by):
        """A18, A49: tasks that each defer the next one at once, in whatever unit of work, take one turn each."""
        started = 0
        going = True

        async def link():
            nonlocal started
            started += 1
            if by == "hook":
                raise BoomError
            go_on()

        def go_on(_event=None):
            if going and started < 100_000:
                with supervisor.context() as ctx:
                    ctx.defer(link)

        async with Supervisor(on_error=go_on if by == "hook" else None) as supervisor:
            go_on()
            most = before = 0
            for _ in range(100):
                await asyncio.sleep(0)
                most, before = max(most, started - before), started
            going = False
        assert most <= 2
        assert 30 < started < 110

    async def test_every_execution_counts(self):
        """S10: no mix of executions lets more than max_pending tasks wait."""
        async with Supervisor(max_running=1, max_pending=3, **SHORT) as supervisor:
            with supervisor.context() as ctx:
                ctx.route = Execution.FIRE_AND_FORGET
                for _ in range(4):
                    await ctx.run(forever)
                await turns(3)
                assert supervisor.stats().pending == 3
                assert take_all(lambda: ctx.defer(forever)) == 0
                with pytest.raises(TaskRejectedError):
                    ctx.wait_until(forever())

    @pytest.mark.parametrize("bad", [0, -1, True, 1.5, "3", None])
    @pytest.mark.parametrize("name", ["max_running", "max_pending", "max_per_context"])
    async def test_bad_counts(self, name, bad):
        """A58: a cap that is no whole number of at least 1 is refused."""
        with pytest.raises((TypeError, ValueError)):
            Supervisor(**{name: bad})

    @pytest.mark.parametrize("bad", [3, ["x"], {"x": 3}, {3: Limit(running=1)}, {"x": None}])
    async def test_bad_limits(self, bad):
        """A58: limits that are no texts with a `Limit` each are refused."""
        with pytest.raises((TypeError, ValueError)):
            Supervisor(limits=bad)

    async def test_a_refused_coroutine_is_closed(self):
        """A36, A48: a coroutine that a limit refuses is closed, under every policy."""
        for overflow in ("reject", "wait", "discard"):
            async with Supervisor(max_per_context=1, overflow=overflow, **SHORT) as supervisor:
                with supervisor.context() as ctx:
                    ctx.defer(fine)
                    coroutine = fine()
                    if overflow == "discard":
                        assert ctx.wait_until(coroutine).state is TaskState.DISCARDED
                    else:
                        with pytest.raises(TaskRejectedError):
                            ctx.wait_until(coroutine)
                    assert coroutine.cr_frame is None

    async def test_cancelled_waiters_are_let_go(self):
        """A48: work that is cancelled while it waits for a slot is not kept until one is free."""
        async with Supervisor(max_running=1, **SHORT) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(forever)
            await turns(3)
            for _ in range(500):
                with supervisor.context() as ctx:
                    handle = ctx.defer(fine)
                await turns(2)
                handle.cancel()
            kept = sum(len(queue) for queue in supervisor._launcher.slots.queues.values())
            assert kept < 100

    @pytest.mark.parametrize("decided", [True, False])
    async def test_cancelled_work_of_an_endless_stream_is_let_go(self, decided):
        """A48, B12: work that is cancelled while its response goes on is not kept until that ends."""
        async with Supervisor(**SHORT) as supervisor:
            with supervisor.context() as ctx:
                kept = [ctx.with_options(when="success").defer(fine) for _ in range(3)]
                for _ in range(500):
                    ctx.defer(fine).cancel()
                    if len(ctx.tasks) == 3 and not decided and not ctx.closed:
                        ctx.close(decided=False)
                        await turns(3)
                    ctx.with_options(when="success").defer(fine).cancel()
                await turns(40)
                held = [ctx.with_options(when="success").defer(fine) for _ in range(100)]
                await turns(40)
                for handle in held:
                    handle.cancel()
                assert len(ctx._waiting or ()) + len(ctx._held or ()) < 100
            assert await settled(*kept) == [TaskState.SUCCEEDED] * 3

    async def test_cancelled_waiters_of_a_name_are_let_go(self):
        """A48: the same where the name's own limit makes it wait."""
        async with Supervisor(limits={"x": Limit(running=1)}, **SHORT) as supervisor:
            with supervisor.context() as ctx:
                ctx.with_options(name="x").defer(forever)
            await turns(3)
            for _ in range(500):
                with supervisor.context() as ctx:
                    handle = ctx.with_options(name="x").defer(fine)
                await turns(2)
                handle.cancel()
            assert len(supervisor._launcher.slots._named["x"].parked) < 100


class TestNames:
    @pytest.mark.parametrize("overflow", ["reject", "discard"])
    async def test_a_limit_holds_after_refusals(self, overflow):
        """S10: what is refused or discarded takes no place of those of its name, and gives none back."""
        limits = {"x": Limit(running=1, pending=2)}
        async with Supervisor(limits=limits, overflow=overflow, **SHORT) as supervisor:
            with supervisor.context() as ctx:
                view = ctx.with_options(name="x")
                handles = [await outcome_of(_call(view.defer, forever)) for _ in range(20)]
                waiting = [h for h in handles if getattr(h, "state", None) is TaskState.PENDING]
                assert len(waiting) == 2

    async def test_a_limit_holds_beside_sequential_steps(self):
        """S10: steps run before the answer take no place of those that wait, and give none back."""
        async with Supervisor(limits={"x": Limit(pending=1)}, **SHORT) as supervisor:
            with supervisor.context() as ctx:

                @sequential
                async def handler():
                    for _ in range(5):
                        await ctx.with_options(name="x").run(fine)

                await handler()
            with supervisor.context() as ctx:
                assert take_all(lambda: ctx.with_options(name="x").defer(forever)) == 1

    async def test_a_limit_holds_beside_ignored_work(self):
        """S10: work ignored out of scope gives no place back that it never had."""
        import contextvars

        from deferred import defer

        async with Supervisor(limits={"fine": Limit(pending=1)}, out_of_scope="ignore", **SHORT) as supervisor:
            for _ in range(5):
                contextvars.Context().run(defer, fine)
            with supervisor.context() as ctx:
                assert take_all(lambda: ctx.with_options(name="fine").defer(fine)) == 1

    @pytest.mark.parametrize("end", ["succeed", "fail", "cancel"])
    async def test_slots_of_a_name_come_back(self, end):
        """S10: however its tasks end, a name's slots come back and the next in line runs."""
        release = asyncio.Event()

        async def work():
            await release.wait()
            if end == "fail":
                await boom()

        async with Supervisor(limits={"x": Limit(running=2)}, max_running=3) as supervisor:
            with supervisor.context() as ctx:
                handles = [ctx.with_options(name="x").defer(work) for _ in range(6)]
                other = ctx.defer(fine)
            await settled(other)
            assert supervisor.stats().running == 2
            for number in (5, 3, 0):
                handles[number].cancel()
            if end == "cancel":
                for handle in handles:
                    handle.cancel()
            release.set()
            await settled(*handles)
            assert nothing_left(supervisor)
            named = supervisor._launcher.slots._named["x"]
            assert (named.running, named.accepted) == (0, 0)
        assert ended(supervisor) == 7


class TestPolicies:
    @pytest.mark.parametrize("execution", [Execution.DEFERRED, Execution.CONCURRENT, Execution.FIRE_AND_FORGET])
    @pytest.mark.parametrize("overflow", ["reject", "discard"])
    async def test_with_every_execution(self, overflow, execution):
        """A48: the policy holds for ``run`` under every execution."""
        told = Told()
        async with Supervisor(max_pending=2, max_running=1, overflow=overflow, hooks=[told], **SHORT) as supervisor:
            with supervisor.context() as first:
                first.defer(forever)
            await turns(3)
            with supervisor.context() as ctx:
                ctx.route = execution
                answers = [await outcome_of(ctx.run(forever)) for _ in range(4)]
            await turns(3)
            assert supervisor.stats().pending == 2
        if overflow == "reject":
            assert [type(answer) for answer in answers[2:]] == [TaskRejectedError] * 2
        else:
            assert [answer.state for answer in answers[2:]] == [TaskState.DISCARDED] * 2

    async def test_waiting_for_room(self):
        """A48: with "wait", ``run`` goes on when a slot is free."""
        release = asyncio.Event()
        async with Supervisor(max_running=1, max_pending=1, overflow="wait") as supervisor:
            for _ in range(2):
                with supervisor.context() as ctx:
                    ctx.defer(release.wait)
                await turns(3)
            with supervisor.context() as ctx:
                waiting = asyncio.ensure_future(ctx.run(fine))
                await turns(5)
                assert not waiting.done()
                release.set()
                handle = await waiting
            assert await settled(handle) == [TaskState.SUCCEEDED]

    async def test_waiting_for_oneself(self):
        """S10: with "wait", a handler whose own deferred steps fill the cap is refused: its wait could never end."""
        async with Supervisor(max_per_context=2, overflow="wait", **SHORT) as supervisor:
            with supervisor.context() as ctx:
                await ctx.run(fine)
                await ctx.run(fine)
                third = asyncio.ensure_future(ctx.run(fine))
                await turns(10)
                assert third.done()
                assert isinstance(third.exception(), TaskRejectedError)

    async def test_cancelled_waiters_for_room(self):
        """A48: handlers that give up waiting for room leave nothing, and the next one still gets it."""
        release = asyncio.Event()
        async with Supervisor(max_running=1, max_pending=1, overflow="wait") as supervisor:
            for _ in range(2):
                with supervisor.context() as ctx:
                    ctx.defer(release.wait)
                await turns(3)
            with supervisor.context() as ctx:
                waiting = [asyncio.ensure_future(ctx.run(fine)) for _ in range(50)]
                await turns(3)
                for one in waiting[:-1]:
                    one.cancel()
                await turns(3)
                release.set()
                handle = await waiting[-1]
            await settled(handle)
            assert all(one.cancelled() for one in waiting[:-1])
            assert nothing_left(supervisor)

    async def test_room_at_the_close(self):
        """S10, S11: whoever waits for room when the supervisor closes is answered."""
        supervisor = Supervisor(max_running=1, max_pending=1, overflow="wait", **SHORT)
        supervisor.open()
        for _ in range(2):
            with supervisor.context() as ctx:
                ctx.defer(forever)
            await turns(3)
        with supervisor.context() as ctx:
            waiting = asyncio.ensure_future(ctx.run(fine))
            await turns(3)
            await supervisor.close()
            await until(waiting.done)
            waiting.exception()
        await until(lambda: nothing_left(supervisor))


async def _call(func, *args):
    return func(*args)
