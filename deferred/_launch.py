"""From accepted to running: release, start, cancel, drain.

Rules of this file: a task starts on a later turn than the one that released it, in the order
of release; whoever has no slot waits for one; everything here happens on the event loop.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from asyncio import _get_running_loop as running_loop
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any

from deferred._call import Kind, close_refused
from deferred._context import DeferredContext, make_context
from deferred._drain import Drain
from deferred._events import (
    ContextOpened,
    DrainReport,
    Execution,
    Outcome,
)
from deferred._retry import seconds
from deferred._run import enclosing_task, find_runner, run_inline, run_plain, run_task
from deferred._settle import Settlement
from deferred._task import TaskHandle, task_here
from deferred._unit import UnitOfWork, hosts
from deferred._watchdog import Watchdog

__all__ = ["Launcher"]

_EAGER = sys.version_info >= (3, 12)
_BATCH = 32
"""How many tasks one turn of the loop starts: enough to be cheap, few enough for the others."""
_ASYNC = Kind.ASYNC
_SYNC = Kind.SYNC
_OK = Outcome.SUCCEEDED
_Task: Any = asyncio.Task  # its eager_start is not in the types of every Python version


class Launcher(Settlement):
    """Starts and cancels the tasks of one supervisor. Lives as long as it.

    Attributes:
        grace: Seconds that cancelled tasks have to end.
        leading: The drain of all work that others join; None without one.
        stall: Seconds without a turn of the loop that the watchdog reports; None for no watchdog.
    """

    __slots__ = (
        "_pumping",
        "_release_next",
        "_released",
        "_releasing",
        "_variables",
        "drainers",
        "grace",
        "leading",
        "stall",
        "timeout",
        "watchdog",
        "watched",
    )

    def __init__(self, *, timeout: float, grace: float, stall: float | None, **acceptance: Any) -> None:
        super().__init__(**acceptance)
        self.timeout = timeout
        self.grace = grace
        self.stall = stall
        self.watchdog: Watchdog | None = None
        self.drainers: set[TaskHandle[Any]] = set()
        self.leading: Drain | None = None
        self.watched = 0  # contexts that are being drained
        self._pumping = False
        self._released: deque[TaskHandle[Any]] = deque()
        self._releasing = False
        self._variables = Context()
        self._release_next = self._launch_released  # a method is made anew each time it is looked up
        self.look()

    def forget(self) -> None:
        """Forget all work, and who waits for it: on a closed loop, or in another process."""
        super().forget()
        self.leading = None
        self.drains.clear()
        self.drainers.clear()
        self.watched = 0
        self._pumping = self._releasing = False
        self._released.clear()
        self.look()

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Work on `loop` from now on; what a closed loop left behind is abandoned."""
        self.hooks.forget()
        super().bind(loop)
        self.announce()
        self.watch()

    def announce(self) -> None:
        """Let `deferred.defer` outside any context find this supervisor, as the last one that was opened."""
        self.withdraw()
        hosts.append(weakref.ref(self))

    def withdraw(self) -> None:
        """Take back `announce`."""
        reference = weakref.ref(self)
        if reference in hosts:
            hosts.remove(reference)

    def watch(self) -> None:
        """Watch the loop for tasks that block it, if that is asked for."""
        self.unwatch()
        if self.stall is not None and self.loop is not None and running_loop() is self.loop:
            self.watchdog = Watchdog(self.loop, self.stall)

    def unwatch(self) -> None:
        """Stop watching."""
        if self.watchdog is not None:
            self.watchdog.stop()
            self.watchdog = None

    def look(self) -> None:
        """Look whether anybody waits; called whenever that may have changed."""
        slots = self.slots
        self.calm = not (slots.queues or slots.lent or slots.named or self.drains or self.watched or self.rooms)

    @property
    def ambient(self) -> UnitOfWork:
        """The context of work that belongs to no unit of work: always closed, never ended."""
        if self._ambient is None:
            self._ambient = make_context(self, self.options, None, "background")
            self._ambient._closed = self._ambient._decided = True
        return self._ambient

    def open(self, describe: Callable[[Any], str] | None, subject: Any) -> DeferredContext:
        """Open a context; `describe(subject)` is its label, made only if somebody asks."""
        loop = running_loop()
        if loop is not self.loop and loop is not None:
            self.seen = loop  # bound by the first registration, if there is one
        context = make_context(self, self.options, describe, subject)
        if self.hooks.opened:
            self.tell_opened(context)
        return context

    def tell_opened(self, context: UnitOfWork) -> None:
        """Tell the hooks that a unit of work began."""
        self.hooks.emit(ContextOpened(context, at=self.now()))

    def adopt(self, other: Launcher) -> None:
        """Have the supervisor of `other` drained with this one's."""
        mine, theirs = (launcher.owner and launcher.owner() for launcher in (self, other))
        if mine is not None and theirs is not None:
            mine.adopt(theirs)

    def release(self, context: UnitOfWork, /) -> None:
        """Launch what has waited in `context`, from the next turn of the loop on."""
        self._released.extend(context._waiting or ())
        context._waiting = None
        if self._releasing:
            return
        loop: Any = self.loop
        try:
            loop.call_soon(self._release_next, context=self._variables)  # in nobody's variables
            self._releasing = True
        except RuntimeError:
            if not loop.is_closed():  # else they stay unfinished, and are told as that
                raise

    def _launch_released(self) -> None:
        """Launch a batch of what has waited in closed contexts, in order."""
        self._releasing = False
        released, slots, options = self._released, self.slots, self.options
        loop: Any = self.loop
        direct = _EAGER and self.plain and self.deadline is None and not slots.named and loop.get_task_factory() is None
        left = len(released)
        if left > _BATCH:  # noqa: PLR1730  # a call of min() costs as much as all of this method's tests
            left = _BATCH
        while left:
            left -= 1
            task = released.popleft()
            if (
                direct
                and task._options is options
                and task._kind is _ASYNC
                and task._outcome is None
                and slots.busy < slots.max_running
                and not slots.queues
            ):
                # What launch() and _start() do, without the way there: most tasks are like this.
                slots.busy += 1
                task._slot = True
                coroutine = run_plain(task, self)
                try:
                    runner = _Task(coroutine, loop=loop, context=task._vars, eager_start=True)
                except BaseException as error:  # noqa: BLE001  # it must not take the others of the batch along
                    self._fail(task, coroutine, error)
                else:
                    if task._outcome is None:  # what _keep() does
                        task._runner = runner
                        runner.set_name(task.name)
                        runner._log_destroy_pending = False
            else:
                self._launch_decided(task)
        if not self.calm and self.rooms:
            self.make_room()  # those who started wait no longer
        if released and not self._releasing:  # else what has just run has released more, and seen to it
            self._releasing = True
            loop.call_soon(self._release_next, context=self._variables)

    def _launch_decided(self, task: TaskHandle[Any]) -> None:
        context: Any = task._unit
        if task._outcome is not None:
            return  # cancelled meanwhile
        decision = context.decide(task)
        if decision:
            self.launch(task, eager=True)
        elif decision is False:
            self.settle(task, Outcome.DISCARDED_BY_WHEN)

    def launch(self, task: TaskHandle[Any], /, *, eager: bool) -> None:
        """Start `task` as soon as there is a slot."""
        slots = self.slots
        if task._outcome is not None:
            return  # cancelled by a hook, when it was told of it
        if self.deadline is not None and self.now() >= self.deadline:
            self.settle(task, Outcome.CANCELLED_AT_DEADLINE)
        elif slots.busy < slots.max_running and not slots.queues and not slots.named:
            slots.busy += 1
            self._start(task, eager)
        elif slots.take(task):
            self._start(task, eager)
        else:
            self.calm = False  # somebody waits for a slot

    def _start(self, task: TaskHandle[Any], eager: bool) -> None:  # noqa: FBT001  # the hot path
        """Run `task`, which has a slot, in an asyncio task of its own."""
        task._slot = True
        if self.rooms:
            self.make_room(task.name)
        options = task._options
        loop: Any = self.loop
        ours = loop.get_task_factory() is None  # else what a task runs may be hidden inside of another coroutine
        if (
            ours
            and (self.plain if options is self.options else options.plain and self.task_scope is None)
            and task._kind is not _SYNC
        ):
            coroutine = run_plain(task, self)
        else:
            coroutine = run_task(task, self)
        try:
            if _EAGER and eager and ours:
                runner = _Task(coroutine, loop=loop, context=task._vars, eager_start=True)
            else:
                runner = loop.create_task(coroutine, context=task._vars)
                runner.add_done_callback(partial(self._never_ran, task, coroutine))
        except BaseException as error:  # noqa: BLE001  # told as the task's failure
            self._fail(task, coroutine, error)
        else:
            if task._outcome is None:
                self._keep(task, runner)

    def _fail(self, task: TaskHandle[Any], coroutine: Coroutine[Any, Any, None], error: BaseException) -> None:
        """Settle a task that could not be started: no memory, or the loop closes under us."""
        coroutine.close()
        task._error = error
        self.settle(task, Outcome.FAILED)

    def _keep(self, task: TaskHandle[Any], runner: Any) -> None:
        """Note the asyncio task of one that goes on after its first step."""
        task._runner = runner
        runner.set_name(task.name)
        if hasattr(runner, "_log_destroy_pending"):  # a task factory may make anything
            runner._log_destroy_pending = False  # one left behind is reported by us, by name

    def _never_ran(self, task: TaskHandle[Any], coroutine: Coroutine[Any, Any, None], _runner: object) -> None:
        """Settle a task that was cancelled before its first step."""
        if not task._attempts:
            close_refused(coroutine)  # if it is inside of another, which was cancelled in its place
        self.settle(task, task._stopped_by or Outcome.CANCELLED_BY_ITSELF)

    def _pump(self) -> None:
        """Start those whose turn it is, a few at a time."""
        self._pumping = False
        for _ in range(_BATCH):
            task = self.slots.next()
            if task is None:
                self.look()
                return
            if not task._slot:  # else it goes on with the one that it had lent
                self._start(task, eager=True)
        self.pump()

    def pump(self) -> None:
        """Start those who wait for a slot, from the next turn of the loop on."""
        if not self._pumping and self.loop is not None and not self.loop.is_closed():
            self._pumping = True
            self.loop.call_soon(self._pump, context=self._variables)

    def inline(self, task: TaskHandle[Any], /) -> Coroutine[Any, Any, None]:
        """Run `task` inside the caller's own asyncio task, raising its error."""
        return run_inline(task, self)

    def cancel(self, task: TaskHandle[Any], outcome: Outcome, /) -> bool:
        """End `task`: at once if it has not started, else by a `CancelledError` inside it."""
        if task._outcome is not None or task._execution is Execution.SEQUENTIAL:
            return False
        if self.loop is not None and running_loop() is not self.loop and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.cancel, task, outcome)
            return True
        if task._stopped_by is None:
            task._stopped_by = outcome
            for step in self.steps_of(task):
                step._stopped_by = outcome
        if not task._attempts:
            runner = task._runner
            if task._kind is Kind.AWAITABLE and asyncio.isfuture(task._work):
                task._work.cancel()
            late = outcome is Outcome.CANCELLED_BY_DRAIN
            self.settle(task, Outcome.CANCELLED_AT_DEADLINE if late else outcome)
        elif task._backoff is not None and outcome is Outcome.CANCELLED_BY_DRAIN:
            if not task._backoff.done():
                task._backoff.set_result(False)
            return True
        else:
            runner = task._runner or find_runner(task)
        if runner is not None:
            runner.cancel()
        return True

    # -- waiting ----------------------------------------------------------------------------

    async def stand_aside(
        self, task: TaskHandle[Any], wait: Awaitable[None], other: TaskHandle[Any] | None = None, /
    ) -> None:
        """Wait for others in `task`, which lends its slot meanwhile: they may need it.

        Raises:
            RuntimeError: It waits for `other`, which cannot start before `task` has ended.
        """
        slots = self.slots
        context: Any = None if other is None else other._unit
        if slots.named and other is not None and context.belongs_to(self) and slots.shuts_out(task, other):
            message = (
                f"task {task.name!r} waits for another one of its name (deferred at {other.site}), which could never "
                f"start: limits[{task.name!r}] lets one of them run at a time. Give one of the two another name"
            )
            raise RuntimeError(message)
        slots.lend(task)
        self.calm = False  # its end may come before it has a slot again
        if slots.queues:
            self.pump()
        try:
            await wait
            if task in slots.lent and (turn := slots.regain(task)) is not None:
                await turn
        finally:
            if task in slots.lent:
                slots.insist(task)  # it is cancelled, and has to clean up
            self.look()

    async def conduct(self, drain: Drain) -> None:
        """Run `drain`; a task that does so lends its slot."""
        work = drain.run(self.cancel, self.settle, self.drains_of)
        task = task_here()
        await (work if task is None or not task._slot else task._unit.stand_aside(task, work))

    async def drain_context(self, context: UnitOfWork, timeout: float | None, /) -> DrainReport:
        """Drain the tasks of one context; the counts are of its whole life."""
        limit = self.timeout if timeout is None else seconds(timeout, "timeout", zero=True)
        loop = running_loop()
        if context.pending and loop is not self.loop:
            self.meet(loop, context)  # says which loop it is to be drained on
        if loop is None:  # under trio, where nothing was deferred
            return DrainReport(context._finished, context._failed, (), ())
        drain = Drain(
            self.tasks,
            limit,
            self.grace,
            me=enclosing_task(),
            drainers=self.drainers,
            now=self.now,
            between=self.between,
            unit=context,
        )
        context._drains = (*context._drains, drain)
        drain.skip_waits()
        self.watched += 1
        self.look()
        try:
            await self.conduct(drain)
        finally:
            context._drains = tuple(other for other in context._drains if other is not drain)
            self.watched -= loop is self.loop  # else it was forgotten with its loop
            self.look()
        await self.hooks.finish(self.hooks.until(self.grace))
        report = drain.report()
        return DrainReport(context._finished, context._failed, report.cancelled, report.abandoned)
