"""Name the task that blocks the event loop; opt-in.

A daemon thread asks the loop for a sign of life. When none comes in time it looks at the
stack of the loop's thread: the innermost of our frames on it says which task is at work.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from asyncio import AbstractEventLoop
from types import FrameType
from typing import Any

from deferred._run import run_plain, run_task
from deferred._task import TaskHandle

__all__ = ["Watchdog"]

logger = logging.getLogger("deferred")

_RUNNERS = frozenset({run_plain.__code__, run_task.__code__})


class Watchdog:
    """Watches one event loop. Lives from the opening of its supervisor to its closing.

    Args:
        loop: The loop to watch; it runs in the thread that makes the watchdog.
        threshold: Seconds without a turn of the loop that are worth a warning.
    """

    def __init__(self, loop: AbstractEventLoop, threshold: float) -> None:
        self._loop = loop
        self._threshold = threshold
        self._loop_thread = threading.get_ident()
        self._alive = threading.Event()
        self._stop = threading.Event()
        threading.Thread(target=self._watch, name="deferred-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._alive.set()

    def _watch(self) -> None:
        while not self._stop.wait(self._threshold / 2):
            self._alive.clear()
            if self._stop.is_set():  # in between: that sign of life was the last one
                return
            try:
                self._loop.call_soon_threadsafe(self._alive.set)
            except RuntimeError:  # the loop is closed
                return
            asked = time.monotonic()
            if not self._alive.wait(self._threshold):
                self._report(asked)

    def _report(self, asked: float) -> None:
        """Say who blocks, then wait until the loop turns again: one report for each stall."""
        innermost = sys._current_frames().get(self._loop_thread)
        task = _task_on(innermost)
        where = f"{innermost.f_code.co_filename}:{innermost.f_lineno}" if innermost is not None else "an unknown place"
        if task is None:
            logger.warning("the event loop is blocked by code that is no deferred task, at %s", where)
        else:
            logger.warning(
                "the event loop is blocked by task %r (deferred at %s), at %s: nothing else can run; "
                "defer a plain function, which gets a thread, or give the loop a turn",
                task.name,
                task.site,
                where,
            )
        while not self._alive.wait(self._threshold):
            if self._loop.is_closed():
                return
        logger.warning("the event loop turns again, after %.3f s", time.monotonic() - asked)


def _task_on(frame: FrameType | None) -> TaskHandle[Any] | None:
    """Return the task whose runner is on this stack."""
    while frame is not None:
        if frame.f_code in _RUNNERS:
            task: TaskHandle[Any] = frame.f_locals["task"]
            return task
        frame = frame.f_back
    return None
