"""Who may register work, where, and how much of it.

Rules of this file: a registration is accepted or refused at the call, never later; the sets
of tasks may be added to from threads (one operation, atomic), under `lock`; everything else
happens on the event loop that the first registration, or the opening, has bound.
"""

from __future__ import annotations

import abc
import asyncio
import logging
import sys
import threading
import time
from asyncio import AbstractEventLoop
from asyncio import _get_running_loop as running_loop
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, NamedTuple

from deferred._arguments import ArgumentCheck
from deferred._call import Kind, claimed, is_coroutine, name_of
from deferred._events import Execution, Outcome, TaskRejected
from deferred._hooks import Hooks
from deferred._limits import Limit, Slots
from deferred._offload import DaemonThreads
from deferred._options import ErrorHook, TaskOptions
from deferred._rooms import Line, Rooms
from deferred._run import enclosing_task
from deferred._task import Clock, TaskHandle, by_age
from deferred._unit import Durable, UnitOfWork
from deferred._waits import Waits
from deferred.exceptions import EventLoopError, SupervisorClosedError, TaskRejectedError

__all__ = ["Acceptance"]

logger = logging.getLogger("deferred")

NOWHERE = object()
PENDING: Line = object()
"""Stands for the limit of all tasks that wait."""
_FOR_EVER = (
    "; to wait for room would be to wait for ever, because all that could make room waits too: raise the limit, "
    "or register less at a time"
)


class Full(NamedTuple):
    """A limit that is reached."""

    line: Line | None  # where one waits for room; None when there will be none
    words: str


class Acceptance(abc.ABC):
    """The door of one supervisor. Lives as long as it.

    Attributes:
        tasks: Every accepted task that has not settled; what a drain waits for.
        detached: Those of fire-and-forget routes, which no drain waits for.
        loop: The event loop that all work runs on, once bound.
        home: The same, as long as work is accepted; else nothing that is equal to it.
        seen: The loop that contexts are opened on, before any is bound.
        why: Why no more work is accepted, in words; None while it is.
        deadline: Of the drain under way, on the loop's clock; None without one.
        lazy: Whether nobody has opened the supervisor.
        roomy: As long as there are fewer tasks, no limit of the supervisor is near.
        dressed: How many tasks run with something around them: only these set `running_task`.
        between: Those that wait between two attempts.
        steps: Those that run in line, in order, each with the task that it is in, if one is around it.
        calm: Whether nobody waits: a task that succeeds has nobody to wake.
    """

    __slots__ = (
        "__weakref__",
        "_ambient",
        "_offload",
        "_waits",
        "between",
        "calm",
        "check_arguments",
        "deadline",
        "detached",
        "dressed",
        "durable",
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
        "overflow",
        "owner",
        "plain",
        "rooms",
        "roomy",
        "seen",
        "slots",
        "steps",
        "task_scope",
        "tasks",
        "warned",
        "why",
    )

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
    ) -> None:
        self.options = options
        self.hooks = hooks
        self.on_error = on_error
        self.max_pending = max_pending
        self.max_per_context = max_per_context
        self.overflow = overflow
        self.out_of_scope = out_of_scope
        self.task_scope = task_scope
        self.plain = options.plain and task_scope is None
        self.slots = Slots(max_running, limits)
        self.roomy = 0 if self.slots.named else max_pending
        self.tasks: set[TaskHandle[Any]] = set()
        self.detached: set[TaskHandle[Any]] = set()
        self.between: set[TaskHandle[Any]] = set()
        self.steps: dict[TaskHandle[Any], TaskHandle[Any] | None] = {}
        self.loop: AbstractEventLoop | None = None
        self.seen: AbstractEventLoop | None = None
        self.home: object = NOWHERE
        self.now: Clock = time.monotonic
        self.why: str | None = None
        self.deadline: float | None = None
        self.opened = False
        self.lazy = True
        self.warned = False
        self.owner: Callable[[], Any] | None = None
        self.lock = threading.Lock()
        self._offload = offload
        self._ambient: UnitOfWork | None = None
        self.rooms = Rooms(self._free)
        self._waits = Waits(self.slots, max_pending, max_per_context)
        self.calm = False
        self.durable: Durable | None = None
        self.dressed = 0
        self.check_arguments = ArgumentCheck()

    @property
    def offload(self) -> Executor:
        """Where synchronous functions run; threads of our own, made when first needed."""
        if self._offload is None:
            self._offload = DaemonThreads()
        return self._offload

    def takes_over(self, task: TaskHandle[Any], /) -> bool:
        """Say whether `task` is stored if a drain cannot finish it."""
        return self.durable is not None and self.durable.takes(task)

    @abc.abstractmethod
    def settle(self, task: TaskHandle[Any], outcome: Outcome, /) -> None:
        """Bring `task` to its end."""

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
        if loop is None and self.deadline is not None and self.now() >= self.deadline:
            # On the loop it is accepted and cancelled. A thread that goes on and on must not hold the drain's end.
            message = f"{name_of(work)} was not accepted: the deadline of the drain has passed"
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
            self.move(loop, work)

    def move(self, loop: AbstractEventLoop, work: object, /) -> None:
        """Bind to `loop`, for the sake of `work`, if that is possible.

        Raises:
            EventLoopError: Another loop is in use.
        """
        if self.loop is not None and not self.loop.is_closed() and (self.tasks or self.loop.is_running()):
            message = (
                f"{name_of(work)} was not accepted: this supervisor works on the event loop {_shown(self.loop)}, "
                f"and this is another one, {_shown(loop)}. Give each loop a supervisor of its own, or register on "
                "the first with `asyncio.run_coroutine_threadsafe`"
            )
            raise EventLoopError(message)
        self.bind(loop)

    def bind(self, loop: AbstractEventLoop) -> None:
        """Work on `loop` from now on; what a closed loop left behind is abandoned."""
        left = by_age((*self.tasks, *self.detached))
        self.forget()
        self.loop = self.home = loop
        # The method itself is a Python function around this one; loops with a clock of their own keep it.
        self.now = time.monotonic if type(loop).time is asyncio.BaseEventLoop.time else loop.time
        if not self.opened:
            logger.warning(
                "this supervisor was never opened, so nothing drains it and work can be lost at shutdown: let the "
                "middleware see the lifespan, or use `async with supervisor:`; said once"
            )
            self.opened = True
        for task in left:  # a hook that is told of it may register work: on this loop already
            task._slot = False
            self.settle(task, Outcome.ABANDONED)

    def forget(self) -> None:
        """Forget all work: it is that of a closed loop, or of another process."""
        self.tasks.clear()
        self.detached.clear()
        self.deadline = None
        self.count_room()
        self.slots.clear()
        self.rooms.clear()
        self._waits = Waits(self.slots, self.max_pending, self.max_per_context)
        self.between.clear()

    def shut(self, why: str | None) -> None:
        """Take no more work, for this reason; None: take work again."""
        self.why = why
        self.home = self.loop if why is None else NOWHERE
        if why is not None:
            self.rooms.dismiss()

    def on_loop(self, func: Callable[..., object], *args: Any) -> None:
        """Call `func` on the supervisor's loop: now when this is it, else as soon as it turns."""
        if running_loop() is not self.loop and self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(func, *args)
        else:
            func(*args)

    # -- acceptance -------------------------------------------------------------------------

    def admit(self, task: TaskHandle[Any], context: UnitOfWork, /) -> bool:
        """Accept `task` (True), or do what the overflow policy says.

        Raises:
            TaskRejectedError: A limit is reached, and the policy is not ``"discard"``.
        """
        full = self._full(context, task.name)
        if full is not None:
            return self._refuse(task, context, full)
        self.slots.accept(task)
        if task._kind is Kind.AWAITABLE and is_coroutine(task._work):
            claimed.add(task._work)
        if task._execution is Execution.FIRE_AND_FORGET:
            self.detached.add(task)
            self.count_room()
        else:
            task._tracked = True
            self.tasks.add(task)
        return True

    def count_room(self) -> None:
        """Say anew how many tasks are far from every limit; called when `detached` has changed."""
        self.roomy = 0 if self.slots.named else self.max_pending - len(self.detached)

    def confirm(self, task: TaskHandle[Any], context: UnitOfWork, /) -> None:
        """Take back what a thread registered while the supervisor was shut, and raise."""
        if self.why is not None:
            self.tasks.discard(task)
            if task._tracked:
                task._tracked = False
                with self.lock:
                    context._sent -= 1
                    self.slots.forget(task)
            if task._kind is Kind.AWAITABLE and is_coroutine(task._work):
                claimed.discard(task._work)
            self.meet(None, task._work)

    def _full(self, context: UnitOfWork, name: str) -> Full | None:
        """Return which limit is reached; None when none is."""
        if self._free(PENDING) <= 0:
            return Full(PENDING, f"{self._waiting} tasks wait already (max_pending={self.max_pending})")
        if context is not self._ambient:
            if self._free(context) <= 0:
                words = f"its context has {context.pending} unfinished tasks (max_per_context={self.max_per_context})"
                return Full(context, words)
            if context._after_end > self.max_per_context:
                words = (
                    "its context has ended and its tasks have registered "
                    f"{self.max_per_context} more (max_per_context={self.max_per_context})"
                )
                return Full(None, words)
        if self._free(name) <= 0:
            return Full(name, f"too many tasks of that name wait (limits[{name!r}].pending)")
        return None

    @property
    def _waiting(self) -> int:
        return len(self.tasks) + len(self.detached) - self.slots.busy - len(self.slots.lent)

    def _free(self, line: Any) -> int:
        """Say how many more a limit takes: `PENDING`, that of a context, or that of a name."""
        if line is PENDING:
            return self.max_pending - self._waiting
        return self.slots.free(line) if isinstance(line, str) else self.max_per_context - line.pending

    def _refuse(self, task: TaskHandle[Any], context: UnitOfWork, full: Full) -> bool:
        if self.overflow == "discard":
            self.on_loop(self.settle, task, Outcome.DISCARDED_BY_OVERFLOW)
            return False
        message = f"task {task.name!r} was not accepted (at {task.site}): {full.words}"
        if self.overflow == "wait" and running_loop() is self.loop:
            message += _FOR_EVER if self._never(context, task.name) else "; `await ctx.run(...)` waits for room"
        error = TaskRejectedError(message)
        self.on_loop(self.hooks.emit, TaskRejected(task.name, context, error, at=self.now()))
        raise error

    def room(self, context: UnitOfWork, name: str, /, *, patient: bool = False) -> Coroutine[Any, Any, None] | None:
        """Return what waits until no limit is reached, where the policy is ``"wait"``; None when there is no need.

        Args:
            context: What the work belongs to.
            name: That of the task to be.
            patient: Wait by the policy ``"reject"`` too: there is nobody left to answer.
        """
        if self.overflow == "wait" or (patient and self.overflow == "reject"):
            reached = partial(self._reached, context, name)
            if reached() is not None:
                note = partial(self._waits.note, enclosing_task(), context, bounded=context is not self._ambient)
                return self.rooms.wait(reached, note)
        return None

    def _reached(self, context: UnitOfWork, name: str) -> Line | None:
        """Return which limit is worth waiting for; None as well when it would never have room: it is refused then."""
        full = self._full(context, name)
        if full is None or self.why is not None or self._never(context, name):
            return None
        self.calm = False
        return full.line

    def _never(self, context: UnitOfWork, name: str) -> bool:
        """Say whether to wait for room here would be to wait for ever."""
        bounded = context is not self._ambient
        if bounded and context._after_end > self.max_per_context:
            return True  # what has ended gets no room again
        return self._waits.never(enclosing_task(), context, name, bounded=bounded)

    def make_room(self, *lines: Line) -> None:
        """Let in who waits for room: before the limit of all tasks, and before these."""
        for line in (PENDING, *lines):
            self.rooms.admit(line)


def _shown(loop: AbstractEventLoop) -> str:
    """Return how messages tell `loop` from another: most look the same."""
    return f"{type(loop).__name__} at {id(loop):#x}"


def _in_trio() -> bool:
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_run())
