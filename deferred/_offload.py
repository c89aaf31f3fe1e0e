"""Threads for synchronous work; they never hold up the exit of the process.

The standard library's thread pool joins its threads at exit, so that one blocked call keeps
a drained process alive. These are daemon threads: what still runs at exit is left behind,
after the drain has reported it by name.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

__all__ = ["DaemonThreads", "shares_memory"]

P = ParamSpec("P")
T = TypeVar("T")

_Job = tuple[Future[Any], Callable[[], Any]]


def shares_memory(executor: Executor) -> bool:
    """Say whether `executor` runs its calls in this interpreter, where context variables can follow."""
    # Asked of modules that are loaded already: to import multiprocessing only for this is dear.
    others = (
        getattr(sys.modules.get("concurrent.futures.process"), "ProcessPoolExecutor", None),
        getattr(sys.modules.get("concurrent.futures.interpreter"), "InterpreterPoolExecutor", None),
    )
    return not any(isinstance(executor, other) for other in others if other is not None)


class DaemonThreads(Executor):
    """An executor of daemon threads, started when needed. Lives as long as its supervisor.

    Args:
        max_workers: How many threads at the most. The default is that of the standard
            library's `ThreadPoolExecutor`: the number of processors plus 4, at most 32.
    """

    def __init__(self, max_workers: int | None = None) -> None:
        self._max = max_workers or min(32, (os.cpu_count() or 1) + 4)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._threads = 0
        self._open = True

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` in a thread.

        Raises:
            RuntimeError: The executor was shut down.
        """
        future: Future[T] = Future()
        with self._lock:
            if not self._open:
                message = "these threads were shut down"
                raise RuntimeError(message)
            if not self._idle.acquire(blocking=False) and self._threads < self._max:
                self._start_thread()
            self._jobs.put((future, lambda: fn(*args, **kwargs)))
        return future

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"deferred-{self._threads + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system gives no more: those that run will do it, if there are any
            if not self._threads:
                raise
        else:
            self._threads += 1

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002  # the base class's signature; these threads are never waited for
        """Take no more work and let idle threads end; none is waited for."""
        with self._lock:
            self._open = False
            for _ in range(self._threads):
                self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, call = job
            if future.set_running_or_notify_cancel():
                _settle(future, call)
            del job, future, call  # an idle thread must not keep the last result alive
            self._idle.release()


def _settle(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        value = call()
    except StopIteration as error:
        # A future refuses a StopIteration, as a coroutine does: the same RuntimeError.
        stopped = RuntimeError("function raised StopIteration")
        stopped.__cause__ = error
        future.set_exception(stopped)
    except BaseException as error:  # noqa: BLE001  # the future carries it, SystemExit included
        future.set_exception(error)
    else:
        future.set_result(value)
