"""Group commit, with a writer that can be held up."""

import asyncio

import pytest

from marathon_app.batches import Batches
from marathon_app.database import DatabaseBusyError
from tests.marathon.support import until


class Writer:
    """Writes batches when it is let, and remembers them."""

    def __init__(self):
        self.batches = []
        self.gate = asyncio.Event()
        self.error = None

    async def __call__(self, items):
        """Write one batch."""
        self.batches.append(list(items))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [item * 10 for item in items]


@pytest.fixture
def writer():
    """Give a writer that is held up."""
    return Writer()


async def adding(batches, items):
    """Add items, each from a task of its own; return the tasks once all wait."""
    tasks = [asyncio.create_task(batches.add(item)) for item in items]
    await asyncio.sleep(0)
    return tasks


async def test_a_single_item_goes_alone_and_at_once(writer):
    """On an idle system an item is written without waiting for others."""
    writer.gate.set()

    assert await Batches(writer).add(4) == 40
    assert writer.batches == [[4]]


async def test_what_comes_during_a_batch_is_the_next_one(writer):
    """While a batch is written the others are collected, in order, and each gets its own result."""
    batches = Batches(writer)
    first = await adding(batches, [1])
    await until(lambda: writer.batches == [[1]])
    others = await adding(batches, range(2, 10))
    writer.gate.set()

    assert await asyncio.gather(*first, *others) == [number * 10 for number in range(1, 10)]
    assert writer.batches == [[1], list(range(2, 10))]


async def test_a_batch_has_a_largest_size(writer):
    """More than a batch may have are several batches."""
    writer.gate.set()
    batches = Batches(writer, max_batch=4)
    await asyncio.gather(*await adding(batches, range(10)))

    assert [len(batch) for batch in writer.batches] == [4, 4, 2]


async def test_an_error_is_everybodys_and_passes(writer):
    """Where a batch fails each of its items fails, and the next batch is well."""
    batches = Batches(writer)
    tasks = await adding(batches, [1, 2])
    writer.error = OSError("disk")
    writer.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    writer.error = None

    assert [type(result) for result in results] == [OSError, OSError]
    assert await batches.add(3) == 30


async def test_an_item_cancelled_while_it_waits_is_not_written(writer):
    """Cancelled before its batch an item is left out; cancelled later, it is written all the same."""
    batches = Batches(writer)
    (first,) = await adding(batches, [1])
    await until(lambda: writer.batches == [[1]])
    second, third = await adding(batches, [2, 3])
    first.cancel()
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    writer.gate.set()

    assert await third == 30
    assert writer.batches == [[1], [3]]


async def test_too_many_waiting_are_refused(writer):
    """F12: Beyond the number that may wait an item is refused at once."""
    batches = Batches(writer, max_waiting=2)
    tasks = await adding(batches, [1])
    await until(lambda: writer.batches == [[1]])
    tasks += await adding(batches, [2, 3])
    with pytest.raises(DatabaseBusyError, match="2 writes"):
        await batches.add(4)
    writer.gate.set()

    assert await asyncio.gather(*tasks) == [10, 20, 30]


async def test_an_item_whose_batch_does_not_begin_is_refused(writer):
    """F12: An item waits so long for its batch and no longer, and is not written after that."""
    batches = Batches(writer, patience=0.02)
    (first,) = await adding(batches, [1])
    await until(lambda: writer.batches == [[1]])
    with pytest.raises(DatabaseBusyError, match=r"0\.02 s"):
        await batches.add(2)
    writer.gate.set()

    assert await first == 10
    assert writer.batches == [[1]]


async def test_a_batch_cut_off_cancels_its_items(writer):
    """Where the writing itself is cancelled, as at the end of a loop, nobody is left waiting."""
    batches = Batches(writer)
    (task,) = await adding(batches, [1])
    await until(lambda: writer.batches == [[1]])
    batches._writing.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    writer.gate.set()
    assert await batches.add(2) == 20
