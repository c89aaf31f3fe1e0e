"""Group commit: what is written at the same time is written together.

A disk takes about as long to make one row safe as a hundred. So while one batch is being written
whatever else comes is collected, and is the next batch; a single write on an idle system waits for
nobody and goes alone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from marathon_app.database import DatabaseBusyError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batches(Generic[Item, Result]):
    """Collects items and writes them in batches, one batch at a time, in the order they came.

    It lives as long as the database it writes to.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        max_batch: int = 200,
        max_waiting: int = 2_000,
        patience: float = 5.0,
    ) -> None:
        """Prepare to collect.

        Args:
            write: Writes a batch, all or nothing, and returns a result for each item in order.
            max_batch: How many items one batch has at the most.
            max_waiting: How many items may wait for their batch.
            patience: Seconds that an item may wait for its batch to begin.
        """
        self._write = write
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._patience = patience
        self._waiting: dict[asyncio.Future[Result], Item] = {}
        self._writing: asyncio.Task[None] | None = None

    async def add(self, item: Item) -> Result:
        """Write an item with its batch and return its result.

        Cancelled while it waits for its batch, the item is not written; later, it is.

        Raises:
            DatabaseBusyError: Too many wait, or the batch did not begin in time: not written.
        """
        if len(self._waiting) >= self._max_waiting:
            raise DatabaseBusyError(f"{len(self._waiting)} writes are waiting already")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting[future] = item
        if self._writing is None:
            self._writing = loop.create_task(self._write_all())
        timer = loop.call_later(self._patience, self._give_up, future)
        try:
            return await future
        finally:
            timer.cancel()
            self._waiting.pop(future, None)

    def _give_up(self, future: asyncio.Future[Result]) -> None:
        if self._waiting.pop(future, None) is not None and not future.done():
            future.set_exception(DatabaseBusyError(f"the database was busy for {self._patience:g} s"))

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                futures = list(self._waiting)[: self._max_batch]
                items = [self._waiting.pop(future) for future in futures]
                await self._write_batch(futures, items)
        finally:
            self._writing = None

    async def _write_batch(self, futures: list[asyncio.Future[Result]], items: list[Item]) -> None:
        try:
            results = await self._write(items)
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, each of the callers gets it
            for future in futures:
                if not future.done():
                    future.set_exception(error)
        else:
            for future, result in zip(futures, results, strict=True):
                if not future.done():  # its caller may be gone
                    future.set_result(result)
