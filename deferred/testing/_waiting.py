"""Wait for tasks from wherever a test stands: on their loop, in its thread, or in another."""

from __future__ import annotations

import asyncio
import gc
import sys
from asyncio import AbstractEventLoop
from asyncio import _get_running_loop as running_loop
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any

from deferred._events import Outcome
from deferred._launch import Launcher
from deferred._task import TaskHandle, running_task
from deferred.testing._eager import Started

__all__ = ["blocking", "check_no_loop", "cut", "elsewhere", "settled", "strays_of"]

GRACE = 0.5
"""Seconds that a cancelled task has to end before it is given up: a test does not wait for a stubborn one."""

Tasks = Callable[[], Sequence[TaskHandle[Any]]]


async def settled(unfinished: Tasks, timeout: float) -> bool:
    """Wait until there are none left, those they register included.

    Args:
        unfinished: Gives the tasks to wait for, at this moment.
        timeout: Seconds to wait at the most.

    Returns:
        Whether all have ended.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout
    while left := unfinished():
        waiters = [_end_of(task, loop) for task in left]
        _, late = await asyncio.wait(waiters, timeout=until - loop.time())
        for waiter in late:
            waiter.cancel()
        if late and loop.time() >= until:
            return not unfinished()
    return True


def _end_of(task: TaskHandle[Any], loop: AbstractEventLoop) -> asyncio.Future[None]:
    """Return what is done when `task` has ended; unlike ``await task`` it does not raise its error."""
    waiter: asyncio.Future[None] = loop.create_future()
    if task._waiters is None:
        task._waiters = []
    task._waiters.append(waiter)
    return waiter


async def cut(launcher: Launcher, unfinished: Tasks) -> None:
    """Cancel what is left, and what it registers as it goes; give up what does not end."""
    for task in unfinished():
        launcher.cancel(task, Outcome.CANCELLED_BY_DRAIN)
    await settled(unfinished, GRACE)
    while left := unfinished():
        for task in left:
            launcher.settle(task, Outcome.ABANDONED)


async def elsewhere(launcher: Launcher, func: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Await ``func()`` on the launcher's loop; on this one where that is over."""
    loop = launcher.loop
    if loop is None or loop is running_loop() or not loop.is_running():
        await func()
    else:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(func(), loop))


def blocking(loop: AbstractEventLoop | None, func: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run ``func()`` to its end on `loop`, which turns in another thread or not at all.

    Raises:
        RuntimeError: A loop runs in this very thread.
    """
    check_no_loop()
    if loop is None or loop.is_closed():
        asyncio.run(func())
    elif loop.is_running():
        asyncio.run_coroutine_threadsafe(func(), loop).result()
    else:
        loop.run_until_complete(func())


def check_no_loop() -> None:
    """Refuse to block a thread that an event loop runs in.

    Raises:
        RuntimeError: One does.
    """
    if running_loop() is not None:
        message = "an event loop runs here: await the method without `_sync` in its name"
        raise RuntimeError(message)


def strays_of(
    launcher: Launcher, known: Callable[[TaskHandle[Any]], bool]
) -> list[tuple[asyncio.Task[Any], TaskHandle[Any]]]:
    """Return the asyncio tasks that deferred work has started by itself and that outlive it, with who did."""
    found: list[tuple[asyncio.Task[Any], TaskHandle[Any]]] = []
    if running_loop() is None or running_loop() is not launcher.loop:
        return found
    ours = launcher.hooks._tasks
    for candidate in asyncio.all_tasks():
        variables = _context_of(candidate)
        starter = None if variables is None else variables.get(running_task)
        if starter is None or not starter.done() or not known(starter):
            continue
        if candidate not in ours and not isinstance(candidate.get_coro(), Started):
            found.append((candidate, starter))
    return found


def _context_of(task: asyncio.Task[Any]) -> Context | None:
    if sys.version_info >= (3, 12):
        return task.get_context()
    return next((part for part in gc.get_referents(task) if isinstance(part, Context)), None)
