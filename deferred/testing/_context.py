"""A context of a test's own, and how to wait for it."""

from __future__ import annotations

import asyncio
import threading
from contextvars import Token
from types import TracebackType
from typing import Any, Protocol, Self

from deferred._context import DeferredContext
from deferred._stores import STORED, stored
from deferred._task import Unit, current_unit
from deferred.testing._findings import Findings
from deferred.testing._waiting import blocking

__all__ = ["Keeper", "TestContext", "make_test_context"]


class Keeper(Protocol):
    """What contexts and clients ask of their kit."""

    timeout: float
    findings: Findings

    async def settle(self, timeout: float, unit: Unit | None = None) -> None:
        """Wait for the work of a context or of all, cut it short at the timeout, and tell nobody."""
        ...

    async def wait(self, timeout: float | None = None) -> None:
        """Wait for all work and raise what it has raised."""
        ...


class TestContext(DeferredContext):
    """A `DeferredContext` that a test has made. Lives until the test lets go of it.

    Hand it to the code under test, then ``await wait_on_context(ctx)``. Inside ``async with``
    it is the current context too, and leaving that waits for its work. In a synchronous test
    ``with`` does the same, on an event loop in a thread.
    """

    __slots__ = STORED
    __test__ = False  # no test class, whatever its name begins with

    _owner: Any = None  # the supervisor, which nobody else may hold
    _keeper: Any = None
    _token: Any = None
    _thread: Any = None

    @property
    def kit(self) -> Any:
        """The `Kit` that it was made by: its assertions, its captured work, its faults."""
        return self._keeper

    async def finish(self, timeout: float, stacklevel: int = 1) -> None:
        """End it, wait for its work, warn of what is unfinished and raise what it has raised."""
        __tracebackhide__ = True
        keeper: Keeper = self._keeper
        if not self._ended:
            self.end()
        await keeper.settle(timeout, self)
        keeper.findings.warn(self, timeout, stacklevel=stacklevel + 1)
        keeper.findings.raise_errors(self)

    def _enter(self) -> None:
        if self._ended:
            message = "this context has ended; make another one"
            raise RuntimeError(message)
        self._token = current_unit.set(self)

    def _leave(self) -> None:
        token: Token[Unit] = self._token
        current_unit.reset(token)

    async def __aenter__(self) -> Self:
        """Make it the current context."""
        self._enter()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """End it and wait for its work; raise what that has raised, unless the block has raised itself."""
        __tracebackhide__ = True
        self._leave()
        self.end(error)
        keeper: Keeper = self._keeper
        if error is None:
            await self.finish(keeper.timeout, stacklevel=2)
        else:
            await keeper.settle(keeper.timeout, self)

    def __enter__(self) -> Self:
        """Make it the current context; without an event loop here, start one in a thread."""
        self._enter()
        if asyncio._get_running_loop() is None:
            self._thread = LoopThread()
            self._owner._launcher.seen = self._thread.loop
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """End it; without an event loop here wait for its work as well, and raise what that has raised."""
        __tracebackhide__ = True
        self._leave()
        if self._thread is None:
            self.end(error)
            return
        thread: LoopThread = self._thread
        keeper: Keeper = self._keeper
        try:
            # Code under test may have brought a loop of its own, by `asyncio.run`.
            blocking(self._owner._launcher.loop or thread.loop, lambda: self._end_there(error, keeper))
        finally:
            thread.stop()
        keeper.findings.warn(self, keeper.timeout, stacklevel=2)
        if error is None:
            keeper.findings.raise_errors(self)

    async def _end_there(self, error: BaseException | None, keeper: Keeper) -> None:
        self.end(error)
        await keeper.settle(keeper.timeout, self)


make_test_context = stored(TestContext)


class LoopThread:
    """An event loop that turns in a thread. Lives as long as the ``with`` block of a synchronous test."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        running = threading.Event()
        self.loop.call_soon(running.set)
        self._thread = threading.Thread(target=self.loop.run_forever, name="deferred-testing", daemon=True)
        self._thread.start()
        running.wait()

    def stop(self) -> None:
        """Stop and close the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
