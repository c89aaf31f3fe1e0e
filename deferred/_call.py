"""What to run: checked, classified and named.

Rules of this file: every check answers at the call that registers the work, with the mend
in its message; a coroutine that is refused is closed, so that Python never warns of it as
"never awaited"; the common case (a plain ``async def``) costs two attribute reads.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import enum
import functools
import inspect
from types import CodeType, CoroutineType, FunctionType, MethodType
from typing import Any

__all__ = [
    "Kind",
    "check_awaitable",
    "check_callable",
    "claimed",
    "close_refused",
    "is_coroutine",
    "name_of",
    "site_of",
]

claimed: set[Any] = set()
"""The coroutines that somebody keeps alive: one runs once, in whatever supervisor of this process."""

_COROUTINE = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE
_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class Kind(enum.Enum):
    """How a piece of work is run."""

    ASYNC = "async"  # called on the loop, awaited
    SYNC = "sync"  # called in a thread
    AWAITABLE = "awaitable"  # awaited, once


def check_callable(func: object, taker: str = "defer") -> Kind:
    """Say how `func` is to be run, or refuse it.

    Args:
        func: What is to be called.
        taker: What it was given to, for the message.

    Raises:
        TypeError: It is a coroutine object, a generator function, or no callable at all.
    """
    if type(func) is FunctionType:
        flags = func.__code__.co_flags
        if flags & _COROUTINE:
            return Kind.ASYNC
        if not flags & _GENERATOR:  # markcoroutinefunction() leaves no flag
            return Kind.ASYNC if inspect.iscoroutinefunction(func) else Kind.SYNC
    return _classify(func, taker)


def _classify(func: object, taker: str) -> Kind:
    bare = func
    while isinstance(bare, functools.partial | MethodType):
        bare = bare.func if isinstance(bare, functools.partial) else bare.__func__
    called = bare if isinstance(bare, FunctionType | type) else getattr(type(bare), "__call__", bare)  # noqa: B004  # its code, not whether there is any
    if isinstance(called, FunctionType) and called.__code__.co_flags & _COROUTINE:
        return Kind.ASYNC  # that of @types.coroutine is a generator function as well
    if inspect.isasyncgenfunction(called) or inspect.isgeneratorfunction(called):
        message = (
            f"{name_of(func)} is a generator function: calling it runs nothing. "
            "Defer an `async def` without `yield`, or a function that consumes the generator"
        )
        raise TypeError(message)
    if callable(func):
        if isinstance(func, type):
            return Kind.SYNC
        return Kind.ASYNC if inspect.iscoroutinefunction(bare) or inspect.iscoroutinefunction(called) else Kind.SYNC
    close_refused(func)
    if inspect.isawaitable(func):
        message = (
            f"{taker}() takes a function and its arguments, not {_article(func)}: write "
            f"`{taker}({_called_name(func)}, ...)` without calling it, or hand it to `wait_until(...)`, "
            "which starts it now"
        )
    else:
        message = f"{taker}() takes a function and its arguments, not {_article(func)}: {_shorten(func)}"
    raise TypeError(message)


def check_awaitable(awaitable: object) -> None:
    """Refuse what `wait_until` cannot keep alive.

    Raises:
        TypeError: It is not awaitable; the message says what to write instead.
        ValueError: It is a coroutine that already runs or has been awaited.
    """
    if isinstance(awaitable, CoroutineType):
        coroutine: CoroutineType[Any, Any, Any] = awaitable  # pyright: ignore[reportUnknownVariableType]  # of whatever it returns
        if coroutine in claimed:  # not closed: its first registration holds
            message = f"the coroutine {name_of(coroutine)} was registered before: it runs once, pass a fresh one"
            raise ValueError(message)
        if coroutine.cr_frame is None or coroutine.cr_running or coroutine.cr_await is not None:
            message = (
                f"the coroutine {name_of(coroutine)} has been started already and can be awaited only once: "
                "pass a fresh one, or wrap it in a task and share that"
            )
            raise ValueError(message)
        return
    if inspect.isawaitable(awaitable):
        return
    refused: Any = awaitable
    close_refused(refused)
    hint = "pass something that can be awaited, such as the coroutine that an `async def` returns"
    if isinstance(awaitable, concurrent.futures.Future):
        hint = "wrap it: `wait_until(asyncio.wrap_future(future))`"
    elif inspect.isasyncgen(awaitable) or inspect.isgenerator(awaitable):
        hint = "a generator is not awaitable: consume it in an `async def` and pass that one's coroutine"
    elif callable(awaitable):
        name = name_of(awaitable)
        hint = f"it was not called: write `wait_until({name}(...))`, or `defer({name}, ...)` to start it later"
    message = f"wait_until() takes an awaitable, not {_article(refused)} ({_shorten(refused)}): {hint}"
    raise TypeError(message)


def is_coroutine(work: object) -> bool:
    """Say whether Python has made this coroutine: then it can be awaited once, and is hashed by what it is."""
    return isinstance(work, CoroutineType)


def close_refused(work: object) -> None:
    """Close a coroutine that was not accepted; leave everything else alone."""
    if isinstance(work, CoroutineType):
        coroutine: CoroutineType[Any, Any, Any] = work  # pyright: ignore[reportUnknownVariableType]  # same
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            coroutine.close()


def name_of(work: Any) -> str:  # names anything
    """Return the name that logs show for `work`: the qualified name of the innermost function."""
    if type(work) is FunctionType and type(work.__qualname__) is str:
        return _readable(work.__qualname__)
    while isinstance(work, functools.partial):
        work = work.func
    if isinstance(work, asyncio.Task):
        return name_of(work.get_coro())
    try:
        name = work.__qualname__
    except Exception:  # noqa: BLE001  # a proxy may raise anything
        name = None
    if not isinstance(name, str):
        name = type(work).__qualname__
    return _readable("".join([name]))  # noqa: FLY002  # a format would call what a subclass defines


@functools.lru_cache(1024)
def _readable(qualname: str) -> str:
    return qualname.replace("<locals>.", "")


def site_of(code: CodeType | None, instruction: int) -> str:
    """Return ``file:line`` of the place that registered a task: an instruction of some code.

    The line of a frame is found by a walk through a table; this leaves it to whoever asks.
    """
    if code is None:
        return "unknown"
    line = next((line for start, end, line in code.co_lines() if start <= instruction < end), None)
    return f"{code.co_filename}:{line or code.co_firstlineno}"


def _article(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _called_name(awaitable: object) -> str:
    return name_of(awaitable) if inspect.iscoroutine(awaitable) else "func"


def _shorten(value: object, limit: int = 80) -> str:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001  # a broken repr must not hide the real message
        return f"its repr raised {type(error).__name__}"
    return text if len(text) <= limit else text[: limit - 1] + "…"
