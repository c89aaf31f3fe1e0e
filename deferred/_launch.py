"""From accepted to settled: the machinery that a supervisor owns.

Rules of this file: `settle` is the one place where a task reaches a terminal state, and a
task reaches one once; the sets that threads may add to (`tasks`, a context's own) are only
added to there, everything else happens on the event loop; a slot is given back in `settle`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import weakref
from asyncio import AbstractEventLoop, Future
from asyncio import _get_running_loop as running_loop
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from deferred._call import Kind, close_refused, name_of
from deferred._context import DeferredContext, hosts
from deferred._drain import Drain
from deferred._events import (
    ContextOpened,
    ContextSettled,
    Event,
    Execution,
    Outcome,
    TaskAbandoned,
    TaskCancelled,
    TaskDiscarded,
    TaskFailed,
    TaskRejected,
    TaskState,
    TaskSucceeded,
)
from deferred._hooks import Hooks
from deferred._limits import Limit, Slots
from deferred._offload import DaemonThreads
from deferred._run import run_inline, run_plain, run_task
from deferred._task import ErrorHook, TaskHandle, TaskOptions
from deferred.exceptions import EventLoopError, SupervisorClosedError, TaskRejectedError

__all__ = ["Launcher"]

logger = logging.getLogger("deferred")

_EAGER = sys.version_info >= (3, 12)
_BATCH = 32
_NO_KWARGS: dict[str, Any] = {}
_OK = Outcome.SUCCEEDED
_SUCCEEDED = TaskState.SUCCEEDED
_Task: Any = asyncio.Task  # its eager_start is not in the types of every Python version
_ASYNC = Kind.ASYNC
_SYNC = Kind.SYNC
_NOWHERE = object()


class Launcher:
    """Accepts, starts, cancels and settles the tasks of one supervisor. Lives as long as it.

    Attributes:
        tasks: Every accepted task that has not settled; what a drain waits for.
        detached: Those of fire-and-forget routes, which no drain waits for.
        succeeded: How many tasks ended well; `unhappy` counts the other endings.
        deadline: The end of the drain under way, on the loop's clock.
        home: The loop, as long as work is accepted there; else nothing that is equal to it.
        why: Why no more work is accepted, in words.
    """

    __slots__ = (
        "__weakref__",
        "_ambient",
        "_offload",
        "_pumping",
        "_released",
        "_releasing",
        "_rooms",
        "claimed",
        "deadline",
        "detached",
        "drains",
        "grace",
        "home",
        "hooks",
        "lazy",
        "lock",
        "loop",
        "max_pending",
        "max_per_context",
        "now",
        "on_error",
        "opened",
        "options",
        "out_of_scope",
        "owner",
        "overflow",
        "plain",
        "roomy",
        "seen",
        "slots",
        "succeeded",
        "task_scope",
        "tasks",
        "timeout",
        "unhappy",
        "warned",
        "why",
    )

    now: Callable[[], float]

    def __init__(
        self,
        *,
        options: TaskOptions,
        hooks: Hooks,
        on_error: tuple[ErrorHook, ...],
        max_running: int,
        max_pending: int,
        max_per_context: int,
        limits: Mapping[str, Limit],
        overflow: str,
        out_of_scope: str,
        task_scope: Callable[..., AbstractAsyncContextManager[Any]] | None,
        offload: Executor | None,
        timeout: float,
        grace: float,
    ) -> None:
        self.options = options
        self.hooks = hooks
        self.on_error = on_error
        self.max_pending = max_pending
        self.max_per_context = max_per_context
        self.overflow = overflow
        self.out_of_scope = out_of_scope
        self.task_scope = task_scope
        self.timeout = timeout
        self.grace = grace
        self.plain = options.plain and task_scope is None
        self.slots = Slots(max_running, limits)
        self.tasks: set[TaskHandle[Any]] = set()
        self.detached: set[TaskHandle[Any]] = set()
        self.claimed: set[Any] = set()
        self.succeeded = 0
        self.unhappy = dict.fromkeys(TaskState, 0)
        self.drains: list[Drain] = []
        self.loop: AbstractEventLoop | None = None
        self.seen: AbstractEventLoop | None = None
        self.opened = False
        self.lazy = True
        self.owner: Callable[[], Any] | None = None
        self.deadline: float | None = None
        self.now = time.monotonic
        self.home: object = _NOWHERE
        self.why: str | None = None
        self.roomy = 0 if self.slots.named else max_pending
        self.warned = False
        self._offload = offload
        self.lock = threading.Lock()
        self._pumping = False
        self._rooms: list[Future[None]] = []
        self._released: list[DeferredContext] = []
        self._releasing = False
        self._ambient: DeferredContext | None = None

    @property
    def offload(self) -> Executor:
        """Where synchronous functions run; threads of our own, made when first needed."""
        if self._offload is None:
            self._offload = DaemonThreads()
        return self._offload

    @property
    def ambient(self) -> DeferredContext:
        """The context of work that belongs to no unit of work: always closed, never ended."""
        if self._ambient is None:
            self._ambient = DeferredContext(self, self.options, None, "background", _closed=True, _decided=True)
        return self._ambient

    def open(self, describe: Callable[[Any], str] | None, subject: Any) -> DeferredContext:
        """Open a context; `describe(subject)` is its label, made only if somebody asks."""
        loop = running_loop()
        if loop is not self.loop:
            self.seen = loop  # bound by the first registration, if there is one
        context = DeferredContext(self, self.options, describe, subject)
        if self.hooks.opened:
            self.tell_opened(context)
        return context

    def tell_opened(self, context: DeferredContext) -> None:
        """Tell the hooks that a unit of work began."""
        self.hooks.emit(ContextOpened(context, at=self.now()))

    def adopt(self, other: Launcher) -> None:
        """Have the supervisor of `other` drained with this one's."""
        mine, theirs = (launcher.owner and launcher.owner() for launcher in (self, other))
        if mine is not None and theirs is not None:
            mine.adopt(theirs)

    # -- the event loop ---------------------------------------------------------------------

    def meet(self, loop: AbstractEventLoop | None, work: object, /) -> None:
        """Bind to `loop` (None: called in a thread), or refuse to register `work` there.

        Raises:
            SupervisorClosedError: No more work is accepted.
            EventLoopError: There is no usable loop, or another one is in use.
        """
        if self.why is not None:
            message = f"{name_of(work)} was not accepted: {self.why}"
            raise SupervisorClosedError(message)
        if loop is None and not _in_trio():
            loop = self.loop if self.loop is not None and self.loop.is_running() else self.seen
        if loop is None or not loop.is_running():
            message = (
                f"{name_of(work)} was not accepted: no asyncio event loop runs here, and deferred work needs one. "
                "Under trio, or before the server has started, requests pass through but nothing can be deferred; "
                "in a thread, defer through the context of a request, or open the supervisor first"
            )
            raise EventLoopError(message)
        if loop is not self.loop:
            if self.loop is not None and not self.loop.is_closed() and (self.tasks or self.loop.is_running()):
                message = (
                    f"{name_of(work)} was not accepted: this supervisor works on the event loop {self.loop!r}, "
                    f"and this is another one, {loop!r}. Give each loop a supervisor of its own, or register on the "
                    "first with `asyncio.run_coroutine_threadsafe`"
                )
                raise EventLoopError(message)
            self.bind(loop)

    def bind(self, loop: AbstractEventLoop) -> None:
        """Work on `loop` from now on; what a closed loop left behind is abandoned."""
        for task in (*self.tasks, *self.detached):
            self.settle(task, TaskState.ABANDONED, Outcome.ABANDONED)
        self.loop = self.home = loop
        # The method itself is a Python function around this one; loops with a clock of their own keep it.
        self.now = time.monotonic if type(loop).time is asyncio.BaseEventLoop.time else loop.time
        self._pumping = self._releasing = False
        if not self.opened:
            logger.warning(
                "this supervisor was never opened, so nothing drains it and work can be lost at shutdown: let the "
                "middleware see the lifespan, or use `async with supervisor:`; said once"
            )
            self.opened = True
        reference = weakref.ref(self)
        if reference not in hosts:
            hosts.append(reference)

    # -- acceptance -------------------------------------------------------------------------

    def shut(self, why: str | None) -> None:
        """Take no more work, for this reason; None: take work again."""
        self.why = why
        self.home = self.loop if why is None else _NOWHERE

    def admit(self, task: TaskHandle[Any], context: DeferredContext, /) -> bool:
        """Accept `task` (True), or do what the overflow policy says.

        Raises:
            TaskRejectedError: A limit is reached, and the policy is not ``"discard"``.
            ValueError: It is a coroutine that was registered before.
        """
        claims = task._kind is Kind.AWAITABLE and asyncio.iscoroutine(task._work)
        if claims and task._work in self.claimed:
            message = f"the coroutine {task.name!r} was registered before: a coroutine runs once, pass a fresh one"
            raise ValueError(message)
        full = self._full(context, task.name)
        if full is not None:
            return self._overflow(task, context, full)
        self.slots.accept(task)
        if claims:
            self.claimed.add(task._work)
        if task._execution is Execution.FIRE_AND_FORGET:
            self.detached.add(task)
        else:
            task._tracked = True
            self.tasks.add(task)
        return True

    def confirm(self, task: TaskHandle[Any], context: DeferredContext, /) -> None:
        """Take back what a thread registered while the supervisor was shut, and raise."""
        if self.why is not None:
            self.tasks.discard(task)
            if task._tracked:
                task._tracked = False
                with self.lock:
                    context._sent -= 1
            self.meet(None, task._work)

    def _full(self, context: DeferredContext, name: str) -> str | None:
        """Return which limit is reached, in words; None when none is."""
        waiting = len(self.tasks) + len(self.detached) - self.slots.busy
        if waiting >= self.max_pending:
            return f"{waiting} tasks wait already (max_pending={self.max_pending})"
        if context is not self._ambient:
            if context.pending >= self.max_per_context:
                return f"its context has {context.pending} unfinished tasks (max_per_context={self.max_per_context})"
            if context._after_end > self.max_per_context:
                return (
                    "its context has ended and its tasks have registered "
                    f"{self.max_per_context} more (max_per_context={self.max_per_context})"
                )
        if self.slots.crowded(name):
            return f"too many tasks of that name wait (limits[{name!r}].pending)"
        return None

    def _overflow(self, task: TaskHandle[Any], context: DeferredContext, full: str) -> bool:
        if self.overflow == "discard":
            self.on_loop(self.settle, task, TaskState.DISCARDED, Outcome.DISCARDED_BY_OVERFLOW)
            return False
        message = f"task {task.name!r} was not accepted (at {task.site}): {full}"
        error = TaskRejectedError(message)
        if self.hooks.listeners(TaskRejected):
            self.on_loop(self.hooks.emit, TaskRejected(task.name, context, error, at=self.now()))
        raise error

    def room(self, context: DeferredContext, name: str, /) -> Future[None] | None:
        """Return what to wait for while a limit is reached and the policy is ``"wait"``."""
        if self.overflow != "wait" or self._full(context, name) is None:
            return None
        room: Future[None] = asyncio.get_running_loop().create_future()
        self._rooms.append(room)
        return room

    def _make_room(self) -> None:
        rooms, self._rooms = self._rooms, []
        for room in rooms:
            if not room.done():
                room.set_result(None)

    # -- start and end ----------------------------------------------------------------------

    def release(self, context: DeferredContext, /) -> None:
        """Launch what has waited in `context`, from the next turn of the loop on."""
        self._released.append(context)
        if not self._releasing and self.loop is not None and not self.loop.is_closed():
            self._releasing = True
            self.loop.call_soon(self._launch_released)

    def _launch_released(self) -> None:
        """Launch a batch of what has waited in closed contexts, in order."""
        self._releasing = False
        contexts, self._released = self._released, []
        slots, options, loop = self.slots, self.options, self.loop
        room = _BATCH
        direct = _EAGER and self.plain and self.deadline is None and loop.get_task_factory() is None  # type: ignore[union-attr]  # release() has seen to that
        for context in contexts:
            batch, context._waiting = context._waiting, None
            if batch is None:
                continue
            if len(batch) > room:
                context._waiting = batch[room:]
                self.release(context)
                del batch[room:]
            room -= len(batch)
            for task in batch:
                if task._outcome is not None:
                    continue
                if (
                    direct
                    and task._options is options
                    and task._kind is _ASYNC
                    and slots.busy < slots.max_running
                    and not slots.queues
                    and not slots.named
                ):
                    # What _start() does, without the way there: most tasks are like this.
                    slots.busy += 1
                    task._slot = True
                    runner = _Task(run_plain(task, self), loop=loop, context=task._vars, eager_start=True)
                    if task._outcome is None:
                        self._keep(task, runner)
                else:
                    self._launch_decided(task, context)

    def _launch_decided(self, task: TaskHandle[Any], context: DeferredContext) -> None:
        decision = context.decide(task)
        if decision:
            self.launch(task, eager=True)
        elif decision is False:
            self.settle(task, TaskState.DISCARDED, Outcome.DISCARDED_BY_WHEN)

    def launch(self, task: TaskHandle[Any], /, *, eager: bool) -> None:
        """Start `task` as soon as there is a slot."""
        slots = self.slots
        if self.deadline is not None and self.now() >= self.deadline:
            self.settle(task, TaskState.CANCELLED, Outcome.EXHAUSTED_DEADLINE)
        elif slots.busy < slots.max_running and not slots.queues and not slots.named:
            slots.busy += 1
            self._start(task, eager)
        elif slots.take(task):
            self._start(task, eager)

    def _start(self, task: TaskHandle[Any], eager: bool) -> None:  # noqa: FBT001  # the hot path
        """Run `task`, which has a slot, in an asyncio task of its own."""
        task._slot = True
        if self._rooms:
            self._make_room()
        options = task._options
        loop: Any = self.loop
        if (self.plain if options is self.options else options.plain and self.task_scope is None) and (
            task._kind is not _SYNC
        ):
            coroutine = run_plain(task, self)
        else:
            coroutine = run_task(task, self)
        try:
            if _EAGER and eager and loop.get_task_factory() is None:
                runner = asyncio.Task(coroutine, loop=loop, context=task._vars, eager_start=True)
                if task._outcome is not None:
                    return
            else:
                runner = loop.create_task(coroutine, context=task._vars)
                runner.add_done_callback(partial(self._never_ran, task))
        except BaseException as error:  # noqa: BLE001  # no memory, or the loop closes under us: the task's failure
            coroutine.close()
            task._error = error
            self.settle(task, TaskState.FAILED, Outcome.FAILED)
            return
        self._keep(task, runner)

    def _keep(self, task: TaskHandle[Any], runner: asyncio.Task[None]) -> None:
        """Note the asyncio task of one that goes on after its first step."""
        task._runner = runner
        runner.set_name(task.name)
        if isinstance(runner, asyncio.Task):  # a task factory may make anything
            runner._log_destroy_pending = False  # type: ignore[attr-defined]  # one left behind is reported by us, by name

    def _never_ran(self, task: TaskHandle[Any], _runner: object) -> None:
        """Settle a task that was cancelled before its first step."""
        self.settle(task, TaskState.CANCELLED, task._stopped_by or Outcome.CANCELLED_BY_ITSELF)

    def _pump(self) -> None:
        """Start those whose turn it is, a few at a time."""
        self._pumping = False
        for _ in range(_BATCH):
            task = self.slots.next()
            if task is None:
                return
            self._start(task, eager=True)
        self._schedule_pump()

    def _schedule_pump(self) -> None:
        if not self._pumping and self.loop is not None and not self.loop.is_closed():
            self._pumping = True
            self.loop.call_soon(self._pump)

    def inline(self, task: TaskHandle[Any], /) -> Coroutine[Any, Any, None]:
        """Run `task` inside the caller's own asyncio task, raising its error."""
        return run_inline(task, self)

    def cancel(self, task: TaskHandle[Any], outcome: Outcome, /) -> bool:
        """End `task`: at once if it has not started, else by a `CancelledError` inside it."""
        if task._outcome is not None or task._execution is Execution.SEQUENTIAL:
            return False
        if running_loop() is not self.loop:
            self.on_loop(self.cancel, task, outcome)
            return True
        if task._stopped_by is None:
            task._stopped_by = outcome
        if not task._attempts:
            runner, never = task._runner, outcome
            if outcome is Outcome.CANCELLED_BY_DRAIN:
                never = Outcome.EXHAUSTED_DEADLINE
            if task._kind is Kind.AWAITABLE and isinstance(task._work, Future):
                task._work.cancel()
            self.settle(task, TaskState.CANCELLED, never)
        elif task._backoff is not None and outcome is Outcome.CANCELLED_BY_DRAIN:
            if not task._backoff.done():
                task._backoff.set_result(False)
            return True
        else:
            runner = task._runner or asyncio.current_task()  # in its first, eager step it is the current one
        if runner is not None:
            runner.cancel()
        return True

    def succeed(self, task: TaskHandle[Any], /) -> None:
        """Settle a task that has returned: the short way, where nobody waits or watches."""
        context: Any = task._unit
        if (
            self.drains
            or self._rooms
            or self.slots.queues
            or self.hooks.quiet is False
            or not task._tracked
            or task._waiters is not None
            or context._drains
            or task._kind is not _ASYNC
            or self.slots.named
            or task._outcome is not None
        ):
            self.settle(task, _SUCCEEDED, _OK)
            return
        task._state = _SUCCEEDED
        task._outcome = _OK
        task._tracked = task._slot = False
        task._vars = task._runner = None
        task._args = ()
        task._kwargs = _NO_KWARGS
        self.slots.busy -= 1
        self.tasks.discard(task)
        self.succeeded += 1
        context._finished += 1
        context._pending -= 1

    def settle(self, task: TaskHandle[Any], state: TaskState, outcome: Outcome, /) -> None:
        """Bring `task` to its end: once, whoever comes first."""
        if task._outcome is not None:
            return
        task._state = state
        task._outcome = outcome
        context: Any = task._unit
        hooks = self.hooks
        if state is _SUCCEEDED:
            self.succeeded += 1
            context._finished += 1
            if hooks.succeeded:
                hooks.emit(TaskSucceeded(task, task._attempts, at=self.now()))
        else:
            self._tell_ending(task, context, state, outcome)
        watched = self.drains or context._drains
        if watched:
            watched = (*self.drains, *context._drains)
            for drain in watched:
                drain.note(task)
        slots = self.slots
        if task._slot:
            task._slot = False
            if slots.named:
                slots.give(task)
            else:
                slots.busy -= 1
            if slots.queues:
                self._schedule_pump()
        if task._tracked:
            task._tracked = False
            self.tasks.discard(task)
            context._pending -= 1
            if hooks.settled and context._ended and not context.pending:
                hooks.emit(ContextSettled(context, at=self.now()))
        task._vars = task._runner = None
        if task._args or task._kwargs:
            task._args, task._kwargs = (), _NO_KWARGS
        if task._kind is not _ASYNC or slots.named or self.detached:
            self._release(task)
        if task._waiters is not None:
            _notify(task._waiters)
        if self._rooms:
            self._make_room()
        for drain in watched:
            drain.wake()

    def _tell_ending(
        self, task: TaskHandle[Any], context: DeferredContext, state: TaskState, outcome: Outcome
    ) -> None:
        now = self.now()
        event: Event
        self.unhappy[state] += 1
        if state is TaskState.FAILED:
            context._failed += 1
            error: Any = task._error
            event = TaskFailed(
                task, error, task._attempts, context.label, context.id, task.site, outcome, at=now
            )
            self.hooks.emit(event, (*self.on_error, *context._on_error, *task._options.on_error))
        elif state is TaskState.CANCELLED:
            self.hooks.emit(TaskCancelled(task, outcome, at=now))
        elif state is TaskState.DISCARDED:
            self.hooks.emit(TaskDiscarded(task, outcome, at=now))
        else:
            _leave_behind(task._runner)
            self.hooks.emit(TaskAbandoned(task, at=now))

    def _release(self, task: TaskHandle[Any]) -> None:
        """Let go of what only some tasks hold."""
        if self.slots.named:
            self.slots.forget(task)
        if task._execution is Execution.FIRE_AND_FORGET:
            self.detached.discard(task)
        if task._kind is Kind.AWAITABLE:
            if not task._attempts:
                close_refused(task._work)
            self.claimed.discard(task._work)

    # -- waiting ----------------------------------------------------------------------------

    async def drain_context(self, context: DeferredContext, timeout: float | None, /) -> DrainReport:
        """Drain the tasks of one context; the counts are of its whole life."""
        drain = Drain(self.tasks, self.timeout if timeout is None else timeout, self.grace, context)
        context._drains = (*context._drains, drain)
        try:
            await drain.run(self.cancel, self.settle)
        finally:
            context._drains = tuple(other for other in context._drains if other is not drain)
        await self.hooks.finish(self.grace)
        report = drain.report()
        return DrainReport(context._finished, context._failed, report.cancelled, report.abandoned)

    def on_loop(self, func: Callable[..., object], *args: Any) -> None:
        """Call `func` on the supervisor's loop: now when this is it, else as soon as it turns."""
        if running_loop() is not self.loop and self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(func, *args)
        else:
            func(*args)


def _notify(waiters: list[Future[None]]) -> None:
    for waiter in tuple(waiters):
        loop = waiter.get_loop()
        if loop is running_loop():
            _wake(waiter)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(_wake, waiter)


def _wake(waiter: Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _leave_behind(runner: asyncio.Task[None] | None) -> None:
    """Take an asyncio task off the loop's list, so that `asyncio.run` does not wait for it for ever."""
    if runner is not None and not runner.done():
        asyncio._unregister_task(runner)


def _in_trio() -> bool:
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_run())
