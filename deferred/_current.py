"""Defer from anywhere: the functions that find the current context.

They look for the context of the unit of work that this code belongs to. Outside any, the
supervisor that was opened last on this event loop decides, by its ``out_of_scope``.
"""

from __future__ import annotations

import contextlib
import logging
from asyncio import _get_running_loop as running_loop
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from sys import _getframe
from types import FrameType
from typing import Any, ParamSpec, TypeVar, cast, overload

from deferred._call import Kind, check_awaitable, check_callable, close_refused
from deferred._context import DeferredContext, once_only
from deferred._events import Execution, Outcome
from deferred._task import TaskHandle, current_unit
from deferred._unit import Host, hosts
from deferred.exceptions import NoCurrentContextError

__all__ = ["current_context", "defer", "wait_until"]

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger("deferred")

_get_unit = current_unit.get  # a method of an imported name is looked up anew for each call


def current_context() -> DeferredContext:
    """Return the context of the unit of work that this code belongs to.

    Raises:
        NoCurrentContextError: It belongs to none.

    Example:
        >>> from deferred import NoCurrentContextError
        >>> try:
        ...     current_context()
        ... except NoCurrentContextError:
        ...     print("not in a request")
        not in a request
    """
    unit = current_unit.get(None)
    if unit is None:
        message = (
            "there is no unit of work here: call this in a handler behind the middleware, in a function wrapped "
            "with `supervisor.wrap`, or inside `with supervisor.context():`"
        )
        raise NoCurrentContextError(message)
    return cast("DeferredContext", unit)  # contexts alone are ever put there


@overload
def defer(func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[T]: ...
@overload
def defer(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[T]: ...
def defer(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
    """Call `func` after the response of the current unit of work; see `DeferredContext.defer`.

    Raises:
        NoCurrentContextError: There is none, and the supervisor's ``out_of_scope`` is ``"raise"``.
    """
    try:
        root: Any = _get_unit()  # contexts alone are ever put there
    except LookupError:
        root = None
    if root is None:
        return _register(check_callable(func), func, args, kwargs, _getframe(1), Execution.DEFERRED)
    return root._register(func, args, kwargs, root._options, copy_context(), _getframe(1))  # type: ignore[no-any-return]  # as above


def wait_until(awaitable: Awaitable[T], /) -> TaskHandle[T]:
    """Start `awaitable` now and keep it alive; see `DeferredContext.wait_until`.

    Raises:
        NoCurrentContextError: There is no current unit of work, and the supervisor's
            ``out_of_scope`` is ``"raise"``; a coroutine is closed.
    """
    check_awaitable(awaitable)
    return _register(Kind.AWAITABLE, awaitable, (), {}, _getframe(1), Execution.CONCURRENT)


def _register(
    kind: Kind, work: Any, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType, execution: Execution
) -> TaskHandle[Any]:
    ignored = False
    context = current_unit.get(None)
    if context is None:
        try:
            host = _host_outside()
        except NoCurrentContextError:
            close_refused(work)
            raise
        context, ignored = host.ambient, host.out_of_scope == "ignore"
    context = cast("DeferredContext", context)
    options = context._options
    if kind is Kind.AWAITABLE and options.retry is not None:
        options = once_only(options, options, work)
    if ignored:
        return _ignore(context, kind, work, args, kwargs, options, frame, execution)
    return context._register_slowly(kind, work, args, kwargs, options, frame, execution)


def context_outside(policy: str) -> DeferredContext:
    """Return the context of work that belongs to no unit of work, if that is the policy here.

    Raises:
        NoCurrentContextError: It is not.
    """
    host = _host_outside()
    if host.out_of_scope != policy:
        message = f"work outside any unit of work is not run here: out_of_scope is {host.out_of_scope!r}"
        raise NoCurrentContextError(message)
    return cast("DeferredContext", host.ambient)


def _host_outside() -> Host:
    """Return the supervisor that decides where there is no context, or raise."""
    running = running_loop()
    chosen: Host | None = None
    chosen_is_open = False
    for reference in tuple(hosts):  # those opened last at the end
        host = reference()
        if host is None:
            with contextlib.suppress(ValueError):  # another thread has seen it too
                hosts.remove(reference)
            continue
        loop = host.loop
        is_open = loop is not None and host.home is loop and running in (None, loop) and not loop.is_closed()
        if is_open or (running is not None and not chosen_is_open):
            chosen, chosen_is_open = host, is_open
    if chosen is not None and chosen.out_of_scope != "raise":
        return chosen
    message = (
        "defer()/wait_until() was called outside any unit of work: call it in a handler behind the middleware "
        "(served by ASGI, not WSGI) or inside `with supervisor.context():`, or let work out of scope run with "
        '`Supervisor(out_of_scope="run")`'
    )
    raise NoCurrentContextError(message)


def _ignore(context: DeferredContext, kind: Kind, work: Any, *rest: Any) -> TaskHandle[Any]:
    close_refused(work)
    task = context._make(kind, work, *rest)
    host = context._host
    if not host.warned:
        host.warned = True
        logger.warning(
            '%s was deferred outside any unit of work (at %s) and is ignored, as out_of_scope="ignore" says; said once',
            task.name,
            task.site,
        )
    host.on_loop(host.settle, task, Outcome.DISCARDED_OUT_OF_SCOPE)
    return task
