"""Tell listeners what happened; contain whatever they do.

Rules of this file: a hook takes one event and can break nothing: what it raises is logged,
with the task's own error as its cause. What it returns, if awaitable, runs in a task of its
own for at most `limit` seconds; a bounded number of these run at a time, a bounded number wait
in line, and the loss of any further one is logged. A hook whose attribute ``events`` is a tuple
of event classes is told only these. Hooks run on the event loop, in the order they were given.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import sys
from collections import deque
from collections.abc import Awaitable, Iterable
from typing import Any, NamedTuple

from deferred._call import close_refused
from deferred._events import (
    ContextClosed,
    ContextOpened,
    ContextSettled,
    Event,
    StepFinished,
    TaskDeferred,
    TaskFailed,
    TaskStarted,
    TaskSucceeded,
)

__all__ = ["Hooks"]

logger = logging.getLogger("deferred")

MAX_RUNNING = 100
"""How many asynchronous hooks run at a time: enough for those that wait for a network."""
MAX_WAITING = 10_000
"""How many wait for their turn: as many as tasks by default (`max_pending`), each of which may fail."""

_Listeners = tuple[Any, ...]


class _Told(NamedTuple):
    """What an asynchronous hook is told that runs now."""

    number: int  # of those that began before
    hook: Any
    event: Event
    answer: Any  # what the hook returned


class Hooks:
    """The listeners of one supervisor, sorted by what they listen to. Lives as long as it.

    The attributes that the hot path reads are tuples, empty where nobody listens: an event
    nobody wants is never made. `timed` says whether anybody wants to know when a task began.
    """

    __slots__ = (
        "_begun",
        "_hooks",
        "_lost",
        "_tasks",
        "_told",
        "_waiting",
        "closed",
        "deferred",
        "limit",
        "opened",
        "settled",
        "started",
        "step",
        "succeeded",
        "timed",
    )

    def __init__(self, hooks: Iterable[Any], limit: float) -> None:
        self._hooks = tuple(hooks)
        self._tasks: dict[asyncio.Task[None], _Told] = {}
        self._begun = 0
        self._waiting: deque[tuple[Any, Event, Any]] = deque()  # the hook, what it was told, what it returned
        self._lost = 0  # since there was room last
        self.limit = limit
        self._sort()

    def _sort(self) -> None:
        self.opened = self.listeners(ContextOpened)
        self.closed = self.listeners(ContextClosed)
        self.settled = self.listeners(ContextSettled)
        self.step = self.listeners(StepFinished)
        self.deferred = self.listeners(TaskDeferred)
        self.started = self.listeners(TaskStarted)
        self.succeeded = self.listeners(TaskSucceeded)
        self.timed = bool(self.started or self.succeeded)
        self._told: dict[type[Event], _Listeners] = {}  # who listens to which class, once it was emitted

    def add(self, hook: object) -> None:
        """Add a listener; it is told what happens from now on."""
        self._hooks = (*self._hooks, hook)
        self._sort()

    def remove(self, hook: object) -> None:
        """Remove a listener; one that is not there is ignored."""
        self._hooks = tuple(known for known in self._hooks if known != hook)
        self._sort()

    def listeners(self, kind: type[Event]) -> _Listeners:
        """Return the hooks that want events of this class."""
        return tuple(hook for hook in self._hooks if issubclass(kind, _wanted(hook)))

    def carry(self, headers: dict[str, str]) -> None:
        """Let the hooks that have a method ``carry`` write what travels beside stored work."""
        for hook in self._hooks:
            carry = getattr(hook, "carry", None)
            if callable(carry):
                try:
                    carry(headers)
                except BaseException:  # as for events, a hook breaks nothing
                    logger.exception("hook %s failed to write its headers; it is contained", _shown(hook))

    def emit(self, event: Event, extra: _Listeners = ()) -> None:
        """Tell every listener of this event, then those in `extra`."""
        hooks = self._told.get(type(event))
        if hooks is None:
            hooks = self._told[type(event)] = self.listeners(type(event))
        self.tell((*hooks, *extra) if extra else hooks, event)

    def tell(self, hooks: _Listeners, event: Event) -> None:
        """Tell these listeners of this event: for whoever has looked them up already."""
        for hook in hooks:
            try:
                answer = hook(event)
                if answer is not None:
                    self._go_on(hook, event, answer)
            except BaseException as error:  # noqa: BLE001  # a hook breaks nothing, SystemExit included
                _log(hook, event, error)

    def _go_on(self, hook: object, event: Event, answer: Any) -> None:  # of whatever it returns
        """Let what a hook returned go on, if it is something that can."""
        try:
            if inspect.isawaitable(answer):
                self._run(hook, event, answer)
        except BaseException:
            close_refused(answer)
            raise

    def _run(self, hook: object, event: Event, answer: Any) -> None:  # of whatever it returns
        """Let what a hook returned go on: now, in its turn, or not at all."""
        if len(self._tasks) < MAX_RUNNING:
            task = asyncio.get_running_loop().create_task(self._finish(hook, event, answer))
            self._tasks[task] = _Told(self._begun, hook, event, answer)
            self._begun += 1
            task.add_done_callback(self._next)
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append((hook, event, answer))
        else:
            close_refused(answer)
            if not self._lost:
                kind, shown = type(event).__name__, _shown(hook)
                logger.error("hook %s lost a %s: %d are behind already; it is too slow", shown, kind, MAX_WAITING)
            self._lost += 1

    def _next(self, task: asyncio.Task[None]) -> None:
        """Let the next one go on."""
        told = self._tasks.pop(task, None)
        if told is not None and task.cancelled():  # before its first step
            close_refused(told.answer)
            logger.error("the end came before hook %s was told of a %s", _shown(told.hook), type(told.event).__name__)
        if self._waiting:
            self._run(*self._waiting.popleft())
        elif self._lost:
            logger.error("slow hooks have lost %d event(s) in all", self._lost)
            self._lost = 0

    async def _finish(self, hook: object, event: Event, answer: Awaitable[object]) -> None:
        limit = asyncio.timeout(self.limit)
        try:
            async with limit:
                await answer
        except BaseException as error:  # noqa: BLE001  # as above; a hook's CancelledError is its own affair
            if limit.expired():
                kind = type(event).__name__
                shown = _shown(hook)
                logger.error("hook %s did not finish within %g s on %s; it was cancelled", shown, self.limit, kind)  # noqa: TRY400  # the traceback would be ours
            else:
                _log(hook, event, error)
                runner = asyncio.current_task()
                if runner is not None and runner.cancelling():  # by nobody of ours: the loop is about to end
                    self._give_up()

    def _give_up(self) -> None:
        """Tell nobody of those who wait, but tell that."""
        if self._waiting:
            late, shown = len(self._waiting), _shown(self._waiting[0][0])
            logger.error("the end came before %d event(s) were told to slow hooks, the first to %s", late, shown)
        for _, _, answer in self._waiting:
            close_refused(answer)
        self._waiting.clear()

    def forget(self) -> None:
        """Let go of what ran on a loop that is gone: nothing of it will ever end."""
        self._tasks.clear()
        self._give_up()

    def until(self, grace: float) -> float:
        """Return when hooks that are told now have had their time: each has its limit, all have `grace` more."""
        return asyncio.get_running_loop().time() + self.limit + grace

    async def finish(self, until: float) -> None:
        """Wait for asynchronous hooks that run or wait now, at most until this time of the loop.

        Those of later events are somebody else's to wait for: under load there are always some. A hook
        waits for none, for it would wait for itself, or for one that waits for it.
        """
        last = 0 if self._in_a_hook else self._begun + len(self._waiting)
        clock = asyncio.get_running_loop().time
        while (ours := [task for task, told in self._tasks.items() if told.number < last]) and clock() < until:
            await asyncio.wait(ours, timeout=until - clock())

    async def end(self, until: float) -> None:
        """Wait for all of them, those of later events too; then tell nobody more, and cancel who goes on."""
        if self._in_a_hook:
            return  # it closes its own supervisor: the others have their time
        clock = asyncio.get_running_loop().time
        while self._tasks and clock() < until:
            await asyncio.wait(self._tasks, timeout=until - clock(), return_when=asyncio.FIRST_COMPLETED)
        self._give_up()
        for task in self._tasks:
            logger.error("a hook ignores its cancellation and is left behind: %r", task.get_coro())
            task.cancel()

    @property
    def _in_a_hook(self) -> bool:
        """Say whether it is a hook that asks."""
        return asyncio.current_task() in self._tasks


def _wanted(hook: object) -> tuple[type[Event], ...]:
    wanted: Any = getattr(hook, "events", None)
    if isinstance(wanted, tuple) and wanted:
        kinds: tuple[Any, ...] = wanted  # pyright: ignore[reportUnknownVariableType]  # checked here
        if all(isinstance(kind, type) and issubclass(kind, Event) for kind in kinds):
            return kinds
    return (Event,)  # a hook may keep anything else under that name


def _blame(event: Event, error: BaseException) -> None:
    original = getattr(event, "error", None)
    if isinstance(original, BaseException) and original is not error and error.__cause__ is None:
        with contextlib.suppress(Exception):  # an error may refuse to be changed
            error.__cause__ = original


def _log(hook: object, event: Event, error: BaseException) -> None:
    """Log what a hook raised; the log itself may be what fails."""
    try:
        _blame(event, error)
        kind = type(event).__name__
        task = f" of task {event.task.name!r}" if isinstance(event, TaskFailed) else ""
        logger.error("hook %s failed on %s%s; it is contained", _shown(hook), kind, task, exc_info=error)
    except BaseException as second:  # noqa: BLE001  # a broken log handler breaks nothing either
        with contextlib.suppress(BaseException):
            sys.stderr.write(
                f"deferred: a hook raised {type(error).__name__}, and logging it {type(second).__name__}\n"
            )


def _shown(hook: object) -> str:
    try:
        return repr(hook)
    except Exception:  # noqa: BLE001  # shown by its type then
        return f"<{type(hook).__name__}>"
