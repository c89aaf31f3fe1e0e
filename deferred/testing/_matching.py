"""Which deferred work a test asks for, and how it is shown when it is not there."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from deferred._call import close_refused, name_of
from deferred._events import Execution, TaskState
from deferred._task import TaskHandle

__all__ = ["Call", "Registration", "asked", "listed"]

_LONGEST = 60


class Call(msgspec.Struct, frozen=True):
    """A function (or a task's name) and the arguments a test asks for; none given: any."""

    func: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}

    def __str__(self) -> str:
        name = self.func if isinstance(self.func, str) else name_of(self.func)
        return f"{name}({_listed(self.args, self.kwargs)})" if self.args or self.kwargs else name

    def asks_for(self, registration: Registration) -> bool:
        """Say whether this is the work, whatever the way its arguments were passed."""
        func, args, kwargs = registration.call
        if isinstance(self.func, str):
            return self.func == registration.task.name and self._takes(func, args, kwargs)
        asked, first, named = _flat(self.func, (), {})
        if inspect.iscoroutine(func):
            return getattr(asked, "__code__", None) is func.cr_code and not (self.args or self.kwargs)
        if asked != func:
            method: Any = func
            if not inspect.ismethod(method) or method.__func__ is not asked:
                return False
            func, args = asked, (method.__self__, *args)  # it is asked for by its class
        return Call(func, (*first, *self.args), {**named, **self.kwargs})._takes(func, args, kwargs)

    def _takes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if not self.args and not self.kwargs:
            return True
        return bool(_bound(func, self.args, self.kwargs) == _bound(func, args, kwargs))


def asked(func: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Call:
    """Return what a test asks for, or refuse what nothing could ever match.

    Raises:
        TypeError: `func` is neither a function nor a name, or could not be called with these arguments.
    """
    __tracebackhide__ = True
    call = Call(func, args, kwargs or {})
    if not isinstance(func, str) and not callable(func):
        close_refused(func)
        mend = f": write `{name_of(func)}` without calling it, then its arguments" if inspect.iscoroutine(func) else ""
        message = f"deferred work is asked for by its function, or by the name of its task, not by {_short(func)}{mend}"
        raise TypeError(message)
    if not isinstance(func, str) and (args or kwargs):
        try:
            signature = inspect.signature(func)
        except ValueError:  # that of some builtins is not known
            return call
        try:
            signature.bind(*args, **call.kwargs)
        except TypeError as error:
            message = f"{call} could never be deferred: {error} (it takes {signature})"
            raise TypeError(message) from None
    return call


class Registration(msgspec.Struct, frozen=True, eq=False):
    """A task as it was registered: its function and arguments, before anything is done to it."""

    task: TaskHandle[Any]
    call: tuple[Any, tuple[Any, ...], dict[str, Any]]

    @classmethod
    def of(cls, task: TaskHandle[Any]) -> Registration:
        """Note what `task` is to run."""
        return cls(task, _flat(task._work, task._args, task._kwargs))

    @property
    def counts(self) -> bool:
        """Whether it was deferred: not awaited by the handler, and not dropped by its ``when``."""
        return self.task.execution is not Execution.SEQUENTIAL and self.task.state is not TaskState.DISCARDED

    def __str__(self) -> str:
        task = self.task
        _, args, kwargs = self.call
        what = f"{task.name}({_listed(args, kwargs)})"
        where = f" by {task.label}" if task.label else ""
        how = "awaited in the request" if task.execution is Execution.SEQUENTIAL else task.state.value
        return f"{what} at {task.site}{where}: {how}"


def listed(registrations: Iterable[Registration]) -> str:
    """Return what was deferred, a line each."""
    lines = [f"  {registration}" for registration in registrations]
    return "What was deferred:\n" + "\n".join(lines) if lines else "Nothing was deferred."


def _flat(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return the innermost function, with what partials bind moved into the arguments."""
    while isinstance(func, functools.partial):
        partial: functools.partial[Any] = func  # pyright: ignore[reportUnknownVariableType]  # of whatever it returns
        func, args, kwargs = partial.func, (*partial.args, *args), {**partial.keywords, **kwargs}
    return func, args, kwargs


def _bound(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """Return the arguments by the names of the parameters, or as they are where that cannot be."""
    try:
        bound = inspect.signature(func).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return args, kwargs
    bound.apply_defaults()
    return dict(bound.arguments)


def _listed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    shown = [_short(arg) for arg in args]
    return ", ".join([*shown, *(f"{name}={_short(value)}" for name, value in kwargs.items())])


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001  # a broken repr must not hide what is missing
        text = f"<repr raised {type(error).__name__}>"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
