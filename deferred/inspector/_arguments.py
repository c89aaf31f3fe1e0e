"""The arguments of a task, kept without keeping anything of the user's alive."""

from __future__ import annotations

from types import CodeType
from typing import Any

from deferred._task import TaskHandle
from deferred.inspector._records import Arguments
from deferred.inspector._redact import MOST_ARGUMENTS, describe_arguments, plain

__all__ = ["keep_arguments", "show_arguments"]


def keep_arguments(task: TaskHandle[Any]) -> Arguments:
    """Return the arguments of a task: by reference where they are plain values, else as they look now."""
    args, kwargs = task.arguments
    names = _names(task)
    if len(args) + len(kwargs) <= MOST_ARGUMENTS and plain(args) and plain(kwargs.values()):
        return Arguments(names, args, kwargs)
    return Arguments(names, (), {}, describe_arguments(names, args, kwargs))


def _names(task: TaskHandle[Any]) -> tuple[str, ...]:
    """Return the names of a function's positional parameters, as far as its code tells."""
    work: Any = task._work
    function = getattr(work, "__func__", work)
    code: Any = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return ()
    names = code.co_varnames[: code.co_argcount]
    return names[1:] if function is not work else names


def show_arguments(arguments: Arguments) -> list[tuple[str, str]]:
    """Return each argument's name and what it looks like, secrets left out."""
    if arguments.shown is not None:
        return arguments.shown
    return describe_arguments(arguments.names, arguments.args, arguments.kwargs)
