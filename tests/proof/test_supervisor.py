"""The supervisor as a machine: whatever is done to it, in any order, the accounts agree."""

import asyncio
import logging
import threading
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from deferred import (
    ContextClosedError,
    DrainFinished,
    Execution,
    Limit,
    Outcome,
    Retry,
    Supervisor,
    SupervisorClosedError,
    TaskAbandoned,
    TaskCancelled,
    TaskDeferred,
    TaskDiscarded,
    TaskFailed,
    TaskRejected,
    TaskRejectedError,
    TaskRetrying,
    TaskState,
    TaskSucceeded,
)
from tests.faults.support import BareError, BoomError, Told, ended, nothing_left
from tests.proof.conftest import LONG
from tests.proof.pieces import AtOnce, TickingLoop, Work, broken, layer, plain_function, scope

ERRORS = [BoomError, ConnectionError, SystemExit, BareError, asyncio.CancelledError, GeneratorExit]
ENDS = st.sampled_from([None, *ERRORS])
RETRY = Retry(on=ConnectionError, wait_initial=1, wait_max=4, attempts=3)


ENDINGS = (TaskSucceeded, TaskFailed, TaskCancelled, TaskDiscarded, TaskAbandoned)
REFUSALS = (TaskRejectedError, ContextClosedError, SupervisorClosedError)


class Machine(RuleBasedStateMachine):
    """Registers, settles, fails, cancels and drains; knows what must hold between any two of these."""

    contexts = Bundle("contexts")
    tasks = Bundle("tasks")
    WAYS = ("all", "context", "close", "break off")

    @initialize(
        target=contexts,
        max_running=st.sampled_from([1, 2, 1000]),
        max_pending=st.sampled_from([3, 10_000]),
        max_per_context=st.sampled_from([2, 1000]),
        overflow=st.sampled_from(["reject", "discard", "wait"]),
        limited=st.booleans(),
        retry=st.booleans(),
        scoped=st.booleans(),
        noisy=st.booleans(),
    )
    def begin(self, overflow, limited, retry, scoped, noisy, **limits):
        """Open a supervisor."""
        logging.getLogger("deferred").disabled = True
        self.loop = TickingLoop()
        self.loose = []
        self.loop.set_exception_handler(lambda loop, context: self.loose.append(context))
        self.told, self.errors = Told(), Told()
        self.overflow = overflow
        self.supervisor = Supervisor(
            overflow=overflow,
            limits={"limited": Limit(running=1, pending=2)} if limited else None,
            retry=RETRY if retry else None,
            task_scope=scope if scoped else None,
            hooks=[broken, self.told] if noisy else [self.told],
            on_error=self.errors,
            offload=AtOnce(),
            drain_timeout=10,
            cancel_grace=1,
            **limits,
        )
        self.scopes, self.handles, self.works, self.waiting = {}, [], [], []
        self.do(self.supervisor.open)
        return self.open_context()

    def do(self, func, *args, turns=0, **kwargs):
        """Call it on the loop, then let the loop turn."""

        async def main():
            value = func(*args, **kwargs)
            if asyncio.iscoroutine(value):
                value = await value
            for _ in range(turns):
                await asyncio.sleep(0)
            return value

        return self.loop.run_until_complete(main())

    # -- what may be done --------------------------------------------------------------------

    @rule(target=contexts)
    def another_context(self):
        """Begin another unit of work."""
        return self.open_context()

    def open_context(self):
        """Begin a unit of work."""
        ctx = self.do(self.supervisor._launcher.open, None, None)
        self.scopes[ctx.id] = ctx
        return ctx

    @rule(
        target=tasks,
        ctx=contexts,
        way=st.sampled_from(["defer", "wait_until", "run", "thread", "function"]),
        execution=st.sampled_from([None, *(each for each in Execution if each is not Execution.DURABLE)]),
        name=st.sampled_from(["free", "limited"]),
        early=st.booleans(),
        error=ENDS,
        ignores=st.integers(0, 3),
        children=st.integers(0, 2),
        steps=st.integers(0, 2),
        count=st.integers(1, 4),
        timeout=st.sampled_from([None, 3]),
        layers=st.integers(0, 2),
        when=st.sampled_from(["always", "success", "error"]),
    )  # what a rule draws
    def register(self, ctx, way, execution, *, count, early, name, timeout, layers, when, **options):
        """Hand over a piece of work, whatever becomes of that."""
        early = early or execution is Execution.SEQUENTIAL
        ctx.route = execution
        view = ctx.with_options(name=name, timeout=timeout, middleware=[layer] * layers)
        if way in ("defer", "function", "thread") or (way == "run" and execution in (None, Execution.DEFERRED)):
            # All else starts before the outcome is known.
            view = view.with_options(when=when)
        items = []
        if execution is Execution.SEQUENTIAL:
            options |= {"error": None, "steps": 0}  # it would be the caller's, who would wait
        for _ in range(count):
            work = Work(early=early, **options)
            try:
                handle = self.do(self.hand_over, view, way, work, ctx)
            except REFUSALS:
                continue
            if handle is not None:
                items.append((handle, work))
        self.handles += items
        self.works += [work for _, work in items]
        return multiple(*items)

    @rule(target=tasks, ctx=contexts, count=st.integers(3, 6), name=st.sampled_from(["free", "limited"]))
    def crowd(self, ctx, count, name):
        """Fill a unit of work with steps that do not end by themselves."""
        rest = {"error": None, "ignores": 0, "children": 0, "steps": 0, "timeout": None, "layers": 0, "when": "always"}
        return self.register(ctx, "run", Execution.CONCURRENT, count=count, early=False, name=name, **rest)

    async def hand_over(self, view, way, work, ctx):
        """Register it, in this way; None where that has to wait for room."""
        match way:
            case "wait_until":
                return view.wait_until(work(ctx))
            case "function":
                return view.defer(plain_function, work.error)
            case "thread":
                return await self.in_a_thread(view, work, ctx)
            case "defer":
                return view.defer(work, ctx)
        return await self.in_a_handler(view, work, ctx)

    async def in_a_handler(self, view, work, ctx):
        """Run it as a step; None where that has to wait for room."""
        if ctx.route is Execution.SEQUENTIAL:
            return await view.run(work, ctx)
        handing = asyncio.ensure_future(view.run(work, ctx))
        await asyncio.sleep(0)
        if handing.done():
            return handing.result()
        self.works.append(work)
        self.waiting.append(handing)
        return None

    async def in_a_thread(self, view, work, ctx):
        """Register it in a thread, and let it arrive."""
        found = []

        def register():
            try:
                found.append(view.defer(work, ctx))
            except REFUSALS as error:
                found.append(error)

        thread = threading.Thread(target=register)
        thread.start()
        thread.join()
        await asyncio.sleep(0)
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    @rule(items=st.lists(tasks, min_size=1, max_size=4), error=ENDS, turns=st.integers(0, 5))
    def finish(self, items, error, turns):
        """Let pieces of work end like this."""
        for _, work in items:
            work.error = error
            self.do(work.gate.set, turns=turns)

    @rule(item=tasks, turns=st.integers(0, 3))
    def cancel(self, item, turns):
        """Cancel by the handle."""
        over, asked = self.do(lambda: (item[0].done(), item[0].cancel()), turns=turns)
        assert asked is not over

    @rule(ctx=contexts, status=st.sampled_from([None, 200, 500]), decided=st.booleans(), turns=st.integers(0, 5))
    def close_context(self, ctx, status, decided, turns):
        """Have the response of a unit of work out, or its client gone."""
        if ctx.id in self.scopes:
            ctx.status = status
            self.do(lambda: ctx.close(decided=decided), turns=turns)

    @rule(items=st.lists(st.integers(0, 50), max_size=3), turns=st.integers(0, 2))
    def give_up_waiting(self, items, turns):
        """Cancel handlers that wait for room."""
        self.do(
            lambda: [waiting.cancel() for waiting in self.waiting[min(items, default=0) :][: len(items)]], turns=turns
        )

    @rule(ctx=contexts, error=st.sampled_from([None, BoomError()]), turns=st.integers(0, 5))
    def end_context(self, ctx, error, turns):
        """End a unit of work."""
        if ctx.id in self.scopes:
            del self.scopes[ctx.id]
            self.do(ctx.end, error, turns=turns)

    @rule(seconds=st.sampled_from([0, 0.1, 1, 5]))
    def let_time_pass(self, seconds):
        """Wait."""
        self.do(asyncio.sleep, seconds)

    @rule(ctx=contexts, how=st.sampled_from(WAYS), seconds=st.sampled_from([0, 2, 20]))
    def drain(self, ctx, how, seconds):
        """Wait for the end of it all, for so long, in one of four ways."""
        if how == "all":
            known = set(self.supervisor._launcher.tasks)
            report = self.do(self.supervisor.drain, seconds)
            assert all(task.done() for task in known)  # what nobody drains may have registered more
            assert self.told.of(DrainFinished)[-1].report == report
        elif how == "context":
            known = ctx.tasks
            self.do(ctx.drained, seconds)
            assert all(task.done() for task in known)  # as above
        elif how == "close":
            self.do(self.supervisor.close)
            assert nothing_left(self.supervisor)
            self.do(self.supervisor.open)
        else:
            self.do(self.break_off, seconds)

    async def break_off(self, seconds):
        """Cancel a drain in the middle."""
        draining = asyncio.ensure_future(self.supervisor.drain(5))
        await asyncio.sleep(seconds)
        draining.cancel()
        await asyncio.wait([draining])

    # -- what must hold ----------------------------------------------------------------------

    @invariant()
    def the_accounts_agree(self):
        """Every task accepted is counted once: in its final state, or as running or waiting."""
        stats, launcher = self.supervisor.stats(), self.supervisor._launcher
        assert min(stats.pending, stats.running) >= 0
        assert stats.pending + stats.running == len(launcher.tasks) + len(launcher.detached)
        assert stats.running <= launcher.slots.max_running
        assert all(not task.done() for task in (*launcher.tasks, *launcher.detached))
        ends = [event for event in self.told.seen if isinstance(event, ENDINGS)]
        assert len({id(event.task) for event in ends}) == len(ends) == ended(self.supervisor)
        assert stats.succeeded == len(self.told.of(TaskSucceeded))
        assert stats.failed == len(self.told.of(TaskFailed))
        assert not self.told.of(TaskRejected) or self.overflow != "discard"
        overflowed = [event for event in self.told.of(TaskDiscarded) if event.outcome is Outcome.DISCARDED_BY_OVERFLOW]
        assert not overflowed or self.overflow == "discard"
        # Steps in line are their handlers': nobody counts them while they are under way.
        accepted, over = (
            sum(event.task.execution is not Execution.SEQUENTIAL for event in events)
            for events in (self.told.of(TaskDeferred), ends)
        )
        assert accepted == over - len(overflowed) + stats.pending + stats.running
        assert [event.task for event in self.errors.seen] == [event.task for event in self.told.of(TaskFailed)]

    @invariant()
    def attempts_are_told(self):
        """Each further attempt was announced, and there are no more than the policy allows."""
        retried = Counter(id(event.task) for event in self.told.of(TaskRetrying))
        for handle, _ in self.handles:
            assert handle.attempts <= RETRY.attempts
            # One more than there were attempts, if a drain has cut the wait short.
            assert max(0, handle.attempts - 1) <= retried[id(handle)] <= handle.attempts

    @invariant()
    def every_handle_is_told_once(self):
        """Each handle that has failed was told exactly once, with its own error."""
        for handle, _ in self.handles:
            told = [event for event in self.told.of(TaskFailed) if event.task is handle]
            assert len(told) == (handle.state is TaskState.FAILED)
            assert all(event.error is handle.error for event in told)

    @invariant()
    def nothing_is_loose(self):
        """Nothing has reached the exception handler of the loop."""
        assert not getattr(self, "loose", None)

    def teardown(self):
        """Close it: then nothing is left, and every context has settled."""
        try:
            for work in self.works:
                work.ignores = 0
            self.do(self.supervisor.close)
            assert nothing_left(self.supervisor)
            assert all(handle.done() for handle, _ in self.handles)
            self.do(asyncio.sleep, 0)
            assert all(handing.done() for handing in self.waiting)
            errors = [handing.exception() for handing in self.waiting if not handing.cancelled()]
            assert all(isinstance(error, (type(None), *REFUSALS)) for error in errors)
            self.the_accounts_agree()
            stats = self.supervisor.stats()
            assert (stats.pending, stats.running) == (0, 0)
            for named in self.supervisor._launcher.slots._named.values():
                assert (named.accepted, named.running) == (0, 0)
            self.nothing_is_loose()
        finally:
            list(map(asyncio.Task.cancel, asyncio.all_tasks(self.loop)))
            self.do(asyncio.sleep, 0)
            self.loop.close()
            logging.getLogger("deferred").disabled = False


TestMachine = Machine.TestCase
TestMachine.pytestmark = [pytest.mark.timeout(3600 if LONG else 300)]  # it works all the time: nothing hangs
TestMachine.settings = settings(settings.get_profile("long" if LONG else "short"))


def test_a_way_through():
    """One way through the machine by hand, with what chance may leave out."""
    machine = Machine()
    rest = {"error": None, "ignores": 0, "children": 0, "steps": 0, "timeout": None, "layers": 0, "when": "always"}
    ctx = machine.begin(
        overflow="wait",
        limited=True,
        retry=True,
        scoped=True,
        noisy=True,
        max_running=1,
        max_pending=10_000,
        max_per_context=2,
    )
    other = machine.another_context()
    try:
        alone = machine.another_context()  # while nobody has the one slot
        machine.register(alone, "function", None, count=1, early=True, name="free", **rest | {"error": BoomError})
        machine.close_context(alone, None, decided=True, turns=5)
        busy = machine.another_context()
        parent = rest | {"children": 1, "steps": 1, "layers": 1}
        held = machine.register(busy, "defer", None, count=1, early=False, name="free", **parent)
        machine.close_context(busy, None, decided=True, turns=5)
        machine.crowd(busy, 3, "free")  # its own work and that one's child fill it
        machine.give_up_waiting([0, 1, 2], 1)
        machine.cancel(held.values[0], 1)
        machine.let_time_pass(1)
        machine.register(busy, "run", Execution.SEQUENTIAL, count=1, early=True, name="free", **rest | {"layers": 1})
        for way in ("defer", "wait_until", "thread", "function"):
            machine.register(ctx, way, None, count=1, early=True, name="free", **rest)
            machine.register(other, way, Execution.SEQUENTIAL, count=2, early=False, name="free", **rest)
        machine.let_time_pass(1)
        machine.crowd(other, 6, "limited")
        machine.give_up_waiting([0, 50], 1)
        failing = rest | {"error": ConnectionError, "ignores": 1, "children": 2, "steps": 1}
        machine.register(ctx, "run", Execution.CONCURRENT, count=2, early=True, name="free", **failing)
        machine.close_context(ctx, 500, decided=True, turns=2)
        machine.drain(ctx, "context", 2)
        machine.drain(ctx, "break off", 2)
        machine.drain(ctx, "all", 20)
        held = machine.register(ctx, "defer", None, count=1, early=False, name="free", **rest | {"ignores": 1})
        machine.let_time_pass(1)
        machine.cancel(held.values[0], 1)
        machine.finish(list(held.values), BoomError, 1)
        machine.end_context(ctx, None, 1)
        machine.end_context(ctx, None, 1)
        machine.close_context(ctx, None, decided=False, turns=0)
        machine.drain(other, "close", 0)
        machine.register(ctx, "thread", None, count=1, early=True, name="free", **rest)
        machine.attempts_are_told()
        machine.every_handle_is_told_once()
        machine.the_accounts_agree()
    finally:
        machine.teardown()
