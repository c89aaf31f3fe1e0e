"""What the end, and the fork, of a process mean for its supervisors."""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from typing import Any

from deferred._events import Outcome
from deferred._task import by_age
from deferred.instrumentation.logging import SHOWN, log_event, logger

__all__ = ["alive"]

alive: weakref.WeakSet[Any] = weakref.WeakSet()
"""Every supervisor of this process; by what it launches with, since it stands a floor above."""


@atexit.register
def _report_leftovers() -> None:
    """Record, at the exit of the process, what no drain has waited for."""
    for supervisor in tuple(alive):
        launcher = supervisor._launcher
        left = by_age((*launcher.tasks, *launcher.detached))
        if left:
            # One line for all: an event for each would drown the last words of a process.
            names = ", ".join(f"{task.name!r} (deferred at {task.site})" for task in left[:SHOWN])
            more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
            logger.error("the process ends with %d unfinished task(s): %s%s", len(left), names, more)
            launcher.hooks.remove(log_event)
        for task in left:
            launcher.settle(task, Outcome.ABANDONED)


def _after_fork() -> None:
    for supervisor in tuple(alive):
        launcher = supervisor._launcher
        if launcher.loop is not None:
            launcher.forget()
            launcher.shut(
                "it was started before this process was forked, and its work lives in the parent; "
                "make and open a supervisor after the fork"
            )


with contextlib.suppress(AttributeError):  # systems without fork
    os.register_at_fork(after_in_child=_after_fork)
