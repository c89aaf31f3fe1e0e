"""Decorators that say how a route runs its steps.

Put one below the framework's own decorator; it holds for every ``await ctx.run(...)`` of the
handler. Changing how a route executes is changing this line and nothing else::

    @post("/register")
    @deferred
    async def register(data: Registration, ctx: DeferredContext) -> str:
        await insert(data)
        await ctx.run(send_mail, data.email)
        return "Thanks"
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import Token
from typing import Any, ParamSpec, TypeVar, cast

from deferred._events import Execution
from deferred._task import Unit, current_mark, current_unit

__all__ = ["Execution", "concurrent", "deferred", "durable", "fire_and_forget", "sequential"]

P = ParamSpec("P")
R = TypeVar("R")


def sequential(handler: Callable[P, R]) -> Callable[P, R]:
    """Run each step before the answer: slow, and a failing step fails the answer.

    Example:
        >>> @sequential
        ... async def register(ctx):
        ...     await ctx.run(print, "sent before the answer")
        >>> register.__name__
        'register'
    """
    return _mark(handler, Execution.SEQUENTIAL)


def fire_and_forget(handler: Callable[P, R]) -> Callable[P, R]:
    """Start each step and do not care: nobody waits for it, not even the drain.

    Its failure is told to the error hooks and to nobody else.

    Example:
        >>> @fire_and_forget
        ... async def register(ctx):
        ...     await ctx.run(print, "perhaps")
    """
    return _mark(handler, Execution.FIRE_AND_FORGET)


def concurrent(handler: Callable[P, R]) -> Callable[P, R]:
    """Start each step at once and keep it alive: the answer confirms nothing of it.

    Example:
        >>> @concurrent
        ... async def register(ctx):
        ...     await ctx.run(print, "beside the answer")
    """
    return _mark(handler, Execution.CONCURRENT)


def deferred(handler: Callable[P, R]) -> Callable[P, R]:
    """Start each step after the response is out and keep it alive; also the default.

    Example:
        >>> @deferred
        ... async def register(ctx):
        ...     await ctx.run(print, "after the answer")
    """
    return _mark(handler, Execution.DEFERRED)


def durable(handler: Callable[P, R]) -> Callable[P, R]:
    """Store each step in the engine: it is run though the process dies, at least once.

    A step must be a registered task. To store it in a transaction of yours, call
    ``ctx.enqueue(step, ..., connection=...)`` instead.

    Example:
        >>> @durable
        ... async def register(ctx):
        ...     await ctx.run(print, "stored before the answer")
    """
    return _mark(handler, Execution.DURABLE)


def execution_of(handler: object) -> Execution | None:
    """Return the execution that a handler is marked with; None when it has no mark."""
    return getattr(handler, _MARK, None)


_MARK = "__execution__"


def _mark(handler: Callable[P, R], execution: Execution) -> Callable[P, R]:
    if not inspect.isroutine(handler):
        message = (
            f"@{execution.value} decorates the handler function itself, not {handler!r}: "
            "put it below the framework's decorator, next to the `def`"
        )
        raise TypeError(message)
    if inspect.iscoroutinefunction(handler):

        @functools.wraps(handler)
        async def run(*args: P.args, **kwargs: P.kwargs) -> Any:  # the handler's own
            outer = _enter(execution)
            try:
                return await handler(*args, **kwargs)
            finally:
                current_mark.reset(outer)

        setattr(run, _MARK, execution)
        return cast("Callable[P, R]", run)

    @functools.wraps(handler)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        outer = _enter(execution)
        try:
            answer: R = handler(*args, **kwargs)
            return answer
        finally:
            current_mark.reset(outer)

    setattr(call, _MARK, execution)
    return cast("Callable[P, R]", call)


def _enter(execution: Execution) -> Token[tuple[Unit, Execution] | None]:
    """Make the unit of work run its steps this way, as far as this function goes.

    The outermost mark stays with the unit: what the response streams runs as the route says.
    """
    unit = current_unit.get(None)
    if unit is not None and unit.route is None:
        unit.route = execution
    return current_mark.set(None if unit is None else (unit, execution))
