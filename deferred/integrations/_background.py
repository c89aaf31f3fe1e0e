"""A framework's background tasks, run on the context: what their faces share.

Rules of this file: work is registered when the framework would have run it, which is when the
response that carries it is out; nothing that was taken is lost, so work that no context takes
runs as the framework's own does; tasks that the framework runs one after the other run so here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from sys import _getframe
from types import CodeType
from typing import Any, NamedTuple, cast

from deferred._call import Kind, check_callable, name_of
from deferred._context import DeferredContext
from deferred._current import context_outside
from deferred._events import Execution
from deferred._task import TaskHandle, current_unit
from deferred.exceptions import (
    ContextClosedError,
    EventLoopError,
    NoCurrentContextError,
    SupervisorClosedError,
    TaskRejectedError,
)

__all__ = ["Chain", "Site", "Work", "caller", "hand_over"]

logger = logging.getLogger("deferred")


class Site(NamedTuple):
    """The place that made a background task: what a frame tells of itself, without its variables."""

    f_code: CodeType | None = None
    f_lasti: int = 0


class Work(NamedTuple):
    """One background task, not registered yet."""

    func: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012  # never changed
    site: Site = Site()


def caller() -> Site:
    """Return the place that has called the function which asks."""
    frame = _getframe(2)
    return Site(frame.f_code, frame.f_lasti)


async def hand_over(works: Iterable[Work], chain: Chain | None = None) -> list[Work]:
    """Register background tasks with the current context; wait for room where a limit is reached.

    Args:
        works: The tasks.
        chain: Has each start when the one before it has ended, however it did; without it all start at once.

    Returns:
        Those that no context takes: the framework is to run them itself.

    Raises:
        TaskRejectedError: A limit is reached, and the response has not begun.
    """
    left = deque(works)
    context = _context()
    if context is None:
        return list(left)
    if chain is not None:
        chain.context = context
    while left:
        work = left[0]
        try:
            kind = check_callable(work.func)
            if (room := context._host.room(context, name_of(work.func), patient=True)) is not None:
                await room
            if chain is None:
                _register(context, kind, work)
            else:
                chain.add(kind, work)
        except (ContextClosedError, EventLoopError, SupervisorClosedError) as error:
            _warn(str(error))
            if chain is not None:
                chain.context = None
            break
        except TaskRejectedError:
            if context.status is None:
                raise
            # Told to the hooks, and nobody else is left to be told: the response is out.
        left.popleft()
    return list(left)


def _context() -> DeferredContext | None:
    """Return the context that background tasks belong to here; None for none."""
    context = current_unit.get(None)
    if context is not None:
        return cast("DeferredContext", context)  # contexts alone are ever put there
    try:
        return context_outside("run")
    except NoCurrentContextError:
        _warn("this request has no context; add DeferredMiddleware to the app, or DeferredPlugin in Litestar")
        return None


def _register(context: DeferredContext, kind: Kind, work: Work, *, held: bool = False) -> TaskHandle[Any]:
    place: Any = work.site  # as good as the frame that it was taken of
    options = context._options
    return context._register_slowly(
        kind, work.func, work.args, work.kwargs, options, place, Execution.DEFERRED, held=held
    )


class Chain:
    """Tasks of one context that run one after the other. Lives until the last of them has ended."""

    def __init__(self) -> None:
        self.context: DeferredContext | None = None  # which takes them, from the time that they are handed over
        self._held: deque[TaskHandle[Any]] = deque()
        self._running = False

    def take(self, work: Work) -> bool:
        """Take a task that comes when the others were handed over; False if they were not, or all is over."""
        context = self.context
        if context is None or (context._ended and not context.pending):
            return False
        # A task that runs may add one from its thread, and so may a dependency that is cleaned up.
        context._host.on_loop(self.add, check_callable(work.func), work)
        return True

    def add(self, kind: Kind, work: Work) -> None:
        """Register a task behind those before it; on the event loop."""
        context = cast("DeferredContext", self.context)
        task = _register(context, kind, work, held=self._running)
        if task.done():
            return  # it was discarded
        if self._running:
            self._held.append(task)
        else:
            self._watch(task)

    def _watch(self, task: TaskHandle[Any]) -> None:
        self._running = True
        ended = asyncio.get_running_loop().create_future()
        ended.add_done_callback(self._go_on)
        task._waiters = [*(task._waiters or ()), ended]

    def _go_on(self, _ended: asyncio.Future[None]) -> None:
        """Launch the next task: the one before it has ended."""
        self._running = False
        while self._held:
            task = self._held.popleft()
            if not task.done():
                cast("DeferredContext", self.context)._host.launch(task, eager=False)
            if not task.done():
                self._watch(task)
                return


_warned = False


def _warn(why: str) -> None:
    global _warned  # noqa: PLW0603  # once in a process
    if not _warned:
        _warned = True
        logger.warning("background tasks run as the framework's own: %s; said once", why)
