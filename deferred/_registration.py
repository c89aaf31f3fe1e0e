"""How work comes into a unit of work: accepted, counted, in line or on its way.

Rules of this file: a registration is accepted or refused at the call; from a thread it is
counted at once and arrives on the event loop; where everything is plain and far from every
limit, `_register` goes the short way, because that is what every request pays.
"""

from __future__ import annotations

from asyncio import _get_running_loop as running_loop
from contextvars import Context, copy_context
from inspect import CO_COROUTINE
from types import FrameType, FunctionType
from typing import Any

from deferred._call import Kind, check_callable, close_refused, name_of
from deferred._events import Execution, TaskDeferred
from deferred._options import TaskOptions
from deferred._stores import STORED
from deferred._task import TaskHandle, current_unit, running_task
from deferred._unit import UnitOfWork
from deferred.exceptions import ContextClosedError

__all__ = ["Registration"]

_ASYNC = Kind.ASYNC
_DEFERRED = Execution.DEFERRED
_NONE_GIVEN: dict[str, Any] = {}  # the keyword arguments of all tasks that have none


class Registration(UnitOfWork):
    """The part of a context that takes work. Lives as long as the context."""

    __slots__ = STORED

    def _register(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        variables: Context,
        frame: FrameType,
    ) -> TaskHandle[Any]:
        """Accept a function: the short way, on the loop and far from every limit."""
        host = self._host
        if (
            type(func) is not FunctionType
            or not func.__code__.co_flags & CO_COROUTINE
            or running_loop() is not host.home
            or self._ended
            or self._pending >= host.max_per_context
            or len(host.tasks) >= host.roomy
        ):
            kind = check_callable(func)
            return self._register_slowly(kind, func, args, kwargs, options, frame, _DEFERRED)
        if host.dressed and running_task.get(None) is not None:
            variables.run(running_task.set, None)  # this code runs in a task, but not the same
        task: TaskHandle[Any] = TaskHandle(
            _ASYNC,
            func,
            args,
            kwargs or _NONE_GIVEN,  # an empty dictionary each is 80 bytes for as long as it waits
            options,
            self,
            variables,
            frame.f_code,
            frame.f_lasti,
            host.now(),
            True,
        )
        if args or kwargs:
            host.check_arguments(args, kwargs, task.warn)
        host.tasks.add(task)
        self._pending += 1
        if host.hooks.deferred:
            host.hooks.emit(TaskDeferred(task, at=task._created))
        if self._waiting is not None:
            self._waiting.append(task)
        else:
            self._waiting = [task]
            if self._closed:
                host.release(self)
        return task

    def _make(
        self,
        kind: Kind,
        work: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        frame: FrameType,
        execution: Execution,
    ) -> TaskHandle[Any]:
        variables = copy_context()
        if current_unit.get(None) is not self:
            variables.run(current_unit.set, self)
        if running_task.get(None) is not None:
            variables.run(running_task.set, None)  # this code runs in a task, but not the same
        now = self._host.now()
        return TaskHandle(
            kind, work, args, kwargs, options, self, variables, frame.f_code, frame.f_lasti, now, False, execution
        )

    def _register_slowly(
        self,
        kind: Kind,
        work: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        frame: FrameType,
        execution: Execution,
        *,
        held: bool = False,
    ) -> TaskHandle[Any]:
        """Accept any work from anywhere, or refuse it; leave it to the caller to launch what is `held`."""
        host = self._host
        loop = running_loop()
        try:
            if loop is None or loop is not host.home:
                host.meet(loop, work)
            if loop is not None:
                self._check_end(work)
            task = self._make(kind, work, args, kwargs, options, frame, execution)
            host.check_arguments(args, kwargs, task.warn)
            if loop is None:
                with host.lock:
                    self._check_end(work)
                    accepted = host.admit(task, self)
                    self._sent += task._tracked
                host.confirm(task, self)
            else:
                accepted = host.admit(task, self)
                self._pending += task._tracked
        except BaseException:
            close_refused(work)
            raise
        if accepted:
            if loop is not None:
                self._arrive(task, held=held)
            else:
                host.on_loop(self._arrive_from_thread, task)
        return task

    def _check_end(self, work: object) -> None:
        """Refuse work once the unit of work has ended and nothing of it is pending."""
        if not self._ended:
            return
        if not self.pending:
            about = f" of {self.label}" if self.label else ""
            message = (
                f"{name_of(work)} came too late: the unit of work{about} has ended and nothing of it is pending. "
                "Register it before the handler returns, or from one of its tasks; work that belongs to no "
                "request goes into a `with supervisor.context():` of its own"
            )
            raise ContextClosedError(message)
        self._after_end += 1

    def _arrive_from_thread(self, task: TaskHandle[Any]) -> None:
        if task._tracked:  # else a new loop has taken over, and it is abandoned already
            self._pending += 1
            self._arrived += 1
            self._arrive(task)

    def _arrive(self, task: TaskHandle[Any], *, held: bool = False) -> None:
        host = self._host
        if host.hooks.deferred:
            host.hooks.emit(TaskDeferred(task, at=task._created))
        if held:
            return
        if task._execution is not _DEFERRED:
            host.launch(task, eager=False)
            return
        if self._waiting is not None:
            self._waiting.append(task)
        else:
            self._waiting = [task]
            if self._closed:
                host.release(self)
