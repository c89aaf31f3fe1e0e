"""One piece of deferred work, from registration to its terminal state.

`TaskHandle` is the one object that travels: the context makes it, the supervisor launches
it, the runner runs it, events show it, the user holds it. It does not know its owner: it is
given a `Unit`, the face of the context that it belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from contextvars import Context, ContextVar
from types import CodeType, TracebackType
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import msgspec

from deferred._call import Kind, name_of, site_of
from deferred._events import Execution, Outcome, TaskState
from deferred._options import CallNext, TaskOptions
from deferred._retry import RetryPolicy
from deferred._stores import fast_stores
from deferred.exceptions import TaskUnfinishedError

__all__ = [
    "Clock",
    "Middleware",
    "TaskHandle",
    "Unit",
    "by_age",
    "current_mark",
    "current_unit",
    "new_id",
    "runner_codes",
    "running_task",
    "task_here",
]

logger = logging.getLogger("deferred")

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Middleware: TypeAlias = "Callable[[TaskHandle[Any], CallNext], Awaitable[Any]]"

_numbers = itertools.count(1)
_prefix = secrets.token_hex(4)
_naming = threading.Lock()


def _reseed() -> None:
    global _prefix  # noqa: PLW0603  # a forked process must not give out its parent's ids
    _prefix = secrets.token_hex(4)


with contextlib.suppress(AttributeError):  # systems without fork
    os.register_at_fork(after_in_child=_reseed)


runner_codes: set[CodeType] = set()
"""The code of the coroutines that tasks run in; each has its task as the argument ``task``."""


class Clock(Protocol):
    """The event loop's clock: returns its time in seconds."""

    def __call__(self) -> float: ...


class _Identified(Protocol):
    _id: str | None


def new_id(thing: _Identified) -> str:
    """Give `thing` an id that nothing else has, in any process; once, whoever asks first."""
    with _naming:
        if thing._id is None:
            thing._id = f"{_prefix}-{next(_numbers):x}"
        return thing._id


class Unit(Protocol):
    """What a task may know of the context it belongs to."""

    route: Execution | None

    @property
    def id(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def pending(self) -> int: ...
    @property
    def deadline(self) -> float | None: ...

    def cancel(self, task: TaskHandle[Any], /) -> bool:
        """Cancel one of its tasks."""
        ...

    def stand_aside(
        self, task: TaskHandle[Any], wait: Awaitable[None], other: TaskHandle[Any] | None = None, /
    ) -> Coroutine[Any, Any, None]:
        """Wait for others in one of its tasks, which lends its slot meanwhile."""
        ...


current_unit: ContextVar[Unit] = ContextVar("deferred_context")
current_mark: ContextVar[tuple[Unit, Execution] | None] = ContextVar("deferred_execution")
running_task: ContextVar[TaskHandle[Any] | None] = ContextVar("deferred_task")


@fast_stores
class TaskHandle(msgspec.Struct, Generic[T_co], eq=False, weakref=True):
    """One deferred piece of work. Lives from registration until nobody holds it.

    ``await handle`` waits for its end and returns its result or raises its error;
    cancelling that wait does not cancel the task. Contexts make handles; nobody else does.

    Example:
        >>> import asyncio
        >>> from deferred import Supervisor
        >>> async def main():
        ...     async with Supervisor() as supervisor:
        ...         with supervisor.context() as ctx:
        ...             handle = ctx.defer(asyncio.sleep, 0, "sent")
        ...         return await handle, handle.state.value, handle.attempts
        >>> asyncio.run(main())
        ('sent', 'succeeded', 1)
    """

    _kind: Kind
    _work: Any  # the function, or the awaitable
    _args: tuple[Any, ...]
    _kwargs: dict[str, Any]
    _options: TaskOptions
    _unit: Unit
    _vars: Context | None
    _code: CodeType | None  # of the function that registered it
    _instruction: int  # and the place in there
    _created: float
    _tracked: bool = False  # whether a drain waits for it
    _execution: Execution = Execution.DEFERRED
    _id: str | None = None
    _attempts: int = 0
    _started: float = 0.0  # the attempt; noted only while somebody listens
    _outcome: Outcome | None = None
    _error: BaseException | None = None
    _value: Any = None
    _trace: TracebackType | None = None  # of the final error, as it left the task
    _runner: asyncio.Task[None] | None = None
    _slot: bool = False  # whether it holds one of the running slots
    _backoff: asyncio.Future[bool] | None = None
    _retry_at: float = 0.0
    _stopped_by: Outcome | None = None
    _waiters: list[asyncio.Future[None]] | None = None
    _scope: Any = None
    _name: str | None = None

    @property
    def id(self) -> str:
        """An id that no other task of any process has."""
        return self._id or new_id(self)

    @property
    def name(self) -> str:
        """The name given by ``with_options(name=...)``, else the function's."""
        name = self._name
        if name is None:
            name = self._name = self._options.name or name_of(self._work)
        return name

    @property
    def function(self) -> str:
        """The qualified name of the function, or of what is awaited."""
        return name_of(self._work)

    @property
    def created(self) -> float:
        """When it was registered, in seconds of the event loop's clock."""
        return self._created

    @property
    def state(self) -> TaskState:
        """Where it stands."""
        outcome = self._outcome
        if outcome is not None:
            return outcome.state
        return TaskState.RUNNING if self._attempts else TaskState.PENDING

    @property
    def outcome(self) -> Outcome | None:
        """Why it is in its terminal state; None before."""
        return self._outcome

    @property
    def attempts(self) -> int:
        """How many attempts have been started."""
        return self._attempts

    @property
    def error(self) -> BaseException | None:
        """The exception of the last failed attempt, as it was raised."""
        return self._error

    @property
    def execution(self) -> Execution:
        """How it was started: by the route's decorator, or by the method called."""
        return self._execution

    @property
    def idempotency_key(self) -> str | None:
        """Durable work's own key, the same on every delivery; None for work in memory, which runs once.

        Hand it to whatever can refuse a second time: a unique column, an API's Idempotency-Key.
        """
        redelivery = self._options.redelivery
        return None if redelivery is None else redelivery.key

    @property
    def headers(self) -> dict[str, str]:
        """What travelled beside the arguments of durable work, such as ``traceparent``."""
        redelivery = self._options.redelivery
        return {} if redelivery is None else redelivery.headers

    @property
    def label(self) -> str:
        """The label of its context, such as ``"POST /register"``."""
        return self._unit.label

    @property
    def context_id(self) -> str:
        """The id of its context."""
        return self._unit.id

    @property
    def site(self) -> str:
        """The ``file:line`` that registered it."""
        return site_of(self._code, self._instruction)

    @property
    def retry(self) -> RetryPolicy | None:
        """The retry policy in force, the supervisor's default merged in."""
        return self._options.retry

    @property
    def timeout(self) -> float | None:
        """Seconds that each attempt may take; None for no limit."""
        return self._options.timeout

    @property
    def scope(self) -> Any:  # whatever the user's factory yields
        """What the supervisor's ``task_scope`` yielded for the attempt under way."""
        return self._scope

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments; never shown in logs, events or `repr`."""
        return self._args, dict(self._kwargs)

    def warn(self, borrowed: str) -> None:
        """Log that one of its arguments may not live as long as it does; called once for a type."""
        logger.warning(
            "task %r (deferred at %s) was given %s. Pass the values it needs instead; said once for this type",
            self.name,
            self.site,
            borrowed,
        )

    def done(self) -> bool:
        """Say whether it has reached a terminal state."""
        return self._outcome is not None

    def result(self) -> T_co:
        """Return what the task returned.

        Raises:
            asyncio.InvalidStateError: It has not ended yet.
            asyncio.CancelledError: It was cancelled.
            TaskUnfinishedError: It was discarded or abandoned.
            BaseException: What the task itself raised, the very object.
        """
        state = self.state
        if state is TaskState.SUCCEEDED:
            return self._value  # type: ignore[no-any-return]  # stored untyped
        if state is TaskState.FAILED and self._error is not None:
            with contextlib.suppress(Exception):  # each raise adds its frames: start from the task's own again
                self._error.__traceback__ = self._trace
            raise self._error
        if state is TaskState.CANCELLED:
            raise asyncio.CancelledError(f"task {self.name!r} was cancelled")
        if state is TaskState.PENDING and self._outcome is not None:
            message = f"task {self.name!r} is stored, and runs where its engine is served: its result stays there"
            raise TaskUnfinishedError(message)
        if self._outcome is not None:
            message = f"task {self.name!r} (deferred at {self.site}) was {state.value} and has no result"
            raise TaskUnfinishedError(message)
        message = f"task {self.name!r} is {state.value}; `await handle` waits for its end"
        raise asyncio.InvalidStateError(message)

    def cancel(self) -> bool:
        """Ask the task to end; one that has not started never will.

        A running coroutine gets a `CancelledError`; if it returns all the same, it has
        succeeded. A function that already runs in a thread cannot be interrupted.

        Returns:
            Whether there was anything left to cancel.
        """
        return self._outcome is None and self._unit.cancel(self)

    def __await__(self) -> Generator[Any, None, T_co]:
        """Wait for the end, then return the result or raise the error.

        Work that starts after the response cannot end before it: a handler that waits for what it
        has just deferred waits for ever. There, ``await`` the function itself.

        Raises:
            RuntimeError: The task waits for itself, or for one of its name where one runs at a time.
        """
        yield from self.settled().__await__()
        return self.result()

    async def settled(self) -> None:
        """Wait for the end, whatever it is.

        Raises:
            RuntimeError: As for ``await``.
        """
        if self._outcome is None:
            if self._attempts and self._is_current():
                message = f"task {self.name!r} (deferred at {self.site}) waits for its own end, which would never come"
                raise RuntimeError(message)
            waiter = asyncio.get_running_loop().create_future()
            if self._waiters is None:
                self._waiters = []
            waiters = self._waiters
            waiters.append(waiter)
            try:
                if self._outcome is None:  # it may have settled in another thread just now
                    here = task_here()
                    await (waiter if here is None or not here._slot else here._unit.stand_aside(here, waiter, self))
            finally:
                waiters.remove(waiter)

    def _is_current(self) -> bool:
        """Say whether the running asyncio task is its own; of a step in line: whether this code is inside of it."""
        if self._execution is Execution.SEQUENTIAL:
            here: Any = sys._getframe(1)
            while here is not None and not (here.f_code in runner_codes and here.f_locals["task"] is self):
                here = here.f_back
            return here is not None
        if self._runner is not None:
            return asyncio.current_task() is self._runner
        return task_here() is self  # its first step may be under way: nobody holds it yet

    def __repr__(self) -> str:
        """Show what it is, never its arguments: they may be anybody's data."""
        return f"<TaskHandle {self.name!r} {self.state.value} id={self.id} attempts={self._attempts}>"


def task_here() -> TaskHandle[Any] | None:
    """Return the task that the running asyncio task was made for; None in any other, and in none at all."""
    runner: Any = asyncio.current_task()
    frame = None if runner is None else getattr(runner.get_coro(), "cr_frame", None)
    if frame is not None and frame.f_code in runner_codes:
        found: TaskHandle[Any] = frame.f_locals["task"]
        return found
    task = running_task.get(None)  # a task factory may have put the coroutine inside of another
    return task if task is not None and runner is not None and task._runner is runner else None


def by_age(tasks: Iterable[TaskHandle[Any]], /) -> list[TaskHandle[Any]]:
    """Return these tasks, the oldest first: what is done to all of them is done in the order in which they came."""
    return sorted(tasks, key=lambda task: task._created)
