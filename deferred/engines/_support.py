"""What the engines share: whose connection it is, and patience with a store that is away."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import random
import sys
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any

from deferred._retry import seconds
from deferred.engines._protocol import Dead, Delivery, Handle, RetryIn, Verdict
from deferred.exceptions import EngineError

__all__ = [
    "Home",
    "Trouble",
    "Turns",
    "UnreachableError",
    "answer",
    "clean",
    "foreign",
    "logger",
    "persist",
    "positive",
    "printable",
    "raw_connection",
    "stopped_within",
    "stubbornly",
]

logger = logging.getLogger("deferred")

LONGEST_ERROR = 4000
"""Characters of an error that are kept."""

AGAIN = 0.2
"""Seconds between tries to write a verdict down while the store is away."""

SAID_AGAIN = 30.0
"""Seconds before a trouble that lasts is logged again."""


class UnreachableError(EngineError):
    """The store cannot be opened now; what is in the way is outside of it, and may be gone the next time."""


class Trouble:
    """What goes wrong between an engine and its store, logged without a flood. Lives as long as the engine."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._said = float("-inf")

    def tell(self, doing: str, error: BaseException) -> None:
        """Log it, unless another was logged a moment ago."""
        now = time.monotonic()
        if now - self._said >= SAID_AGAIN:
            self._said = now
            logger.warning("%s: %s failed, and is tried again: %s", self._engine, doing, shown(error))

    def over(self) -> None:
        """Log that it works again, if anybody was told of the trouble."""
        if self._said != float("-inf"):
            self._said = float("-inf")
            logger.warning("%s: works again", self._engine)


class Home:
    """The event loop that an engine is open on. Lives as long as the engine.

    Args:
        engine: What errors call the engine.
        close: Closes it; awaited where its loop ends (as `asyncio.run` ends one) and has it still open.
        forget: Lets go of what is open where its loop is closed: nothing of that can be awaited any more.
    """

    def __init__(self, engine: str, close: Callable[[], Awaitable[None]], forget: Callable[[], None]) -> None:
        self._engine = engine
        self._close = close
        self._forget = forget
        self._end: AsyncGenerator[None] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    async def enter(self) -> None:
        """Be on the running event loop from now on.

        Raises:
            EngineError: The engine is open on another one, which may still run.
        """
        if self.loop is not None and not self.loop.is_closed():
            message = (
                f"{self._engine} is open on another event loop, and works on one at a time: close it there first, or "
                "make another engine for this loop"
            )
            raise EngineError(message)
        await self.leave()
        self.loop = asyncio.get_running_loop()
        self._end = self._until_its_end(self.loop)
        await anext(self._end)

    async def leave(self) -> None:
        """Be on none: the engine is about to be closed."""
        loop, self.loop = self.loop, None
        end, self._end = self._end, None
        if loop is not None and loop.is_closed():
            self._forget()
        if end is not None:
            await end.aclose()

    async def _until_its_end(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None]:
        """Be ended by the loop, which at its own end does so with every asynchronous generator."""
        try:
            yield
        finally:
            if self.loop is loop:
                self._end = None
                await self._close()


def shown(error: BaseException) -> str:
    """Return the error's type and text in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


async def answer(handle: Handle, delivery: Delivery, tell: Callable[[str, BaseException], None]) -> Verdict:
    """Return what `handle` says of a delivery; where it raises the job is delivered again, with the note it had."""
    try:
        return await handle(delivery)
    except Exception as error:  # noqa: BLE001  # the contract of `serve`: it is delivered again
        tell("a delivery", error)
        return RetryIn(1.0, delivery.note, shown(error))


async def stubbornly(
    write: Callable[[], Awaitable[object]],
    patience: float,
    lost: tuple[type[Exception], ...],
    tell: Callable[[str, BaseException], None],
) -> None:
    """Write a verdict down, though the store may be away for a while; after the lease it is too late.

    Args:
        write: Writes it.
        patience: Seconds that the lease lasts.
        lost: What is raised where the store is away, or others are in the way.
        tell: Told what keeps it from being written.
    """
    deadline = asyncio.get_running_loop().time() + patience
    while True:
        try:
            await write()
        except lost as error:
            if asyncio.get_running_loop().time() >= deadline:
                raise
            tell("writing a verdict", error)
        else:
            return
        await asyncio.sleep(AGAIN)


def foreign(job_id: object, error: Exception) -> Dead:
    """Return, and log, the end of a row that this package has not written, or that somebody has written over."""
    logger.error("job %s is a dead letter (foreign): it was not stored by this package: %s", job_id, shown(error))
    return Dead("foreign", clean(f"it was not stored by this package: {error}"))


def clean(text: str) -> str:
    """Return `text` as every store takes it: no NUL, no lone surrogate, no more than a page or two."""
    return text[:LONGEST_ERROR].replace("\0", "\ufffd").encode(errors="replace").decode()


def printable(texts: Iterable[str]) -> list[str]:
    """Return those that can be an id, or a name of ours; what else is asked for, no store has."""
    return [text for text in texts if text.isprintable()]


async def raw_connection(connection: Any) -> Any:
    """Return the driver's own connection inside one of `databases` or SQLAlchemy; any other as it is.

    Raises:
        EngineError: It is a `databases.Database` or an `AsyncEngine`, which is no connection, or it is closed.
    """
    kind: type[object] = connection.__class__
    package = kind.__module__.partition(".")[0]
    if package == "databases":
        return _of_databases(connection)
    return await _of_sqlalchemy(connection) if package == "sqlalchemy" else connection


def _of_databases(connection: Any) -> Any:
    kind: type[object] = connection.__class__
    if not hasattr(kind, "raw_connection"):
        message = (
            f"connection is a databases {kind.__name__}, which is no connection: "
            "pass `database.connection()`, or what `async with database.connection()` gives"
        )
        raise EngineError(message)
    try:
        return connection.raw_connection
    except AssertionError as error:
        message = "that connection is not connected: use it inside `async with database.connection()`"
        raise EngineError(message) from error


async def _of_sqlalchemy(connection: Any) -> Any:
    """Return what is inside an AsyncSession or an AsyncConnection, its transaction begun as by any statement."""
    errors: Any = sys.modules["sqlalchemy.exc"]
    try:
        if inspect.iscoroutinefunction(getattr(connection.__class__, "connection", None)):  # a session
            connection = await connection.connection()
        kind: type[object] = connection.__class__
        if not hasattr(kind, "get_raw_connection"):
            message = (
                f"connection is a SQLAlchemy {kind.__name__}, which is no asynchronous connection: pass an "
                "AsyncSession, or what `async with engine.begin()` gives. The job was not stored"
            )
            raise EngineError(message)
        raw = (await connection.get_raw_connection()).driver_connection
        if hasattr(raw, "is_in_transaction") and not raw.is_in_transaction():
            await connection.exec_driver_sql("select 1")  # asyncpg is sent its BEGIN with the first statement
    except errors.InvalidRequestError as error:
        message = f"that SQLAlchemy connection cannot be joined, and the job was not stored: {error}"
        raise EngineError(message) from error
    return raw


class Turns:
    """Whose statement may run on a connection, which takes one at a time. Lives as long as the engine."""

    def __init__(self) -> None:
        self._locks: weakref.WeakKeyDictionary[Any, asyncio.Lock] = weakref.WeakKeyDictionary()

    def of(self, connection: Any) -> asyncio.Lock:
        """Return the lock of a connection: that of `databases` where it is one of its, and else our own."""
        known: Any = getattr(connection, "_query_lock", None)
        if isinstance(known, asyncio.Lock):
            return known
        try:
            return self._locks.setdefault(getattr(connection, "_con", None) or connection, asyncio.Lock())
        except TypeError:  # nothing that could be a connection: whoever joins it says so
            return asyncio.Lock()


def positive(value: object, what: str) -> float:
    """Return `value` as a number of seconds above 0, or refuse it by name."""
    return seconds(value, what)


async def stopped_within(stop: asyncio.Event, timeout: float) -> bool:
    """Wait for `stop`, at most `timeout` seconds; say whether it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await stop.wait()
    return stop.is_set()


async def persist(
    attempt: Callable[[], Awaitable[None]], stop: asyncio.Event, tell: Callable[[Exception], None]
) -> None:
    """Await `attempt()` until it returns or `stop` is set, however often its store is away.

    Raises:
        EngineError: What `attempt` raised: waiting mends nothing.
    """
    delay = 0.1
    while not stop.is_set():
        try:
            await attempt()
        except Exception as error:  # a driver raises what it likes; told, and tried again
            if isinstance(error, EngineError) and not isinstance(error, UnreachableError):
                raise
            tell(error)
        else:
            return
        await stopped_within(stop, delay * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, no secret
        delay = min(2.0, delay * 2)
