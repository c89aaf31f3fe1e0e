"""Where engines are tested: stores, workers and crashes of the suite's own."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import secrets
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Self, TypeAlias

import msgspec

from deferred.engines._protocol import Delivery, Done, Engine, Job, Verdict

__all__ = ["PATIENCE", "TRIES", "Bench", "Check", "Server", "crash", "expect", "job", "until_settled"]

PATIENCE = 30.0
"""Seconds after which something that has not happened is taken not to happen."""

TRIES = 3
"""How often what a busy machine may keep from happening is tried."""


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """Where an engine is tested. Lives as long as the test.

    Attributes:
        factory: ``"package.module:function"``; called with `argument` it makes an engine, in
            this process and in others.
        argument: What the engine is made of, such as a path.
        lease: Seconds after which a dead worker's jobs are delivered again; short, for a test.
        transaction: A context manager that gives a connection with an open transaction; it
            commits, or rolls back where its block raises. None if the engine joins none.
    """

    factory: str
    argument: str
    lease: float
    transaction: Callable[[], AbstractAsyncContextManager[Any]] | None = None

    @contextlib.asynccontextmanager
    async def engine(self) -> AsyncGenerator[Engine]:
        """Make an engine on the store, ready for use; refuse a store that holds other people's jobs."""
        engine = make(self.factory, self.argument)
        await engine.setup()
        try:
            await refuse_others(engine)
            yield engine
        finally:
            await engine.close()


Check: TypeAlias = Callable[[Bench], Awaitable[None]]
Answer: TypeAlias = Callable[[Delivery], Verdict]


def done(_: Delivery) -> Verdict:
    """Finish the job."""
    return Done()


def make(factory: str, argument: str) -> Engine:
    module, _, function = factory.partition(":")
    engine: Engine = getattr(importlib.import_module(module), function)(argument)
    return engine


def job(name: str = "task", payload: bytes = b"{}", **more: Any) -> Job:
    return Job(id=secrets.token_hex(16), name=name, payload=payload, **more)


def expect(actual: object, wanted: object, what: str) -> None:
    if actual != wanted:
        message = f"{what}: expected {wanted!r}, got {actual!r}"
        raise AssertionError(message)


async def within(awaitable: Awaitable[Any], what: str) -> Any:
    try:
        async with asyncio.timeout(PATIENCE):
            return await awaitable
    except TimeoutError:
        message = f"{what}: it has not happened within {PATIENCE:g} s"
        raise AssertionError(message) from None


class Server:
    """A worker of the test's own, and what was delivered to it."""

    def __init__(
        self, engine: Engine, answer: Answer = done, *, queues: Sequence[str] = ("deferred",), concurrency: int = 4
    ) -> None:
        self._engine = engine
        self._answer = answer
        self._queues = queues
        self._concurrency = concurrency
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.delivered: asyncio.Queue[Delivery] = asyncio.Queue()
        self.hold = asyncio.Event()  # set: deliveries are answered
        self.hold.set()
        self.running = 0
        self.most = 0
        self.lost = 0  # deliveries that the engine has cancelled

    async def _handle(self, delivery: Delivery) -> Verdict:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            self.delivered.put_nowait(delivery)
            await self.hold.wait()
            return self._answer(delivery)
        except asyncio.CancelledError:
            self.lost += 1
            raise
        finally:
            self.running -= 1

    async def __aenter__(self) -> Self:
        serving = self._engine.serve(self._handle, queues=self._queues, concurrency=self._concurrency, stop=self._stop)
        self._task = asyncio.create_task(serving)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.stop()
            return
        self.hold.set()
        with contextlib.suppress(AssertionError):  # what is wrong is known by now
            await self.stop()

    async def stop(self) -> None:
        """Stop, and wait for the end."""
        self._stop.set()
        if self._task is not None:
            await within(self._task, "the end of serve(), once it is told to stop")

    def stopping(self) -> None:
        """Stop, and wait for nothing."""
        self._stop.set()

    async def next(self, what: str = "a delivery") -> Delivery:
        """Return the next delivery."""
        delivery: Delivery = await within(self.delivered.get(), what)
        return delivery

    async def all(self, number: int) -> list[Delivery]:
        """Return the next deliveries, so many."""
        return [await self.next(f"delivery {index + 1} of {number}") for index in range(number)]


async def until_settled(engine: Engine) -> None:
    """Wait until nothing waits and nothing runs."""

    async def wait() -> None:
        while (depth := await engine.depth()).waiting or depth.running:  # noqa: ASYNC110  # other processes settle too
            await asyncio.sleep(0.02)

    await within(wait(), "the last verdict in the store")


async def refuse_others(engine: Engine) -> None:
    depth = await engine.depth()
    if depth.waiting or depth.running or depth.dead:
        message = f"the store holds jobs ({depth!r}): these checks need one of their own, and have touched nothing"
        raise AssertionError(message)


async def crash(bench: Bench) -> None:
    """Have another process take a job and be killed with it in hand."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, bench.factory, bench.argument)
    code = await within(process.wait(), "the death of the other worker")
    expect(code, -signal.SIGKILL, "its exit code")


async def _die(engine: Engine) -> None:
    """Take one job, and be killed with it in hand."""

    async def handle(_: Delivery) -> Verdict:
        os.kill(os.getpid(), signal.SIGKILL)
        return Done()

    await engine.setup()
    await engine.serve(handle, queues=("deferred",), concurrency=1, stop=asyncio.Event())


if __name__ == "__main__":
    asyncio.run(_die(make(sys.argv[1], sys.argv[2])))
