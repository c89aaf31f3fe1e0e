"""One unit of work: what it has registered, when it is released, when it has ended.

Rules of this file:

- A unit of work is *open* until its response is out (`close`), then *closed*, and *ended*
  when it is over itself. It takes work until it has ended and nothing of it is pending.
- Deferred work waits here and is released on the turn of the event loop after the closing
  one, in registration order; everything else is launched at once.
- It does not know the supervisor: it is given a `Host`.
- What threads share with it is `_sent`, under the host's lock, and the host's set of tasks,
  which only grows there. Everything else happens on the event loop, which takes that lock only
  to say that the unit of work has settled.
"""

from __future__ import annotations

import threading
from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, Self

from deferred._arguments import ArgumentCheck
from deferred._call import Kind
from deferred._drain import Drain
from deferred._events import ContextClosed, ContextSettled, DrainReport, Execution, Outcome
from deferred._hooks import Hooks
from deferred._options import ErrorHook, TaskOptions
from deferred._stores import STORED
from deferred._task import Clock, TaskHandle, by_age, current_mark, new_id

__all__ = ["Durable", "Host", "UnitOfWork", "hosts"]

_ASYNC = Kind.ASYNC
_DEFERRED = Execution.DEFERRED
_FIRST_ERROR_STATUS = 400


class Durable(Protocol):
    """What is known of durable work on this floor."""

    async def store(
        self,
        context: UnitOfWork,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        connection: Any = None,
        delay: float | None = None,
        key: str | None = None,
    ) -> str:
        """Store a call of a registered task; return the id of its job."""
        ...

    def takes(self, task: TaskHandle[Any]) -> bool:
        """Say whether a task in memory that a drain cannot finish is stored instead."""
        ...


class Host(Protocol):
    """What a context needs of the supervisor it was opened by."""

    loop: AbstractEventLoop | None
    home: object  # the loop, as long as work is accepted there
    lock: threading.Lock  # held by threads that register
    tasks: set[TaskHandle[Any]]
    roomy: int  # as long as there are fewer tasks, no limit of the supervisor is near
    dressed: int  # how many tasks run with something around them: only these set `running_task`
    max_per_context: int
    check_arguments: ArgumentCheck
    hooks: Hooks
    now: Clock
    options: TaskOptions
    deadline: float | None  # of the supervisor's drain, on the loop's clock
    out_of_scope: str
    warned: bool
    durable: Durable | None

    def meet(self, loop: AbstractEventLoop | None, work: object, /) -> None:
        """Bind to `loop` (None: called in a thread), or refuse to register `work` there."""
        ...

    def admit(self, task: TaskHandle[Any], context: UnitOfWork, /) -> bool:
        """Accept `task`, settle it as discarded (False), or raise."""
        ...

    def confirm(self, task: TaskHandle[Any], context: UnitOfWork, /) -> None:
        """Take back what a thread registered while the supervisor was shut, and raise."""
        ...

    def release(self, context: UnitOfWork, /) -> None:
        """Launch what has waited in `context`, from the next turn of the loop on."""
        ...

    def on_loop(self, func: Callable[..., object], *args: Any) -> None:
        """Call `func` on the supervisor's loop: now when this is it, else as soon as it turns."""
        ...

    def launch(self, task: TaskHandle[Any], /, *, eager: bool) -> None:
        """Start `task` as soon as there is a slot; on the loop."""
        ...

    def settle(self, task: TaskHandle[Any], outcome: Outcome, /) -> None:
        """Bring `task` to its end."""
        ...

    def cancel(self, task: TaskHandle[Any], outcome: Outcome, /) -> bool:
        """Cancel `task`."""
        ...

    def stand_aside(
        self, task: TaskHandle[Any], wait: Awaitable[None], other: TaskHandle[Any] | None = None, /
    ) -> Coroutine[Any, Any, None]:
        """Wait for others in `task`, which lends its slot meanwhile."""
        ...

    def inline(self, task: TaskHandle[Any], /) -> Coroutine[Any, Any, None]:
        """Run `task` inside the caller's own task, raising its error."""
        ...

    def room(self, context: UnitOfWork, name: str, /, *, patient: bool = False) -> Coroutine[Any, Any, None] | None:
        """Return what waits until no limit is reached; None when there is nothing to wait for."""
        ...

    def adopt(self, other: Any, /) -> None:
        """Have the supervisor of another host drained with this one's."""
        ...

    def drain_context(self, context: UnitOfWork, timeout: float | None, /) -> Coroutine[Any, Any, DrainReport]:
        """Drain the tasks of one context."""
        ...

    @property
    def ambient(self) -> UnitOfWork:
        """The context of work that belongs to no unit of work."""
        ...


hosts: list[Callable[[], Host | None]] = []
"""The supervisors that `deferred.defer` may turn to outside any context; the one opened last at the end."""


class UnitOfWork:
    """The part of a context that handlers do not see. Lives as long as the context.

    It only declares its fields: `stored` makes the class that has them.
    """

    __slots__ = STORED

    _host: Host
    _options: TaskOptions
    _describe: Callable[[Any], str] | None = None
    _subject: Any = None
    _root: Self | None = None
    _pending: int = 0  # its unsettled tasks; touched on the event loop only
    _sent: int = 0  # tasks that threads have registered; touched under the host's lock only
    _arrived: int = 0  # those of them that the event loop has counted
    _waiting: list[TaskHandle[Any]] | None = None  # for the response to be out
    _held: list[TaskHandle[Any]] | None = None  # for the outcome to be known
    _on_error: tuple[ErrorHook, ...] = ()
    _drains: tuple[Drain, ...] = ()
    _closed: bool = False
    _decided: bool = False
    _ended: bool = False
    _error: BaseException | None = None
    _status: int | None = None
    _finished: int = 0
    _failed: int = 0
    _after_end: int = 0
    _id: str | None = None
    route: Execution | None = None

    def __repr__(self) -> str:
        """Show what it is, never the request it belongs to."""
        return f"<{type(self).__name__} {self.label!r} id={self.id} pending={self.pending}>"

    # -- what it is ---------------------------------------------------------------------

    @property
    def id(self) -> str:
        """An id that no other context of any process has."""
        root = self._root or self
        return root._id or new_id(root)

    @property
    def label(self) -> str:
        """What it is about, such as ``"POST /register"``; empty when nobody said."""
        root = self._root or self
        if root._describe is not None:
            root._subject, root._describe = root._describe(root._subject), None
        return root._subject or ""

    @property
    def execution(self) -> Execution:
        """How steps run here: as the innermost decorator around this code says, else the route's, else ``deferred``."""
        root = self._root or self
        mark = current_mark.get(None)
        return mark[1] if mark is not None and mark[0] is root else root.route or Execution.DEFERRED

    @property
    def tasks(self) -> tuple[TaskHandle[Any], ...]:
        """Its tasks that have not settled yet, the oldest first."""
        root = self._root or self
        return tuple(by_age(task for task in tuple(root._host.tasks) if task._unit is root))

    @property
    def status(self) -> int | None:
        """The status of the response, once known; integrations set it."""
        return (self._root or self)._status

    @status.setter
    def status(self, status: int | None) -> None:
        (self._root or self)._status = status

    @property
    def closed(self) -> bool:
        """Whether the response is out, or failed, or the client is gone."""
        return (self._root or self)._closed

    @property
    def deadline(self) -> float | None:
        """When its work will be cancelled (seconds of ``loop.time()``); None as long as nobody drains it."""
        root = self._root or self
        deadlines = [drain.deadline for drain in root._drains]
        if root._host.deadline is not None:
            deadlines.append(root._host.deadline)
        return min(deadlines, default=None)

    # -- its life ---------------------------------------------------------------------------

    def close(self, *, decided: bool = True) -> None:
        """Say that the response is out: deferred work starts on the next turn of the loop.

        Args:
            decided: Whether the outcome is known. False when the client went away first:
                work with a ``when`` then waits for the end of the unit of work.
        """
        root = self._root or self
        if not root._closed:
            root._closed = True
            root._decided = decided
            if root._host.hooks.closed:
                root._host.hooks.emit(ContextClosed(root, root._error, at=root._host.now()))
            if root._waiting is not None:
                root._host.release(root)

    def end(self, error: BaseException | None = None) -> None:
        """Say that the unit of work is over; closes it when that has not been said.

        Args:
            error: The exception that ended it, if one did.
        """
        if self._ended:
            return
        if self._error is None and not self._decided:
            self._error = error
        if not self._closed:
            self.close()
        self._decided = self._ended = True
        if self._held is not None:
            self._waiting, self._held = [*self._held, *(self._waiting or ())], None
            self._host.release(self)
        if self._host.hooks.settled and not self.pending:
            self.tell_settled()

    @property
    def pending(self) -> int:
        """How many of its tasks have not settled."""
        root = self._root or self
        return root._sent - root._arrived + root._pending  # in this order: a thread must not find too few

    def tell_settled(self) -> None:
        """Tell that it has ended and nothing of it is pending, unless a thread has just registered more."""
        with self._host.lock:  # no thread has looked whether it may, and is about to
            if self.pending:
                return
        self._host.hooks.emit(ContextSettled(self, at=self._host.now()))

    def belongs_to(self, host: object) -> bool:
        """Say whether it was opened by the supervisor behind `host`."""
        return self._host is host

    def cancel(self, task: TaskHandle[Any], /) -> bool:
        """Cancel one of its tasks; what `TaskHandle.cancel` calls."""
        return self._host.cancel(task, Outcome.CANCELLED_BY_HANDLE)

    def stand_aside(
        self, task: TaskHandle[Any], wait: Awaitable[None], other: TaskHandle[Any] | None = None, /
    ) -> Coroutine[Any, Any, None]:
        """Wait for others in one of its tasks, which lends its slot meanwhile."""
        return self._host.stand_aside(task, wait, other)

    def decide(self, task: TaskHandle[Any], /) -> bool | None:
        """Say whether a released task is to run; None while the outcome is not known (it is held)."""
        when = task._options.when
        if when == "always":
            return True
        if self._decided:
            return (when == "error") is self._failing
        self._held = [*(self._held or ()), task]
        return None

    @property
    def _failing(self) -> bool:
        status: object = self._status  # what the app sent, which need not be a number
        return self._error is not None or (isinstance(status, int) and status >= _FIRST_ERROR_STATUS)
