"""The supervisor as a machine: whatever is done to it, in any order, the accounts agree."""

import asyncio
import contextlib
import logging

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
    TaskFailed,
    TaskRejected,
    TaskRejectedError,
    TaskState,
    TaskSucceeded,
)
from tests.faults.support import BareError, BoomError, Told, nothing_left
from tests.proof.clock import VirtualLoop
from tests.proof.conftest import LONG

ERRORS = [BoomError, ConnectionError, SystemExit, BareError, asyncio.CancelledError, GeneratorExit]
ENDS = st.sampled_from([None, *ERRORS])
RETRY = Retry(on=ConnectionError, wait_initial=1, wait_max=4, attempts=3)


class Work:
    """A piece of work that the machine holds by the hand."""

    def __init__(self, *, error, early, ignores, children):
        self.gate = asyncio.Event()
        self.error = error
        self.early, self.ignores, self.children = early, ignores, children
        self.running = 0

    async def __call__(self, ctx):
        """Wait to be told how to end."""
        self.running += 1
        for _ in range(self.children):
            with contextlib.suppress(TaskRejectedError, ContextClosedError):
                ctx.defer(asyncio.sleep, 0.5)
        while not self.early and not self.gate.is_set():
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                if not self.ignores:
                    raise
                self.ignores -= 1
        if self.error is not None:
            raise self.error


class Machine(RuleBasedStateMachine):
    """Registers, settles, fails, cancels and drains; knows what must hold between any two of these."""

    contexts = Bundle("contexts")
    tasks = Bundle("tasks")
    WAYS = ("all", "context", "close", "break off")

    @initialize(
        target=contexts,
        max_running=st.sampled_from([1, 2, 1000]),
        max_pending=st.sampled_from([3, 10_000]),
        overflow=st.sampled_from(["reject", "discard"]),
        limited=st.booleans(),
        retry=st.booleans(),
    )
    def begin(self, max_running, max_pending, overflow, limited, retry):
        """Open a supervisor."""
        logging.getLogger("deferred").disabled = True
        self.loop = VirtualLoop()
        self.loose = []
        self.loop.set_exception_handler(lambda loop, context: self.loose.append(context))
        self.told = Told()
        self.overflow, self.max_pending = overflow, max_pending
        self.supervisor = Supervisor(
            max_running=max_running,
            max_pending=max_pending,
            overflow=overflow,
            limits={"limited": Limit(running=1, pending=2)} if limited else None,
            retry=RETRY if retry else None,
            hooks=[self.told],
            drain_timeout=10,
            cancel_grace=1,
        )
        self.scopes, self.handles, self.works = {}, [], []
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
        way=st.sampled_from(["defer", "wait_until", "run"]),
        execution=st.sampled_from([None, *(each for each in Execution if each is not Execution.DURABLE)]),
        name=st.sampled_from(["free", "limited"]),
        early=st.booleans(),
        error=ENDS,
        ignores=st.integers(0, 3),
        children=st.integers(0, 2),
        count=st.integers(1, 4),
        timeout=st.sampled_from([None, 3]),
    )  # what a rule draws
    def register(self, ctx, way, execution, **options):
        """Hand over a piece of work, whatever becomes of that."""
        name, timeout = options.pop("name"), options.pop("timeout")
        count, early = options.pop("count"), options.pop("early") or execution is Execution.SEQUENTIAL
        ctx.route = execution
        view = ctx.with_options(name=name, timeout=timeout)
        items = []
        if execution is Execution.SEQUENTIAL:
            options["error"] = None  # it would be the caller's
        for _ in range(count):
            work = Work(early=early, **options)
            try:
                handle = self.do(self.hand_over, view, way, work, ctx)
            except (TaskRejectedError, ContextClosedError):
                continue
            items.append((handle, work))
        self.handles += items
        self.works += [work for _, work in items]
        return multiple(*items)

    def hand_over(self, view, way, work, ctx):
        """Register it, in this way."""
        if way == "defer":
            return view.defer(work, ctx)
        return view.wait_until(work(ctx)) if way == "wait_until" else view.run(work, ctx)

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
        outcomes = [event for event in self.told.seen if isinstance(getattr(event, "outcome", None), Outcome)]
        succeeded = self.told.of(TaskSucceeded)
        assert stats.succeeded == len(succeeded)
        assert stats.failed == len(self.told.of(TaskFailed))
        ends = [event.task for event in (*outcomes, *succeeded)]
        assert len(set(map(id, ends))) == len(ends)
        assert len(self.told.of(TaskRejected)) == 0 or self.overflow == "reject"

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
TestMachine.settings = settings(settings.get_profile("long" if LONG else "short"))
